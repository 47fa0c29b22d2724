"""What was measured on the user's own devices, kept in the user's configuration folder.

One JSON file per device in `measured/`. A measurement beats a datasheet for the same device.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from hwdb.device import Device, KernelRates
from hwdb.errors import CannotKeep

SCHEMA_VERSION = 1
MEASURED = ("bandwidth_bytes_per_s", "fp32_flops", "fp16_tensor_flops", "bf16_tensor_flops", "int8_ops")


@dataclass(frozen=True)
class Measurement:
    """Rates of one device as measured. `name` is the device's name; `cpu_cores` those that took part."""

    name: str
    kind: str
    date: str  # ISO 8601
    method: str
    cpu_cores: int | None = None
    bandwidth_bytes_per_s: float | None = None
    fp32_flops: float | None = None
    fp16_tensor_flops: float | None = None
    bf16_tensor_flops: float | None = None
    int8_ops: float | None = None
    kernels: KernelRates | None = None
    # by number of threads, ascending; rates are of the last
    thread_bandwidths: tuple[tuple[int, float], ...] = ()


def folder() -> Path:
    """`LLM_PLAN_CONFIG_DIR/measured`, or the same under the user's configuration folder."""
    chosen = os.environ.get("LLM_PLAN_CONFIG_DIR")
    if chosen:
        return Path(chosen) / "measured"
    from platformdirs import user_config_path

    return user_config_path("llm-plan", appauthor=False) / "measured"


def replace_file(path: Path, text: str) -> None:
    """Writes a file whole or not at all, making its folder where it lacks. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8"
    ) as stream:
        stream.write(text)
    os.replace(stream.name, path)


def write(measurement: Measurement, where: Path | None = None) -> Path:
    """Keeps `measurement`, in place of an older one of the same device; the file is replaced whole."""
    where = where or folder()
    path = where / _file_name(measurement)
    text = json.dumps({"schema_version": SCHEMA_VERSION, **asdict(measurement)}, indent=2, allow_nan=False)
    try:
        replace_file(path, text + "\n")
    except OSError as error:
        raise CannotKeep(f"cannot write {path}: {error.strerror or error}") from None
    return path


def remove(measurement: Measurement, where: Path | None = None) -> bool:
    """Forgets the measurement of that device; False where there was none."""
    path = (where or folder()) / _file_name(measurement)
    if not path.exists():
        return False
    path.unlink()
    return True


def read_all(where: Path | None = None) -> tuple[tuple[Measurement, ...], tuple[str, ...]]:
    """Every readable measurement, and one remark per file that is not one."""
    kept, remarks = [], []
    for path in sorted((where or folder()).glob("*.json")):
        try:
            kept.append(_parse(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            remarks.append(f"{path} ignored: {error}")
    return tuple(kept), tuple(remarks)


def apply(device: Device, measurements: tuple[Measurement, ...]) -> Device:
    """`device` with what was measured on it; unchanged where nothing was."""
    found = next((m for m in measurements if _same(m, device)), None)
    if found is None:
        return device
    values = {
        name: getattr(found, name) for name in (*MEASURED, "kernels") if getattr(found, name) is not None
    }
    kept = tuple(origin for origin in device.origins if origin[0] not in values)
    told = tuple((name, f"measured {found.date}: {found.method}") for name in sorted(values))
    by_threads = found.thread_bandwidths
    return replace(device, **values, thread_bandwidths=by_threads, origins=(*kept, *told), basis="measured")


def _same(measurement: Measurement, device: Device) -> bool:
    cores = device.kind != "cpu" or measurement.cpu_cores in (None, device.cpu_cores)
    return cores and (measurement.name, measurement.kind) == (device.name, device.kind)


def _file_name(measurement: Measurement) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", measurement.name.lower()).strip("-") or "device"
    cores = f"-{measurement.cpu_cores}c" if measurement.cpu_cores else ""
    return f"{slug}{cores}.json"


def _parse(text: str) -> Measurement:
    content = json.loads(text)
    if not isinstance(content, dict) or content.pop("schema_version", None) != SCHEMA_VERSION:
        raise ValueError(f"not a measurement of schema version {SCHEMA_VERSION}")
    unknown = sorted(set(content) - {f.name for f in fields(Measurement)})
    if unknown:
        raise ValueError(f"unknown keys: {', '.join(unknown)}")
    if not all(isinstance(content.get(name), str) for name in ("name", "kind", "date", "method")):
        raise ValueError("name, kind, date and method are texts")
    for name in ("cpu_cores", *MEASURED):
        value = content.get(name)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float) or not value > 0
        ):
            raise ValueError(f"{name} is a positive number")
    if content.get("kernels") is not None:
        content["kernels"] = _kernels(content["kernels"])
    content["thread_bandwidths"] = _by_threads(content.get("thread_bandwidths", []))
    return Measurement(**content)


def _by_threads(content: Any) -> tuple[tuple[int, float], ...]:
    """Raises ValueError where it is none."""
    try:
        found = tuple((int(n), float(rate)) for n, rate in content)
    except (TypeError, ValueError):
        found = ((0, 0.0),)
    counts = [n for n, _ in found]
    if counts != sorted(set(counts)) or not all(n > 0 and 0 < rate < float("inf") for n, rate in found):
        raise ValueError("thread_bandwidths are ascending numbers of threads, each with a positive rate")
    return found


def _kernels(content: Any) -> KernelRates:
    """Raises ValueError where it is not one."""
    try:
        formats = tuple((str(f), float(a), float(b)) for f, a, b in content["formats"])
        one, four = (float(v) for v in content["attention_bytes_per_s"])
        found = KernelRates(
            formats, (one, four), float(content["attention_flops"]), float(content["layer_s"])
        )
    except (TypeError, KeyError, ValueError):
        raise ValueError("kernels are formats, attention_bytes_per_s, attention_flops and layer_s") from None
    numbers = [one, four, found.attention_flops, found.layer_s, *(v for _, *pair in formats for v in pair)]
    if not all(0 < v < float("inf") for v in numbers):
        raise ValueError("rates of kernels are positive numbers")
    return found
