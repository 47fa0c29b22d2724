"""From what a person says of a machine to a Machine: `--gpu 2x3090`, `--ram 64G`, `--cpu "epyc 9654"`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from hwdb.catalogue import Catalogue, load
from hwdb.device import Device, Machine
from hwdb.errors import AmbiguousDevice, HardwareError
from hwdb.names import brand

GIB = 1 << 30
MAX_COUNT = 1024

_COUNTED = re.compile(r"\s*(\d+)\s*[x×*]\s*(\S.*)")


def machine(
    gpus: str | Iterable[str] = (),
    *,
    cpu: str | None = None,
    memory_bytes: int | None = None,
    host_memory_bytes: int | None = None,
    operating_system: str = "",
    catalogue: Catalogue | None = None,
) -> Machine:
    """The described machine; HardwareError where the description denotes no machine.

    `gpus` holds names with counts (`2x3090`, `rtx 4060 ti 16g`), one per item or separated by commas.
    `memory_bytes` is the memory of each of them and overrides the datasheet; it also chooses among
    devices that share a name. A chip with unified memory has the host's memory: say it once, either way.
    Without a GPU the machine is its processor (`cpu` may be left out: an unnamed one with unknown speed).
    """
    known = catalogue or load()
    _positive("memory", memory_bytes)
    _positive("host memory", host_memory_bytes)
    texts = [gpus] if isinstance(gpus, str) else list(gpus)
    named = [part.strip() for text in texts for part in text.split(",") if part.strip()]
    devices: list[Device] = []
    for text in named:
        count, name = counted(text)
        device = _accelerator(known, name, memory_bytes, host_memory_bytes)
        devices += [device] * count
    if not devices and cpu is None and host_memory_bytes is None:
        raise HardwareError("no machine described: name a GPU, a processor or the memory of the host")
    unified = next((d for d in devices if d.unified_memory), None)
    if unified and host_memory_bytes is None:
        host_memory_bytes = unified.memory_bytes
    host = _host(known, cpu, host_memory_bytes, unified)
    return Machine(
        name=title(devices, host),
        devices=tuple(devices),
        host=host,
        host_memory_bytes=host_memory_bytes,
        operating_system=operating_system,
        origin="described",
    )


def counted(text: str) -> tuple[int, str]:
    """`"2x3090"` -> `(2, "3090")`."""
    # 7900xtx is a name, not 7900 of them
    match = None if load().candidates(text) else _COUNTED.fullmatch(text)
    count, name = (int(match[1]), match[2]) if match else (1, text)
    if not 1 <= count <= MAX_COUNT:
        raise HardwareError(f"`{text}`: a machine has 1 to {MAX_COUNT} devices of a kind")
    return count, name


def processor(name: str, catalogue: Catalogue | None = None) -> Device:
    """The processor called `name`; for a chip with a GPU, its CPU cores."""
    known = catalogue or load()
    cores = _cpus(known.candidates(f"{brand(name)} cpu")) or _cpus(known.candidates(name))
    if len(cores) == 1:
        return cores[0]
    device = known.resolve(name)
    if device.kind != "cpu":
        raise HardwareError(
            f"`{name}` is {device.name}, not a processor: name it as a GPU (`--gpu {device.id}`)"
        )
    return device


def cpu_cores_of(soc: Device, catalogue: Catalogue | None = None) -> Device | None:
    """The CPU cores of a chip with a GPU, with the same memory, where the catalogue describes them."""
    chip = re.sub(r"\s*\(.*\)$", "", soc.name)
    inside = re.search(r"\((.*)\)$", soc.name)
    known = catalogue or load()
    for name in (chip, inside[1] if inside else chip):
        cores = _cpus(known.candidates(f"{name} cpu"))
        if len(cores) == 1:
            return replace(cores[0], memory_bytes=soc.memory_bytes)
    return None


def with_memory(device: Device, memory_bytes: int, origin: str) -> Device:
    """`device` with another size of memory, and a word on where that comes from."""
    if device.memory_bytes == memory_bytes:
        return device
    origins = tuple(o for o in device.origins if o[0] != "memory_bytes")
    return replace(device, memory_bytes=memory_bytes, origins=(*origins, ("memory_bytes", origin)))


def _accelerator(known: Catalogue, name: str, memory: int | None, host_memory: int | None) -> Device:
    try:
        device = known.resolve(name)
    except AmbiguousDevice:
        fitting = [d for d in known.candidates(name) if memory and _comes_with(d, memory)]
        if len(fitting) != 1:
            raise
        device = fitting[0]
    if device.kind == "cpu":
        raise HardwareError(
            f"`{name}` is {device.name}, a processor: name it as the CPU (`--cpu {device.id}`)"
        )
    size = memory or (host_memory if device.unified_memory else None)
    if size:
        return with_memory(device, size, "user")
    if device.memory_bytes is None:
        sizes = ", ".join(str(size // GIB) for size in device.memory_options_bytes)
        come = f"comes with {sizes} GiB" if sizes else "has the memory of its host"
        example = device.memory_options_bytes[-1] // GIB if sizes else 32
        raise HardwareError(
            f"{device.name} {come}: say how much (`{name} {example}gb`, or the memory of the host)"
        )
    return device


def _comes_with(device: Device, memory_bytes: int) -> bool:
    sizes = device.memory_options_bytes or (device.memory_bytes or 0,)
    return any(abs(size - memory_bytes) < 0.08 * memory_bytes for size in sizes)


def _host(known: Catalogue, cpu: str | None, memory: int | None, unified: Device | None) -> Device | None:
    if cpu is not None:
        return replace(processor(cpu, known), memory_bytes=memory)
    if unified is not None:
        return cpu_cores_of(unified, known)
    if memory is None:
        return None
    return Device(
        id="cpu", name="CPU", vendor="", kind="cpu", memory_bytes=memory, basis="assumed", source="user"
    )


def _cpus(found: tuple[Device, ...]) -> tuple[Device, ...]:
    return tuple(device for device in found if device.kind == "cpu")


def title(devices: Sequence[Device], host: Device | None) -> str:
    """What a machine is called: its devices, counted, or its processor."""
    told = [f"{n}x {name}" if n > 1 else name for name, n in Counter(d.name for d in devices).items()]
    return ", ".join(told) or (host.name if host else "this machine")


def _positive(what: str, value: int | None) -> None:
    if value is not None and value <= 0:
        raise HardwareError(f"the {what} of a machine is a positive number of bytes, not {value}")
