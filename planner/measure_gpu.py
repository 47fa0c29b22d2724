"""`plan measure --device cuda`: what a GPU reaches under PyTorch, beside its datasheet."""

from __future__ import annotations

import datetime
import importlib.util
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from planner import units
from planner.errors import EnvironmentFailed

if TYPE_CHECKING:
    from pathlib import Path

    from hwdb.device import Device, Machine
    from hwdb.user_devices import Measurement
    from runner.torch_measure import GpuSurvey

#: Where a datasheet's Device has the rate of a type.
PEAKS = {
    "float32": "fp32_flops",
    "float16": "fp16_tensor_flops",
    "bfloat16": "bf16_tensor_flops",
    "float8": "fp8_flops",
}


def need_torch() -> None:
    """Raises EnvironmentFailed when PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise EnvironmentFailed(
            "GPUs are measured through PyTorch, which is not installed", 'pip install "llm-plan[torch]"'
        )


def survey(device: str, quick: bool = False, **sizes: Any) -> GpuSurvey:
    """Measure a device by its PyTorch name (cuda, cuda:1, mps, cpu). Raises EnvironmentFailed where there is none."""
    need_torch()
    from runner import torch_measure
    from runner.errors import RunnerError

    try:
        return torch_measure.survey(device, quick, **sizes)
    except RunnerError as error:
        raise EnvironmentFailed(str(error), "plan hw --detect shows what is here") from None


def device_of(found: GpuSurvey, machine: Machine) -> Device:
    """The detected device of this name, with what was measured where nothing else is known of it."""
    from hwdb import user_devices
    from hwdb.device import Device

    named = next((d for d in machine.devices if d.name == found.name), None)
    if named is None and len(machine.devices) == 1 and found.backend != "cpu":
        named = machine.devices[0]
    if named is None:
        named = Device(found.name, found.name, "", "gpu", memory_bytes=found.memory_bytes,
                       capability=found.capability, basis="assumed")  # fmt: skip
    return named if is_known(named) else user_devices.apply(named, (measurement(found, named),))


def is_known(device: Device) -> bool:
    """Whether a datasheet gives its rates. Predictions of GPUs are calibrated on datasheets: rates as measured,
    which lie below them, would count the difference twice."""
    return device.bandwidth_bytes_per_s is not None and device.basis != "measured"


def measurement(found: GpuSurvey, device: Device) -> Measurement:
    """The survey as hwdb keeps it."""
    from hwdb.user_devices import Measurement

    remarks = found.conditions.remarks()
    return Measurement(
        name=device.name,
        kind=device.kind,
        date=datetime.date.today().isoformat(),
        method=f"plan measure: PyTorch on {found.backend}; sum {found.sum_bytes_per_s / 1e9:.0f}, copy "
        f"{found.copy_bytes_per_s / 1e9:.0f} GB/s"
        + (f"; contaminated: {'; '.join(remarks)}" if remarks else ""),
        bandwidth_bytes_per_s=found.read_bytes_per_s,
        fp32_flops=found.best_flops("float32"),
        fp16_tensor_flops=found.best_flops("float16"),
        bf16_tensor_flops=found.best_flops("bfloat16"),
    )


def keep(found: GpuSurvey, machine: Machine) -> Path | None:
    """Write the survey to the user's configuration folder where the catalogue knows no rate of the device; None
    where it does."""
    from hwdb import user_devices

    named = next((d for d in machine.devices if d.name == found.name), None)
    if named is None or is_known(named):
        return None
    return user_devices.write(measurement(found, named))


def forget(machine: Machine) -> bool:
    """Remove what was measured of this machine's GPUs; False when there was nothing."""
    from hwdb import user_devices
    from hwdb.user_devices import Measurement

    removed = [user_devices.remove(Measurement(d.name, d.kind, "", "")) for d in machine.devices]
    return any(removed)


def with_device(machine: Machine, found: GpuSurvey) -> Machine:
    """A machine with this one device."""
    return replace(machine, devices=(device_of(found, machine),), free_bytes=())


def document(found: GpuSurvey) -> dict[str, Any]:
    """As JSON values."""
    return {
        **asdict(found),
        "bandwidth_bytes_per_s": found.read_bytes_per_s,
        "remarks": list(found.conditions.remarks()),
    }


def text(found: GpuSurvey, datasheet: Device | None = None) -> str:
    """The survey as a table of a few lines, with shares of the datasheet where one is known."""

    def line(label: str, value: float, unit: str, scale: float, peak: float | None = None) -> str:
        share = f"  {value / peak:.0%} of the datasheet" if peak else ""
        return f"  {label:24s} {value / scale:9.1f} {unit}{share}"

    peak = datasheet if datasheet is not None and is_known(datasheet) else None
    lines = [f"{found.name} ({found.backend}, {units.format_bytes(found.memory_bytes)})"]
    bandwidth = peak.bandwidth_bytes_per_s if peak else None
    lines.append(line("read (sum)", found.sum_bytes_per_s, "GB/s", 1e9, bandwidth))
    lines.append(line("read and write (copy)", found.copy_bytes_per_s, "GB/s", 1e9, bandwidth))
    for p in found.products:
        rate = getattr(peak, PEAKS[p.dtype]) if peak else None
        lines.append(line(f"{p.dtype}, {p.width}", p.median_flops, "TFLOP/s", 1e12, rate))
    if found.host_to_device_bytes_per_s and found.device_to_host_bytes_per_s:
        lines.append(line("host to device", found.host_to_device_bytes_per_s, "GB/s", 1e9))
        lines.append(line("device to host", found.device_to_host_bytes_per_s, "GB/s", 1e9))
    graph = f", {found.graph_launch_s * 1e6:.1f} us in a graph" if found.graph_launch_s else ""
    lines.append(
        f"  a launch {found.launch_s * 1e6:.1f} us{graph}, a round trip {found.round_trip_s * 1e6:.0f} us"
    )
    return "\n".join(lines) + "\n"
