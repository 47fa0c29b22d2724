"""What the labels of measurement files mean: engines, backends, cache types, dates, remarks.

The words are data (`planner/data/labels.yaml`); this module looks them up. Nothing is guessed from a
likeness: a label that is not declared, and matches no declared pattern, is `None`.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data" / "labels.yaml"


@cache
def tables() -> dict[str, Any]:
    """The parsed `labels.yaml`."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(DATA.read_text(encoding="utf-8"), loader)


def engine(label: str) -> str | None:
    """Engine id for a printed name, whatever its case."""
    return tables()["engines"].get(label.strip().lower())


def container(engine_id: str, label: str = "") -> str:
    """`gguf`, `mlx`, `exl` or `safetensors`: what this engine reads (a label that says so wins)."""
    data = tables()
    low = label.lower()
    if low.startswith("mlx"):
        return "mlx"
    if low.startswith("exl"):
        return "exl"
    for kind in ("gguf", "mlx", "exl"):
        if engine_id in data[f"{kind}_engines"]:
            return kind
    return "safetensors"


def usual_quant(engine_id: str) -> str:
    """The quantization that this engine loads when a row names none, or "" where it has no usual one."""
    return str(tables()["engine_quants"].get(engine_id, ""))


def splits_layers(engine_id: str) -> bool:
    """True when several devices hold whole layers in turn rather than a share of each tensor."""
    return engine_id in tables()["layer_split_engines"]


def eager(engine_id: str, notes: str) -> bool:
    """No captured graphs: by the engine's nature, or because the row says so."""
    if engine_id in tables()["eager_engines"]:
        return True
    if re.search(r"--?enforce[-_]eager|\beager\b", notes) and "gpu_util/max_len/eager" not in notes:
        return True
    # Qwen2.5 documentation: settings 1 to 3 of its vLLM runs are eager, the longer contexts are not.
    return bool(re.search(r"source note: [Ss]etting ?[123]\b", notes))


def backend(label: str, vendor: str, kind: str, engine_id: str) -> str:
    """Backend id; a blank label means the one that this vendor's devices are used with."""
    known = tables()["backends"].get(label.strip().lower())
    if known:
        return known
    if kind == "cpu":
        return "cpu"
    vendor = vendor.lower()
    if vendor == "amd":
        return "vulkan" if container(engine_id) == "gguf" else "rocm"
    return {"nvidia": "cuda", "apple": "metal", "intel": "vulkan"}.get(vendor, "other")


def kv_types(label: str, default: str = "f16") -> tuple[str, str]:
    """Types of keys and values for `q8_0/f16`, `q8_0 (MLA mode 3)`, `fp8_e4m3`, or nothing."""
    bare = re.sub(r"\(.*?\)", "", label).strip().lower()
    known = tables()["kv_types"]
    if bare in known:
        one = known[bare] or default
        return one, one
    parts = [known.get(part.strip(), part.strip()) or default for part in bare.split("/")]
    return (parts[0], parts[1]) if len(parts) == 2 else (parts[0], parts[0])


@lru_cache(maxsize=4096)
def year(date: str, source: str = "") -> float | None:
    """Decimal year of `2024`, `2024-05`, `2024-05-17`, `2025-2026` or `2023-11 onward`; a bare year is its
    middle."""
    found = re.match(r"(\d{4})(?:-(\d\d)(?!\d))?(?:-(\d\d))?", date.strip())
    if not found:
        return tables()["years"].get(source)
    whole, month, day = (int(part) if part else None for part in found.groups())
    if month is None:
        return float(whole or 0) + (1.0 if re.match(r"\d{4}-\d{4}", date.strip()) else 0.5)
    return float(whole or 0) + (month - 1) / 12 + ((day or 15) - 1) / 365


def undated(engine_label: str, source: str) -> float | None:
    """Decimal year of rows without a date: what the engine's printed name implies, else the source's."""
    data = tables()
    return data["engine_years"].get(engine_label.strip().lower()) or data["years"].get(source)


_SPECULATIVE = re.compile(
    r"SPECULATIVE DECODING on|speculative decoding with|--speculative|speculative[-_]config|spec[- ]decod|"
    r"\bEAGLE|draft[- ]model|--spec-|MTP speculative|ngram speculation",
    re.IGNORECASE,
)


def speculative(notes: str) -> bool:
    """The row used speculative decoding (and does not say that it was off)."""
    return bool(_SPECULATIVE.search(re.sub(r"(?i)\b(no|without) specul\w* decod\w*", "", notes)))


def toolchain(host: str, backend: str = "rocm") -> str:
    """What llama.cpp was built with, where a row says so and it changes the kernels: the AMDVLK driver,
    rocWMMA's attention, rocBLAS without hipBLASLt."""
    low = host.lower()
    if backend == "vulkan":
        return "amdvlk" if "amdvlk" in low else ""
    found = ["rocwmma"] if "rocwmma" in low else []
    if backend == "rocm" and re.search(r"hblt0|hipblaslt=(?:0|off)?(?![\w=])", low):
        found.append("rocblas")
    return "+".join(found)


def number(text: str) -> float | None:
    """A plain number, or None for blank or words."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if value == value and abs(value) != float("inf") else None


def count(text: str, default: int = 0) -> int:
    """A whole number of things; blank or words give `default`."""
    value = number(text)
    return default if value is None else round(value)


def flag(text: str) -> bool | None:
    """`1`, `True`, `on` are yes; `0`, `False`, `off` are no; anything else is not said."""
    low = text.strip().lower()
    if low in ("1", "1.0", "true", "on", "yes"):
        return True
    return False if low in ("0", "0.0", "false", "off", "no") else None


def noted(notes: str, name: str) -> int | None:
    """The whole number in `name=512`, `name: 512`, `--name 512` or `name 512`."""
    found = re.search(rf"(?<![\w-])-{{0,2}}{re.escape(name)}(?:=|: ?| )(\d+)", notes)
    return int(found.group(1)) if found else None
