"""Heads of attention, layer by layer: how many, how wide, and how much of them rotates."""

from __future__ import annotations

from dataclasses import dataclass

from modeldb.errors import BrokenFile
from runner.keys import Keys

MAX_WIDTH = 1 << 16


@dataclass(frozen=True, slots=True)
class Heads:
    """A layer's query heads: their number, the width of queries and keys, that of values, and rotated numbers."""

    n: int
    width: int
    value_width: int
    rotary: int

    @property
    def n_queries(self) -> int:
        """Numbers of all queries."""
        return self.n * self.width

    @property
    def n_mixed(self) -> int:
        """Numbers that attention gives."""
        return self.n * self.value_width


def numbers(keys: Keys, n_layers: int) -> tuple[int, ...]:
    """Query heads of each layer; a file has one number or a list. Raises BrokenFile."""
    found = keys.by_layer("attention.head_count", n_layers)
    if any(isinstance(n, bool) or not isinstance(n, int) or not 0 <= n < MAX_WIDTH for n in found):
        raise BrokenFile(
            f"{keys.name}: metadata key `{keys.architecture}.attention.head_count` is {found!s:.60}"
        )
    return found


def of_layers(
    keys: Keys, n: tuple[int, ...], windows: tuple[int, ...], usual: Heads, turned: int
) -> tuple[Heads, ...]:
    """Every layer's heads: of windowed layers the file may give widths of their own (`key_length_swa` ...). `usual`:
    those of the others; `turned`: numbers that windowed heads rotate unless the file says, 0 where the model does not
    rotate at all. Raises BrokenFile."""
    width = keys.count("attention.key_length_swa", usual.width)
    value = keys.count("attention.value_length_swa", usual.value_width)
    rotary = keys.count("rope.dimension_count_swa", min(turned, width)) if turned else 0
    if not (0 < width <= MAX_WIDTH and 0 < value <= MAX_WIDTH and rotary <= width and not rotary % 2) and any(
        windows
    ):
        raise BrokenFile(f"{keys.name}: windowed heads of width {width} and {value}, {rotary} rotated")
    return tuple(
        Heads(each, width, value, rotary)
        if window
        else Heads(each, usual.width, usual.value_width, usual.rotary)
        for each, window in zip(n, windows, strict=True)
    )
