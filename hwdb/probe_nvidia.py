"""NVIDIA GPUs, through NVML; through `nvidia-smi` where its Python binding cannot load."""

from __future__ import annotations

import csv
from typing import Any

from hwdb import pcie
from hwdb.device import Device, Link
from hwdb.names import key
from hwdb.system import Found, System, origins

MIB = 1 << 20
QUERY = (
    "name,memory.total,memory.free,pci.bus_id,compute_cap,pcie.link.gen.max,pcie.link.width.max,"
    "pcie.link.width.current,clocks.max.sm,power.limit"
)
MAX_NVLINKS = 18


def probe(system: System) -> tuple[Found, ...]:
    """The NVIDIA GPUs of this machine, in index order."""
    library = system.nvml()
    if library is not None:
        try:
            return tuple(_from_nvml(library, i) for i in range(library.nvmlDeviceGetCount()))
        finally:
            _ask(library, "nvmlShutdown")
    table = system.run(["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"])
    return tuple(found for row in csv.reader((table or "").splitlines()) if (found := _from_smi(row)))


def _ask(library: Any, question: str, *arguments: Any) -> Any | None:
    """The answer, or None: NVML refuses what a device does not have, and old bindings lack questions."""
    try:
        return getattr(library, question)(*arguments)
    except Exception:  # NVMLError has a class per refusal
        return None


def _from_nvml(library: Any, index: int) -> Found:
    handle = library.nvmlDeviceGetHandleByIndex(index)
    name = _text(library.nvmlDeviceGetName(handle))
    memory = _ask(library, "nvmlDeviceGetMemoryInfo", handle)
    pci = _ask(library, "nvmlDeviceGetPciInfo", handle)
    capability = _ask(library, "nvmlDeviceGetCudaComputeCapability", handle)
    milliwatts = _ask(library, "nvmlDeviceGetEnforcedPowerLimit", handle)
    megahertz = _ask(library, "nvmlDeviceGetMaxClockInfo", handle, getattr(library, "NVML_CLOCK_SM", 1))
    return _found(
        "nvml",
        name,
        total=int(memory.total) if memory else None,
        free=int(memory.free) if memory else None,
        bus=_text(pci.busId) if pci else "",
        capability=f"{capability[0]}.{capability[1]}" if capability else "",
        link=_link(
            _ask(library, "nvmlDeviceGetMaxPcieLinkGeneration", handle),
            _ask(library, "nvmlDeviceGetCurrPcieLinkWidth", handle)
            or _ask(library, "nvmlDeviceGetMaxPcieLinkWidth", handle),
        ),
        clock_mhz=megahertz,
        power_w=milliwatts / 1000 if milliwatts else None,
        nvlinks=_nvlinks(library, handle),
    )


def _nvlinks(library: Any, handle: Any) -> int:
    """How many NVLinks are up: a card made for a bridge usually has none."""
    return sum(_ask(library, "nvmlDeviceGetNvLinkState", handle, link) == 1 for link in range(MAX_NVLINKS))


def _from_smi(row: list[str]) -> Found | None:
    cells = [cell.strip() for cell in row]
    if len(cells) != len(QUERY.split(",")) or not cells[0]:
        return None
    total, free = _number(cells[1]), _number(cells[2])
    generation, widest, width = _number(cells[5]), _number(cells[6]), _number(cells[7])
    return _found(
        "nvidia-smi",
        cells[0],
        total=int(total * MIB) if total else None,
        free=int(free * MIB) if free is not None else None,
        bus=cells[3],
        capability=cells[4] if _number(cells[4]) else "",
        link=_link(generation, width or widest),
        clock_mhz=_number(cells[8]),
        power_w=_number(cells[9]),
        nvlinks=None,
    )


def _found(
    origin: str,
    name: str,
    *,
    total: int | None,
    free: int | None,
    bus: str,
    capability: str,
    link: Link | None,
    clock_mhz: float | None,
    power_w: float | None,
    nvlinks: int | None,
) -> Found:
    """`nvlinks` is None where nobody could say: then the catalogue's peer link is not claimed."""
    values: dict[str, Any] = {
        "memory_bytes": total,
        "capability": "sm_" + capability.replace(".", "") if capability else None,
        "pcie": link,
        "boost_hz": clock_mhz * 1e6 if clock_mhz else None,
        "power_w": power_w or None,
    }
    device = Device(
        id=key(name) or "nvidia-gpu",
        name=name,
        vendor="NVIDIA",
        kind="gpu" if total else "soc",
        unified_memory=not total,  # GB10 and Jetson have no memory of their own, and NVML says so
        laptop="laptop" in name.lower() or "max-q" in name.lower().replace("max-q workstation", ""),
        basis="assumed",
        source=origin,
        origins=origins(origin, values),
        **{field: value for field, value in values.items() if value is not None},
    )
    notes = () if nvlinks else ("no NVLink is up",) if nvlinks == 0 else ("NVLink not readable",)
    return Found(device, names=(name,), free_bytes=free, bus=bus.lower(), notes=notes)


def _link(generation: float | None, width: float | None) -> Link | None:
    """The highest generation with the width in use: at rest cards lower the generation, not the width."""
    if not generation or not width or int(generation) not in pcie.LANE_BYTES_PER_S:
        return None
    return pcie.of(int(generation), int(width))


def _number(text: str) -> float | None:
    """`"24564"` -> 24564.0; None for `[N/A]` and `[Not Supported]`."""
    try:
        return float(text)
    except ValueError:
        return None


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
