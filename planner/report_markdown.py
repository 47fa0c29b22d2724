"""An answer as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner import columns

if TYPE_CHECKING:
    from planner.answer import Answer


def text(found: Answer, shown: int, commands: bool) -> str:
    """A table, the near misses, and the command of the first row (of all with `commands`)."""
    lines = [f"**{columns.title(found)}**", ""]
    if found.rows:
        lines += [_line(columns.HEADERS), _line(["---"] * len(columns.HEADERS))]
        for rank, row in enumerate(found.rows[:shown], 1):
            lines.append(_line(columns.cells(found, rank, row)))
        for row in found.rows[: shown if commands else 1]:
            lines += ["", f"`{columns.name(row)}`:", "", "```sh", columns.command_line(found, row), "```"]
    else:
        lines.append("Nothing holds the limits.")
    if found.near:
        lines += ["", "Near misses:", ""]
        lines += [
            f"- {miss.model.id} {miss.scheme.id}: {miss.lacks}; {', or '.join(miss.fixes)}"
            for miss in found.near
        ]
    return "\n".join(lines) + "\n"


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
