"""The devices this project knows, and the one way from a name to a device.

A name resolves only where it is declared: an id, a name, an alias or a label in `hwdb/data/*.yaml`, under
the spelling rule of `hwdb.names`. Close names are suggested in the error and never used.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from hwdb.device import Device, Link
from hwdb.errors import AmbiguousDevice, HardwareError, UnknownDevice
from hwdb.names import key, split_memory

COMPILED = Path(__file__).parent / "data" / "catalogue.json"
GIB = 1 << 30

# `memory_class`: "8 GB" is said of 8 GiB and of 8e9 bytes, 7% less.
CLASS_TOLERANCE = 0.08
# Turing, RDNA and later: the oldest generation that CUDA 13 and current drivers still build for.
CLASS_SINCE_YEAR = 2018
CLASS_MARKETS = frozenset({"consumer", "laptop", "workstation"})


@dataclass(frozen=True)
class Catalogue:
    """All devices, with the tables that lead to them. Build it with `load`."""

    devices: tuple[Device, ...]
    _by_id: dict[str, Device]
    _keys: dict[str, str]
    _labels: dict[str, str]
    _pci: dict[str, str]
    _shared: dict[str, dict[str, Any]]
    _aliases: dict[str, tuple[str, ...]]

    def get(self, device_id: str) -> Device:
        """The device with exactly this id; UnknownDevice otherwise."""
        try:
            return self._by_id[device_id]
        except KeyError:
            raise UnknownDevice(device_id, self._suggestions(device_id)) from None

    def resolve(self, name: str) -> Device:
        """The device that `name` denotes; UnknownDevice or AmbiguousDevice where none or several do.

        A memory size at the end chooses among devices or memory options: `rtx 4060 ti 16g`,
        `m1 max 64gb`; a size that no such device has is refused.
        """
        group = self._group(name)
        if group:
            return self._default(name, group)
        base, gib = split_memory(name)
        group = self._group(base) if gib else ()
        if not group or gib is None:
            raise UnknownDevice(name, self._suggestions(name))
        fitting = _with_memory(group, gib * GIB)
        if not fitting:
            sizes = sorted({size // GIB for device in group for size in _sizes(device)})
            have = ", ".join(str(size) for size in sizes) or "an unknown size of memory"
            raise HardwareError(f"`{base}` comes with {have} GiB, not {gib}")
        if len(fitting) > 1:
            default = (self._shared.get(key(base)) or {}).get("default")
            fitting = tuple(device for device in fitting if device.id == default) or fitting
        if len(fitting) > 1:
            raise AmbiguousDevice(name, tuple(device.id for device in fitting))
        return fitting[0]

    def candidates(self, name: str) -> tuple[Device, ...]:
        """Every device that bears `name`; empty where none does. For probes, which know more than a name."""
        found = self._group(name)
        if not found:
            base, gib = split_memory(name)
            found = _with_memory(self._group(base), gib * GIB) if gib else ()
        return found

    def by_pci(self, vendor: str, device: str, revision: str = "") -> Device | None:
        """The device with this PCI vendor, device and revision id (lower-case hex without 0x)."""
        found = self._pci.get(f"{vendor}:{device}:{revision}") or self._pci.get(f"{vendor}:{device}")
        return self._by_id[found] if found else None

    def aliases(self, device_id: str) -> tuple[str, ...]:
        """The declared aliases of a device."""
        return self._aliases.get(device_id, ())

    def names(self) -> tuple[str, ...]:
        """Ids first, then names and aliases, each once: what completion offers."""
        shared = (group["name"] for group in self._shared.values())
        told = (text for d in self.devices for text in (d.name, *self._aliases.get(d.id, ())))
        return tuple(dict.fromkeys((*self._by_id, *told, *shared)))

    def memory_class(self, memory_bytes: int) -> tuple[Device, ...]:
        """The graphics cards a person who owns "that much VRAM" may have, slowest memory first.

        Discrete GPUs sold to people (desktop, laptop, workstation), released since 2018, whose memory is
        within 8% of `memory_bytes`. Where people's cards have no such size, data-centre GPUs of that size;
        where no GPU has it, the cards of the next larger size, for a limit is a share of a larger card.
        Empty above the largest GPU.
        """
        recent = [
            device
            for device in self.devices
            if device.kind == "gpu"
            and not device.unified_memory
            and device.memory_bytes
            and device.bandwidth_bytes_per_s
            and (device.release_year or 0) >= CLASS_SINCE_YEAR
            and device.basis != "assumed"
        ]
        people = [device for device in recent if device.market in CLASS_MARKETS]
        for pool in (people, recent):
            same = [d for d in pool if _close(d.memory_bytes or 0, memory_bytes)]
            if same:
                return tuple(sorted(same, key=_speed))
        larger = min((d.memory_bytes or 0 for d in recent if (d.memory_bytes or 0) > memory_bytes), default=0)
        return self.memory_class(larger) if larger else ()

    def _group(self, name: str) -> tuple[Device, ...]:
        text = name.strip().lower()
        exact = self._labels.get(text) or (text if text in self._by_id else None)
        if exact:
            return (self._by_id[exact],)
        short = key(name)
        if short in self._shared:
            return tuple(self._by_id[i] for i in self._shared[short]["devices"])
        return (self._by_id[self._keys[short]],) if short in self._keys else ()

    def _default(self, name: str, group: tuple[Device, ...]) -> Device:
        if len(group) == 1:
            return group[0]
        default = self._shared[key(name)]["default"]
        if default is None:
            raise AmbiguousDevice(name, tuple(device.id for device in group))
        return self._by_id[default]

    def _suggestions(self, name: str) -> tuple[str, ...]:
        import difflib

        written = {key(text): text for text in self.names()}
        close = difflib.get_close_matches(key(name), list(written), n=4, cutoff=0.72)
        return tuple(dict.fromkeys(written[match] for match in close))


def _sizes(device: Device) -> tuple[int, ...]:
    return device.memory_options_bytes or ((device.memory_bytes,) if device.memory_bytes else ())


def _with_memory(group: tuple[Device, ...], memory_bytes: int) -> tuple[Device, ...]:
    """Those of `group` that come with this much memory, with that option chosen."""
    return tuple(
        replace(device, memory_bytes=size)
        for device in group
        for size in _sizes(device)
        if abs(size - memory_bytes) < GIB / 2
    )


def _close(a: int, b: int) -> bool:
    return abs(a - b) <= CLASS_TOLERANCE * b


def _speed(device: Device) -> tuple[float, str]:
    return (device.bandwidth_bytes_per_s or 0.0, device.id)


def _device(row: dict[str, Any]) -> Device:
    for name in ("pcie", "peer"):
        if name in row:
            row[name] = Link(*row[name])
    for name in ("memory_options_bytes", "cpu_isa"):
        if name in row:
            row[name] = tuple(row[name])
    if "origins" in row:
        row["origins"] = tuple((field, origin) for field, origin in row["origins"])
    return Device(**row)


@cache
def load() -> Catalogue:
    """The compiled catalogue, read once per process (no YAML, no pydantic)."""
    raw = json.loads(COMPILED.read_text(encoding="utf-8"))
    aliases = {row["id"]: tuple(row.pop("aliases", ())) for row in raw["devices"]}
    devices = tuple(_device(row) for row in raw["devices"])
    return Catalogue(
        devices=devices,
        _by_id={device.id: device for device in devices},
        _keys=raw["keys"],
        _labels=raw["labels"],
        _pci=raw["pci"],
        _shared=raw["shared"],
        _aliases=aliases,
    )
