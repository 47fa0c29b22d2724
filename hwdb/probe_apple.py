"""Macs, through `system_profiler` and `sysctl`: Apple silicon, and the discrete GPUs of Intel Macs."""

from __future__ import annotations

import json
import re
from typing import Any

from hwdb.catalogue import Catalogue
from hwdb.device import Device
from hwdb.system import Found, System, origins

PROFILE = ["system_profiler", "SPDisplaysDataType", "SPHardwareDataType", "-json"]
UNITS = {"MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}


def probe(system: System, catalogue: Catalogue) -> tuple[Found, ...]:
    """The GPUs of this Mac; nothing on other systems."""
    if system.platform != "darwin":
        return ()
    try:
        profile = json.loads(system.run(PROFILE) or "{}")
    except json.JSONDecodeError:
        return ()
    hardware = (profile.get("SPHardwareDataType") or [{}])[0]
    memory = _sysctl_number(system, "hw.memsize") or _bytes(hardware.get("physical_memory", ""))
    displays = profile.get("SPDisplaysDataType") or []
    return tuple(_found(system, catalogue, display, memory) for display in displays)


def _found(system: System, catalogue: Catalogue, display: dict[str, Any], memory: int | None) -> Found:
    name = str(display.get("sppci_model") or display.get("_name") or "GPU")
    cores = re.match(r"\d+", str(display.get("sppci_cores", "")))
    silicon = name.startswith("Apple ")
    own = None if silicon else _bytes(str(display.get("spdisplays_vram", "")))
    shared = silicon or (own is None)
    values: dict[str, Any] = {
        "memory_bytes": memory if shared else own,
        "compute_units": int(cores[0]) if cores else None,
    }
    matching = [d for d in catalogue.candidates(name) if d.compute_units == values["compute_units"]]
    device = Device(
        id=re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"),
        name=name,
        vendor="Apple" if silicon else "",
        kind="soc" if silicon else ("apu" if shared else "gpu"),
        capability="metal" if silicon else "",
        unified_memory=shared,
        integrated=shared and not silicon,
        basis="assumed",
        source="system_profiler",
        origins=origins("system_profiler", values),
        **{field: value for field, value in values.items() if value is not None},
    )
    matched = matching[0] if silicon and len(matching) == 1 else None
    return Found(device, names=() if silicon else (name,), matched=matched, notes=_wired(system, silicon))


def _wired(system: System, silicon: bool) -> tuple[str, ...]:
    """What the user let the GPU wire, where it was changed from the default (0)."""
    limit = _sysctl_number(system, "iogpu.wired_limit_mb") if silicon else None
    return (f"iogpu.wired_limit_mb={limit}",) if limit else ()


def _sysctl_number(system: System, name: str) -> int | None:
    text = (system.run(["sysctl", "-n", name]) or "").strip()
    return int(text) if text.isdigit() else None


def _bytes(text: str) -> int | None:
    """`"64 GB"` -> bytes; Apple's GB of memory are GiB."""
    match = re.fullmatch(r"(\d+) (MB|GB|TB)", text.strip())
    return int(match[1]) * UNITS[match[2]] if match else None
