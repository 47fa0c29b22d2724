"""`plan check`: the CI gate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from planner.errors import UnknownName

FORMATS = ("text", "json", "markdown", "junit", "github")


def _print_schema(value: bool) -> None:
    if value:
        import json

        from planner import spec

        typer.echo(json.dumps(spec.schema(), indent=2, sort_keys=True))
        raise typer.Exit


def check(
    spec: Annotated[Path, typer.Argument(help="the spec, a YAML file", metavar="SPEC")],
    format: Annotated[
        str,
        typer.Option(
            "--format", "-f", help=", ".join(FORMATS), metavar="FORMAT", autocompletion=lambda: FORMATS
        ),
    ] = "text",
    calibrated: Annotated[
        bool,
        typer.Option(
            "--calibrated",
            help="use what you measured here (plan calibrate); the verdict is then this machine's",
        ),
    ] = False,
    schema: Annotated[
        bool,
        typer.Option(
            "--schema", help="print the JSON schema of a spec", callback=_print_schema, is_eager=True
        ),
    ] = False,
) -> None:
    """Hold a spec's promises against the predictions: exit 0 all hold, 1 violated, 2 spec error, 3
    undecided."""
    from planner import check as checks
    from planner import check_reports
    from planner import spec as specs

    if format not in FORMATS:
        raise UnknownName(f"no format is called `{format[:20]}`", f"choose one of {', '.join(FORMATS)}")
    mine = None
    if calibrated:
        from planner import calibrations

        mine = calibrations.told()
        if mine is not None:
            print(
                "note: held against what you measured here too; without --calibrated it is not",
                file=sys.stderr,
            )
    outcome = checks.check(specs.read(spec), mine)
    typer.echo(check_reports.FORMATS[format](outcome), nl=False)
    raise typer.Exit(outcome.exit_code)
