"""From the words of a request to the machines it means: one, or a class of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from hwdb.device import Device, Machine
from planner import units
from planner.errors import NothingFits, UsageError
from planner.request import Request

#: `--ram` without `--cpu`: a desktop with two channels, from DDR4-3200 to DDR5-5600; this one lies between.
USUAL_HOST = "amd-ryzen-5-7600"
SPREAD = 5


@dataclass(frozen=True)
class Target:
    """What is planned for. `machines` holds one machine, or every machine of a class, slowest first;
    `central` is the index of the one whose speed stands for the class (the median)."""

    machines: tuple[Machine, ...]
    central: int
    label: str
    notes: tuple[str, ...] = ()

    @property
    def machine(self) -> Machine:
        return self.machines[self.central]

    @property
    def is_class(self) -> bool:
        return len(self.machines) > 1

    def spread(self) -> tuple[Machine, ...]:
        """The machines that stand for a class when it is priced: of each vendor the slowest and the fastest,
        and SPREAD more evenly between."""
        ends: dict[str, list[int]] = {}
        for i, machine in enumerate(self.machines):
            vendor = machine.devices[0].vendor if machine.devices else ""
            ends.setdefault(vendor, []).append(i)
        chosen = {i for found in ends.values() for i in (found[0], found[-1])} | {self.central}
        last = len(self.machines) - 1
        chosen |= {round(last * step / (SPREAD + 1)) for step in range(1, SPREAD + 1)}
        return tuple(self.machines[i] for i in sorted(chosen))


def resolve(request: Request) -> Target:
    """The machine of the request: described by flags, read from a file, or this one when no flag names any.

    Errors: UsageError for flags that exclude each other; UnknownDevice, AmbiguousDevice of hwdb.
    """
    if request.machine_file is not None:
        _alone(request)
        from hwdb.machine_file import read

        path = Path(request.machine_file)
        path.open("rb").close()  # what cannot be read is the environment's fault, a broken file the author's
        machine = read(path)
        return Target((machine,), 0, machine.name, machine.notes)
    if request.vram_bytes is not None and not request.gpus:
        return _class(request)
    if request.names_hardware:
        return _described(request)
    from hwdb.detect import detect

    machine = detect()
    if not machine.devices and not machine.host_memory_bytes:
        raise NothingFits(
            "this machine could not be read", "describe it: plan --gpu NAME --ram SIZE, or --vram SIZE"
        )
    return _priceable(machine)


def _priceable(machine: Machine) -> Target:
    """A detected machine whose CPU's bandwidth is not known is widened to what CPUs with as many cores
    have."""
    host = machine.host
    if host is None or host.bandwidth_bytes_per_s or (machine.devices and not machine.host_memory_bytes):
        return Target((machine,), 0, machine.name, machine.notes)
    shares = _bandwidth_per_core()
    cores = host.cpu_cores or 4
    note = (
        f"memory bandwidth of {host.name} not known: assumed {cores} cores times "
        f"{shares[0] / 1e9:.1f} to {shares[-1] / 1e9:.1f} GB/s, as 80% of known CPUs have; `plan measure` finds it"
    )
    hosts = [
        replace(
            host,
            bandwidth_bytes_per_s=cores * share,
            basis="assumed",
            source="bandwidth per core of known CPUs",
        )
        for share in shares
    ]
    if machine.devices:
        return Target((replace(machine, host=hosts[1]),), 0, machine.name, (*machine.notes, note))
    return Target(tuple(replace(machine, host=h) for h in hosts), 1, machine.name, (*machine.notes, note))


def _bandwidth_per_core() -> tuple[float, float, float]:
    """10th, 50th and 90th percentile over the CPUs of the catalogue, in bytes per second and core."""
    from hwdb import catalogue

    shares = sorted(
        d.bandwidth_bytes_per_s / d.cpu_cores
        for d in catalogue.load().devices
        if d.kind == "cpu" and d.bandwidth_bytes_per_s and d.cpu_cores
    )
    return tuple(shares[round(q * (len(shares) - 1))] for q in (0.1, 0.5, 0.9))  # type: ignore[return-value]


def _alone(request: Request) -> None:
    for flag, value in (
        ("--vram", request.vram_bytes),
        ("--gpu", request.gpus),
        ("--cpu", request.cpu),
        ("--ram", request.ram_bytes),
    ):
        if value:
            raise UsageError(
                f"--machine describes everything; {flag} contradicts it", f"remove {flag} or --machine"
            )


def _described(request: Request) -> Target:
    from hwdb.describe import machine as describe

    gpus = tuple(f"{count}x{name}" for count, name in request.gpus)  # "1x7900xtx": not 7900 of them
    cpu, assumed = request.cpu, None
    if cpu is None and request.ram_bytes and not _unified(tuple(name for _, name in request.gpus)):
        cpu, assumed = USUAL_HOST, f"--ram without --cpu: assumed a desktop like {USUAL_HOST}"
    machine = describe(
        gpus=gpus, memory_bytes=request.vram_bytes, host_memory_bytes=request.ram_bytes, cpu=cpu
    )
    if cpu and not gpus and not machine.host_memory_bytes:
        raise UsageError(f"how much memory does the machine with {cpu} have?", "add --ram SIZE")
    return Target((machine,), 0, machine.name, (*machine.notes, *((assumed,) if assumed else ())))


def _unified(names: tuple[str, ...]) -> bool:
    """Whether one of these chips shares its memory with its own CPU cores, so that no host need be assumed."""
    from hwdb import catalogue

    known = catalogue.load()
    return any(d.unified_memory for name in names for d in known.candidates(name))


def _class(request: Request) -> Target:
    from hwdb import catalogue

    size = request.vram_bytes or 0
    known = catalogue.load()
    found = known.memory_class(size)
    if not found:
        raise NothingFits(
            f"no single GPU has {units.format_bytes(size)}",
            "name several: plan --gpu 2xNAME, or a larger one: plan hw",
        )
    host, ram = _host(request)
    machines = tuple(_one(device, size, host, ram) for device in found)
    named = f"any GPU with {units.format_bytes(size)}"
    notes = [
        f"{named}: speeds span {len(found)} cards, {found[0].name} to {found[-1].name}; name yours with --gpu"
    ]
    if ram is None:
        notes.append("nothing is placed in host memory; say how much there is with --ram")
    elif request.cpu is None:
        notes.append(f"--ram without --cpu: assumed a desktop like {USUAL_HOST}")
    return Target(machines, len(machines) // 2, named, tuple(notes))


def _one(device: Device, size: int, host: Device | None, ram: int | None) -> Machine:
    limited = replace(device, memory_bytes=size)
    return Machine(device.name, (limited,), host, ram, origin="class")


def _host(request: Request) -> tuple[Device | None, int | None]:
    from hwdb import catalogue

    if request.ram_bytes is None and request.cpu is None:
        return None, None
    cpu = catalogue.load().resolve(request.cpu or USUAL_HOST)
    return replace(cpu, memory_bytes=request.ram_bytes), request.ram_bytes
