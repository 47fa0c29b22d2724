"""Where an answer goes: which format, which width, whether in colour."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.errors import UnknownName, UsageError
from planner.flags import Flags

if TYPE_CHECKING:
    from planner.answer import Answer

TOP, MAX_TOP = 8, 1000
FORMATS = ("table", "json", "markdown", "csv", "tsv")
MIN_WIDTH, PLAIN_WIDTH = 60, 80


@dataclass(frozen=True, slots=True)
class Output:
    """`format` is one of FORMATS; `width` in columns; `color` whether escape codes are written."""

    format: str
    width: int
    color: bool


def choose(flags: Flags) -> Output:
    """The output that the flags and the terminal ask for: a table for a person, tab-separated text for a
    pipe."""
    if flags.top is not None and not 1 <= flags.top <= MAX_TOP:
        raise UsageError(f"--top {flags.top} is out of range", f"use 1 to {MAX_TOP}, or --all")
    wanted = [name for name in ("json", "markdown", "csv") if getattr(flags, name)]
    if flags.format:
        wanted.append(flags.format.strip().lower())
    if len(set(wanted)) > 1:
        raise UsageError(
            f"one format at a time, not {' and '.join(dict.fromkeys(wanted))}", "keep one of them"
        )
    if wanted and wanted[0] not in FORMATS:
        raise UnknownName(f"no format is called `{wanted[0][:20]}`", f"choose one of {', '.join(FORMATS)}")
    person = sys.stdout.isatty() or _forced()
    name = wanted[0] if wanted else ("table" if person else "tsv")
    return Output(name, width(), colored(flags.color))


def usual_top(output: Output, n_rows: int) -> int:
    """How many rows are shown when nobody says: a person sees the first, a program gets all."""
    return TOP if output.format in ("table", "markdown") else n_rows


def width() -> int:
    """Columns of the terminal (or COLUMNS), at least MIN_WIDTH; PLAIN_WIDTH where there is none."""
    import shutil

    return max(MIN_WIDTH, shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns)


def _forced() -> bool:
    return bool(os.environ.get("FORCE_COLOR"))


def colored(when: str | None) -> bool:
    """`--color` first, then NO_COLOR, then FORCE_COLOR, then whether a terminal reads."""
    if when not in (None, "auto", "always", "never"):
        raise UsageError(f"--color `{when}` is not auto, always or never", "use --color never")
    if when in ("always", "never"):
        return when == "always"
    if os.environ.get("NO_COLOR"):
        return False
    return _forced() or sys.stdout.isatty()


def write(found: Answer, output: Output, shown: int, commands: bool) -> None:
    """Print the answer on stdout."""
    if output.format == "json":
        from planner import report_json

        sys.stdout.write(report_json.text(found, shown, commands))
    elif output.format == "markdown":
        from planner import report_markdown

        sys.stdout.write(report_markdown.text(found, shown, commands))
    elif output.format in ("csv", "tsv"):
        from planner import report_csv

        sys.stdout.write(report_csv.text(found, shown, commands, "," if output.format == "csv" else "\t"))
    else:
        from planner import report_table

        report_table.write(found, shown, commands, output)
