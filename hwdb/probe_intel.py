"""Intel GPUs, through the sysfs files of the i915 and xe drivers."""

from __future__ import annotations

from typing import Any

from hwdb.catalogue import Catalogue
from hwdb.sysfs import Card, cards, gpu, link, pci_name
from hwdb.system import Found, System


def probe(system: System, catalogue: Catalogue) -> tuple[Found, ...]:
    """The Intel GPUs of this machine, in card order."""
    return tuple(_found(system, catalogue, card) for card in cards(system, "8086"))


def _found(system: System, catalogue: Catalogue, card: Card) -> Found:
    matched = catalogue.by_pci(card.vendor, card.device, card.revision)
    total = _local_memory(system, card)
    # Integrated GPUs sit at 00:02.0; discrete ones are behind a bridge and have memory of their own.
    integrated = card.bus.endswith(":00:02.0") or bool(matched and matched.integrated)
    values: dict[str, Any] = {
        "memory_bytes": None if integrated else total,
        "pcie": None if integrated else link(system, card),
    }
    names = tuple(filter(None, (pci_name(system, card),)))
    name = names[0] if names else (matched.name if matched else f"Intel GPU {card.device}")
    device = gpu(f"intel-{card.device}", name, "Intel", integrated, values)
    free = None if integrated else system.number(card.path.parent / "lmem_avail_bytes")
    return Found(device, names=names, matched=matched, free_bytes=free, bus=card.bus)


def _local_memory(system: System, card: Card) -> int | None:
    """Bytes of memory on the card: i915 prints one number, xe one per tile."""
    whole = system.number(card.path.parent / "lmem_total_bytes")
    if whole:
        return whole
    tiles = system.glob(f"/{card.path}/tile*/physical_vram_size_bytes")
    sizes = [system.number(tile.relative_to(system.root)) or 0 for tile in tiles]
    return sum(sizes) or None
