"""This machine: what the probes read, and the catalogue's datasheet numbers for what they could not.

A probe's number always wins; a datasheet fills the rest only where a declared name or PCI id says which
device it is. A device nobody knows keeps what was read and has no rates. Nothing here raises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from typing import Any

from hwdb import probe_amd, probe_apple, probe_cpu, probe_intel, probe_nvidia, user_devices
from hwdb.catalogue import Catalogue, load
from hwdb.describe import title
from hwdb.device import Device, Machine
from hwdb.names import brand
from hwdb.system import Found, System

# Memory that drivers and ECC reserve: a 48 GiB card may show 6% less.
MEMORY_TOLERANCE = 0.08
IDENTITY = frozenset({"id", "name", "basis", "source", "source_date", "notes", "origins"})


def detect(system: System | None = None, catalogue: Catalogue | None = None) -> Machine:
    """The machine this runs on. Probes that fail leave a note and no device."""
    system = system or System()
    notes: list[str] = []
    known = catalogue or load()
    found: list[Found] = []
    for probe in (
        lambda: probe_nvidia.probe(system),
        lambda: probe_amd.probe(system, known),
        lambda: probe_intel.probe(system, known),
        lambda: probe_apple.probe(system, known),
    ):
        found += _guarded(probe, (), notes)
    host = _guarded(lambda: probe_cpu.probe(system), None, notes)
    measured, remarks = _guarded(user_devices.read_all, ((), ()), notes)
    notes += remarks

    seen = [
        _guarded(partial(_identified, one, known, host, notes), (one.device, one.free_bytes), notes)
        for one in found
    ]
    kept = _accelerators(seen, notes)
    devices = tuple(user_devices.apply(device, measured) for device, _ in kept)
    free = tuple(bytes_free for _, bytes_free in kept if bytes_free is not None)
    processor = None
    if host is not None:
        notes += host.notes
        processor = _guarded(lambda: _processor(host, known, notes), host.device, notes)
        processor = user_devices.apply(processor, measured)
    return Machine(
        name=title(devices, processor),
        devices=devices,
        host=processor,
        host_memory_bytes=host.memory_bytes if host else None,
        host_free_bytes=host.free_bytes if host else None,
        free_bytes=free if len(free) == len(devices) else (),
        operating_system=_operating_system(system),
        origin="detected",
        notes=tuple(dict.fromkeys(notes)),
    )


def _guarded(probe: Callable[[], Any], otherwise: Any, notes: list[str]) -> Any:
    """The probe's answer; on any error a note, for a broken driver must not stop a plan."""
    try:
        return probe()
    except Exception as error:  # drivers, tools and file systems fail in their own ways
        notes.append(
            f"a probe failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        )
        return otherwise


def _identified(
    found: Found, known: Catalogue, host: probe_cpu.Host | None, notes: list[str]
) -> tuple[Device, int | None]:
    """The device with the catalogue's numbers under those that were read, and its free bytes."""
    read = found.device
    if read.unified_memory and read.memory_bytes is None and host:
        read = replace(
            read, memory_bytes=host.memory_bytes, origins=(*read.origins, ("memory_bytes", "host memory"))
        )
    free = found.free_bytes
    if free is None and read.unified_memory and host:
        free = host.free_bytes
    entry = found.matched or _match(found, known)
    if entry is None:
        notes.append(f"{read.name} is not in the catalogue: its rates are unknown")
        return read, free
    merged = _merged(read, entry, keep_peer="no NVLink is up" not in found.notes)
    return (_with_host_bandwidth(merged, host.device) if host and merged.integrated else merged), free


def _with_host_bandwidth(device: Device, host: Device) -> Device:
    """An integrated GPU reads the host's memory: its speed, where the modules tell it, is that memory's."""
    if host.bandwidth_bytes_per_s is None:
        return device
    origins = dict(device.origins) | {"bandwidth_bytes_per_s": dict(host.origins)["bandwidth_bytes_per_s"]}
    return replace(
        device,
        bandwidth_bytes_per_s=host.bandwidth_bytes_per_s,
        memory_type=host.memory_type,
        origins=tuple(sorted(origins.items())),
    )


def _match(found: Found, known: Catalogue) -> Device | None:
    """The one catalogue device that bears a printed name and has this memory, or none."""
    read = found.device
    for name in found.names:
        candidates = [d for d in known.candidates(name) if d.laptop == read.laptop and d.kind != "cpu"]
        if read.memory_bytes and not read.unified_memory:
            candidates = [d for d in candidates if _near(read.memory_bytes, d.memory_bytes)]
        if len(candidates) == 1:
            return candidates[0]
    return None


def _near(read: int, nominal: int | None) -> bool:
    return nominal is not None and abs(read - nominal) <= MEMORY_TOLERANCE * nominal


def _merged(read: Device, entry: Device, keep_peer: bool = True) -> Device:
    """`entry` with every number that was read on top."""
    told = dict(read.origins)
    on_top = {name: getattr(read, name) for name in told if name != "boost_hz" or entry.boost_hz is None}
    origins = {name: origin for name, origin in entry.origins if name not in on_top}
    for field in fields(Device):
        if field.name in IDENTITY | set(on_top) | set(origins) or field.name in ("vendor", "kind", "market"):
            continue
        if getattr(entry, field.name) not in (None, "", (), False):
            origins[field.name] = f"catalogue: {entry.id}"
    origins |= {name: told[name] for name in on_top}
    merged = replace(
        entry,
        **on_top,
        unified_memory=read.unified_memory or entry.unified_memory,
        integrated=read.integrated or entry.integrated,
    )
    if not keep_peer and merged.peer is not None:
        merged = replace(merged, peer=None)
        origins["peer"] = "nvml: no NVLink is up"
    return replace(merged, origins=tuple(sorted(origins.items())))


def _accelerators(seen: list[tuple[Device, int | None]], notes: list[str]) -> list[tuple[Device, int | None]]:
    """Discrete and SoC devices; an integrated GPU counts only where it is the only one and is known."""
    own = [pair for pair in seen if not pair[0].integrated]
    for device, _ in seen:
        if not device.integrated:
            continue
        if own:
            notes.append(f"{device.name} is integrated: not counted beside the discrete GPU")
        elif device.fp32_flops is None and device.fp16_tensor_flops is None:
            notes.append(f"{device.name} is integrated and unknown: not counted, the processor is used")
    if own:
        return own
    return [p for p in seen if p[0].fp32_flops is not None or p[0].fp16_tensor_flops is not None]


def _processor(host: probe_cpu.Host, known: Catalogue, notes: list[str]) -> Device:
    """The processor with its catalogue entry, scaled to the sockets and cores that are here."""
    read = host.device
    entry = None
    for name in host.names:
        cores_of_chip = known.candidates(f"{brand(name)} cpu")
        matching = [d for d in cores_of_chip or known.candidates(name) if d.kind == "cpu"]
        entry = matching[0] if len(matching) == 1 else entry
    if entry is None:
        return read
    share = 1.0
    if read.cpu_cores and entry.cpu_cores:
        share = read.cpu_cores / entry.cpu_cores
    known_entry = entry
    whole = abs(share - host.sockets) < 0.01
    if not whole:
        notes.append(
            f"{read.cpu_cores} of {entry.cpu_cores} cores of {entry.name}: its share of the memory bandwidth "
            "is unknown"
        )
        entry = replace(entry, bandwidth_bytes_per_s=None, memory_channels=None)
    read = replace(read, origins=tuple(o for o in read.origins if o[0] not in ("fp32_flops", "cpu_isa")))
    merged = _merged(read, entry)
    scaled: dict[str, Any] = {"fp32_flops": "x cores", "bf16_tensor_flops": "x cores", "int8_ops": "x cores"}
    if whole and host.sockets > 1 and "bandwidth_bytes_per_s" not in dict(read.origins):
        scaled["bandwidth_bytes_per_s"] = "x sockets"
    values = {
        name: getattr(merged, name) * share
        for name in scaled
        if share != 1.0 and getattr(merged, name) is not None
    }
    origins = dict(merged.origins)
    for name in values:
        origins[name] = f"derived: {known_entry.id} x {share:.4g} ({read.cpu_cores} cores here)"
    return replace(
        merged,
        **values,
        name=known_entry.name,
        cpu_isa=host.device.cpu_isa or merged.cpu_isa,
        memory_bytes=host.memory_bytes,
        origins=tuple(sorted(origins.items())),
    )


def _operating_system(system: System) -> str:
    if system.platform == "linux" and "microsoft" in (system.read("/proc/version") or "").lower():
        return "wsl"
    return {"darwin": "macos", "win32": "windows"}.get(system.platform, system.platform)
