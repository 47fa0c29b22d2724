"""AMD GPUs, through the amdgpu driver's sysfs files and the KFD topology of ROCm."""

from __future__ import annotations

import re
from typing import Any

from hwdb.catalogue import Catalogue
from hwdb.sysfs import Card, cards, gpu, link
from hwdb.system import Found, System

# GPUs that are part of a processor, by their instruction set (LLVM, "User Guide for AMDGPU", column APU).
APU_TARGETS = frozenset(
    {"gfx902", "gfx909", "gfx90c", "gfx1013", "gfx1033", "gfx1035", "gfx1036", "gfx1037"}
    | {"gfx1103", "gfx1150", "gfx1151", "gfx1152", "gfx1153"}
)
NAMES = "/usr/share/libdrm/amdgpu.ids"


def probe(system: System, catalogue: Catalogue) -> tuple[Found, ...]:
    """The AMD GPUs of this machine, in card order."""
    topology = _topology(system)
    return tuple(_found(system, catalogue, card, topology) for card in cards(system, "1002"))


def _found(system: System, catalogue: Catalogue, card: Card, topology: dict[int, dict[str, int]]) -> Found:
    node = topology.get(_location(card.bus), {})
    target = _target(node.get("gfx_target_version", 0))
    matched = catalogue.by_pci(card.vendor, card.device, card.revision)
    integrated = target in APU_TARGETS or bool(matched and matched.integrated)
    vram, used = (system.number(card.path / f"mem_info_vram_{what}") for what in ("total", "used"))
    gtt, gtt_used = (system.number(card.path / f"mem_info_gtt_{what}") for what in ("total", "used"))
    total = vram
    if integrated and vram is not None:
        # An APU reaches its carve-out and what the driver lets it map of the host's memory.
        total, used = vram + (gtt or 0), (used or 0) + (gtt_used or 0)
    values: dict[str, Any] = {
        "memory_bytes": total,
        "capability": target or None,
        "pcie": None if integrated else link(system, card),
        "compute_units": _compute_units(node, target),
    }
    names = tuple(filter(None, (system.read(card.path / "product_name"), _marketing_name(system, card))))
    name = names[0] if names else (matched.name if matched else f"AMD GPU {card.device}:{card.revision}")
    device = gpu(f"amd-{card.device}-{card.revision}", name, "AMD", integrated, values)
    free = total - used if total is not None and used is not None else None
    return Found(device, names=names, matched=matched, free_bytes=free, bus=card.bus)


def _topology(system: System) -> dict[int, dict[str, int]]:
    """KFD nodes with a GPU, by PCI location (bus << 8 | device << 3 | function)."""
    nodes: dict[int, dict[str, int]] = {}
    for file in system.glob("/sys/class/kfd/kfd/topology/nodes/*/properties"):
        text = system.read(file.relative_to(system.root)) or ""
        node = {name: int(value) for name, value in re.findall(r"^(\w+) (\d+)$", text, re.MULTILINE)}
        if node.get("simd_count"):
            nodes[node.get("location_id", -1)] = node
    return nodes


def _location(bus: str) -> int:
    match = re.fullmatch(r"[0-9a-f]{4}:([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])", bus)
    return int(match[1], 16) << 8 | int(match[2], 16) << 3 | int(match[3]) if match else -2


def _target(version: int) -> str:
    """110000 -> gfx1100, 90010 -> gfx90a: major, minor and stepping, the last two as hex digits."""
    major, minor, stepping = version // 10000, version // 100 % 100, version % 100
    return f"gfx{major}{minor:x}{stepping:x}" if version else ""


def _compute_units(node: dict[str, int], target: str) -> int | None:
    simds = node.get("simd_count")
    per_unit = 2 if target.startswith(("gfx10", "gfx11", "gfx12")) else 4
    return simds // per_unit if simds and target else None


def _marketing_name(system: System, card: Card) -> str:
    """The name in libdrm's table `amdgpu.ids` (`744C,\\tC8,\\tAMD Radeon RX 7900 XTX`), or nothing."""
    text = system.read(NAMES) or ""
    row = re.search(rf"^{card.device},\s*{card.revision},\s*(.+)$", text, re.MULTILINE | re.IGNORECASE)
    return row[1].strip() if row else ""
