"""An answer for a person at a terminal: it must read well at 80 columns and use 200."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from planner import columns, units

if TYPE_CHECKING:
    from planner.answer import Answer, Row
    from planner.terminal import Output

WIDE = 130  # columns from which engine, cache and reason stand in the row itself
BAR, NARROW_BAR = 10, 6
NAME = 10  # of a name at the least; bars give way before it


def write(found: Answer, shown: int, commands: bool, output: Output) -> None:
    """Print the title, the rows, the near misses and what to do next."""
    console = Console(
        width=output.width, force_terminal=output.color, no_color=not output.color, highlight=False,
        color_system="standard" if output.color else None,
    )  # fmt: skip
    console.print(Text(columns.title(found), style="bold"), overflow="fold")
    rows = found.rows[:shown]
    if rows:
        console.print()
        _rows(console, found, rows, wide=output.width >= WIDE)
        _quality_line(console, rows)
    if len(found.rows) > shown:
        console.print(Text(f"{len(found.rows) - shown} more with --all", style="dim"))
    if found.near:
        _near(console, found)
    for rank, row in enumerate(rows if commands else rows[:1], 1):
        console.print()
        console.print(Text(f"run {rank}: {columns.name(row)}", style="bold"))
        for line in columns.command_lines(found, row):
            print("  " + line)


def bar(share: float, length: int = BAR) -> str:
    """`███████▌░░`: how full, in eighths of a column."""
    eighths = round(min(max(share, 0.0), 1.0) * length * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + ("▏▎▍▌▋▊▉"[rest - 1] if rest else "")).ljust(length, "░")


def _rows(console: Console, found: Answer, rows: tuple[Row, ...], wide: bool) -> None:
    sizes = {units.format_bytes(row.capacity_bytes) for row in rows}
    of = f"of {sizes.pop()}" if len(sizes) == 1 and wide else ""
    middle = ["engine", "cache"] if wide else []
    head = ["#", "model", "quant", *middle, "memory", of, "tok/s", "first", "quality" if wide else "q"]
    body = [_cells(rank, row, wide) for rank, row in enumerate(rows, 1)]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    if not wide and _room(console, widths) < NAME:
        head[-5:-3] = ["", "memory"]
        body = [[*line[:-5], "", *line[-4:]] for line in body]
        widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    widths[1] = min(max(widths[1], 12), max(1, _room(console, widths)))
    why = console.width - sum(widths) - 2 * len(widths)
    right = {0, len(head) - 4, len(head) - 3, len(head) - 2, *([] if wide else [len(head) - 1])}
    ends = [*widths, *([3] if wide else [])]
    console.print(_line(head + ["why"] * wide, ends, right, "dim"), no_wrap=True, overflow="crop")
    for row, cells in zip(rows, body, strict=True):
        line = _line(_cut(cells, widths), widths, right, "")
        line.stylize("yellow" if row.tight else "green", *_span(widths, len(head) - 5))
        line.stylize("bold", *_span(widths, 1))
        words = "; ".join(row.reasons)
        if not wide:
            console.print(line, no_wrap=True, overflow="crop")
            rate = units.format_range(row.tokens_per_s.low, row.tokens_per_s.high)
            spread = f"{rate} tok/s, quality {row.quality.low:.0f}-{row.quality.high:.0f}"
            _wrapped(console, f"{row.engine}, {row.kv_type} cache, {spread}; {words}", "   ", "dim")
            continue
        for i, part in enumerate(textwrap.wrap(words, max(20, why)) or [""]):
            start = line if i == 0 else Text("")
            start.pad_right(sum(widths) + 2 * len(widths) - len(start.plain))
            console.print(start.append(part, "dim"), no_wrap=True, overflow="crop")


def _cells(rank: int, row: Row, wide: bool) -> list[str]:
    share = row.device_bytes / row.capacity_bytes if row.capacity_bytes else 0.0
    return [
        str(rank), columns.name(row), columns.scheme(row), *([row.engine, row.kv_type] if wide else []),
        bar(share, BAR if wide else NARROW_BAR), units.format_bytes(row.device_bytes),
        columns.speed(row) if wide else columns.speed(row).split(" ")[0], columns.first_token(row),
        columns.quality(row) if wide else columns.quality(row).split(" ")[0],
    ]  # fmt: skip


def _line(cells: list[str], widths: list[int], right: set[int], style: str) -> Text:
    parts = [
        c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
    ]
    return Text("  ".join(parts).rstrip(), style=style)


def _cut(cells: list[str], widths: list[int]) -> list[str]:
    """Only the name may be cut, and says so; the full name stands in every other format."""
    return [
        c if len(c) <= w or i != 1 else c[: w - 1] + "…"
        for i, (c, w) in enumerate(zip(cells, widths, strict=True))
    ]


def _room(console: Console, widths: list[int]) -> int:
    """Columns that the others leave for the name."""
    return console.width - (sum(widths) - widths[1]) - 2 * (len(widths) - 1)


def _span(widths: list[int], column: int) -> tuple[int, int]:
    start = sum(widths[:column]) + 2 * column
    return start, start + widths[column]


def _quality_line(console: Console, rows: tuple[Row, ...]) -> None:
    """What the numbers are, once."""
    words = "tok/s of one user and quality (q) in percent, with 90% intervals"
    if any(row.quality.origin == "assumed" for row in rows):
        words += "; ~ quality from size, date and relatives: no published scores"
    console.print()
    _wrapped(console, words, "", "dim")


def _near(console: Console, found: Answer) -> None:
    console.print()
    console.print(Text("nearly", style="bold"))
    for miss in found.near:
        name = (miss.model.hf_id or miss.model.id).rsplit("/", 1)[-1]
        _wrapped(console, f"{name} {miss.scheme.id}: {miss.lacks}; {', or '.join(miss.fixes)}", "  ", "")


def _wrapped(console: Console, words: str, indent: str, style: str) -> None:
    for line in textwrap.wrap(words, console.width - 2, initial_indent=indent, subsequent_indent=indent):
        console.print(Text(line, style=style), no_wrap=True)
