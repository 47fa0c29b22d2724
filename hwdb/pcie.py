"""PCI Express: what a link of a generation and width carries in one direction."""

from __future__ import annotations

import re

from hwdb.device import Link

# Payload bytes/s of one lane, one direction: transfer rate less the line code.
# PCI-SIG base specifications: 8b/10b for 1.x, 2.x; 128b/130b for 3.0 to 5.0; 242 of 256 B per flit for 6.0.
LANE_BYTES_PER_S = {
    1: 2.5e9 * 8 / 10 / 8,
    2: 5e9 * 8 / 10 / 8,
    3: 8e9 * 128 / 130 / 8,
    4: 16e9 * 128 / 130 / 8,
    5: 32e9 * 128 / 130 / 8,
    6: 64e9 * 242 / 256 / 8,
}

_TEXT = re.compile(r"(\d)(?:\.\d)? x(\d+)")


def link(text: str) -> Link:
    """`"4.0 x16"` -> its Link; ValueError for anything else."""
    match = _TEXT.fullmatch(text)
    if not match or int(match[1]) not in LANE_BYTES_PER_S or int(match[2]) not in (1, 2, 4, 8, 16):
        raise ValueError(f"`{text}` is no PCI Express link; write it like `4.0 x16`")
    return of(int(match[1]), int(match[2]))


def of(generation: int, lanes: int) -> Link:
    """The Link of a generation (1 to 6) and a number of lanes."""
    return Link(f"PCIe {generation}.0 x{lanes}", LANE_BYTES_PER_S[generation] * lanes)
