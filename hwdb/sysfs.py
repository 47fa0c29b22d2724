"""What Linux says of a PCI graphics device, whoever made it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwdb import pcie
from hwdb.device import Device, Link
from hwdb.system import System, origins

# Transfer rate that sysfs prints -> generation (PCI-SIG base specifications).
GENERATIONS = {"2.5": 1, "5": 2, "5.0": 2, "8.0": 3, "8": 3, "16.0": 4, "32.0": 5, "64.0": 6}
PCI_IDS = ("/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids")


@dataclass(frozen=True)
class Card:
    """A directory `/sys/class/drm/cardN/device`, relative to the root of the system."""

    path: Path
    vendor: str
    device: str
    revision: str
    bus: str


def cards(system: System, vendor: str) -> list[Card]:
    """The graphics devices of a PCI vendor (`"1002"`), in card order."""
    found = []
    for folder in system.glob("/sys/class/drm/card[0-9]*/device"):
        if "-" in folder.parent.name:  # a connector, card0-DP-1
            continue
        path = folder.relative_to(system.root)
        if _hex(system, path / "vendor") != vendor:
            continue
        slot = re.search(r"^PCI_SLOT_NAME=(\S+)$", system.read(path / "uevent") or "", re.MULTILINE)
        revision = _hex(system, path / "revision").zfill(2)
        found.append(Card(path, vendor, _hex(system, path / "device"), revision, slot[1] if slot else ""))
    return found


def gpu(id: str, name: str, vendor: str, integrated: bool, values: dict[str, Any]) -> Device:
    """A device of which sysfs told `values` (None: it did not)."""
    return Device(
        id=id,
        name=name,
        vendor=vendor,
        kind="apu" if integrated else "gpu",
        unified_memory=integrated,
        integrated=integrated,
        basis="assumed",
        source="sysfs",
        origins=origins("sysfs", values),
        **{field: value for field, value in values.items() if value is not None},
    )


def link(system: System, card: Card) -> Link | None:
    """The PCIe link at its highest generation and the width in use (cards slow down at rest)."""
    speed = re.match(r"([\d.]+) GT/s", system.read(card.path / "max_link_speed") or "")
    width = system.number(card.path / "current_link_width") or system.number(card.path / "max_link_width")
    generation = GENERATIONS.get(speed[1]) if speed else None
    return pcie.of(generation, width) if generation and width and 0 < width <= 32 else None


def pci_name(system: System, card: Card) -> str:
    """The marketing name in the system's `pci.ids` (`DG2 [Arc A770]` -> `Arc A770`), or nothing."""
    for file in PCI_IDS:
        text = system.read(file)
        vendor = re.search(rf"^{card.vendor}  .*\n((?:[\t#].*\n)*)", text or "", re.MULTILINE)
        line = re.search(rf"^\t{card.device}  (.+)$", vendor[1], re.MULTILINE) if vendor else None
        if line:
            inside = re.search(r"\[(.+)\]", line[1])
            return inside[1] if inside else line[1]
    return ""


def _hex(system: System, path: Path) -> str:
    number = system.number(path)
    return f"{number:04x}" if number is not None and path.name != "revision" else f"{number or 0:x}"
