"""`plan predict` and `plan validate`: files of measurements."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from planner.errors import UnknownName

Rows = Annotated[Path, typer.Argument(help="a CSV file of measurements", metavar="FILE")]


def predict(
    file: Rows,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="where to write the rows with predictions", metavar="FILE")
    ],
) -> None:
    """Price every row of a file; rows that cannot be priced keep their place and say why."""
    from planner import predict as batch

    print(batch.predict_file(file, out, _progress()).text())


def validate(
    file: Rows,
    by: Annotated[
        str, typer.Option("--by", help="group errors by these, separated by commas", metavar="NAMES")
    ] = "engine,metric",
    worst: Annotated[
        int,
        typer.Option(
            "--worst", help="show so many of the largest errors", metavar="N", min=0, show_default=False
        ),
    ] = 0,
    format: Annotated[
        str, typer.Option("--format", "-f", help="text, markdown or json", metavar="FORMAT")
    ] = "text",
) -> None:
    """Compare predictions with what was measured: median, 90th percentile, bias, share inside the
    interval."""
    from planner import validate as validation

    reports = {"text": validation.text, "markdown": validation.markdown, "json": validation.to_json}
    if format not in reports:
        raise UnknownName(f"no format is called `{format[:20]}`", f"choose one of {', '.join(reports)}")
    names = tuple(name.strip() for name in by.split(",") if name.strip())
    print(reports[format](validation.validate_file(file, names, worst, _progress())), end="")


def _progress() -> Callable[[int, int], None] | None:
    """A line on stderr that counts, for a person only."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        print(f"\r{done:,} of {total:,} rows", end="\r", file=sys.stderr, flush=True)

    return show
