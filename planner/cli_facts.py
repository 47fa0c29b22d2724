"""`plan show`, `plan models`, `plan hw`, `plan tasks`: what is known."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from planner import completion

Json = Annotated[bool, typer.Option("--json", help="as JSON, in base SI units")]


def show(
    name: Annotated[
        str,
        typer.Argument(
            help="a model's name, or a GGUF file, config.json or directory",
            metavar="MODEL",
            autocompletion=completion.models,
        ),
    ],
    json_: Json = False,
) -> None:
    """Layers, parameters, caches, bytes per quantization and evidence of one model."""
    from planner import show as shows

    found = shows.describe(name)
    print(json.dumps(shows.document(found), sort_keys=True, indent=2) if json_ else shows.text(found))


def models(
    task: Annotated[
        str | None,
        typer.Option(
            "--task", "-t", help="best first for this task", metavar="TASK", autocompletion=completion.tasks
        ),
    ] = None,
    max_size: Annotated[
        str | None, typer.Option("--max-size", help="most parameters, 10B", metavar="SIZE")
    ] = None,
    license: Annotated[
        list[str] | None,
        typer.Option("--license", help="`permissive`, or a licence; repeatable", metavar="LICENCE"),
    ] = None,
    json_: Json = False,
) -> None:
    """List the models, by family, or best first for a task."""
    from planner import models_view

    rows = models_view.rows(task, max_size, tuple(license or ()))
    print(
        json.dumps(rows, sort_keys=True, indent=2) if json_ else models_view.text(rows, sys.stdout.isatty())
    )


def hw(
    name: Annotated[
        str | None, typer.Argument(help="a device", metavar="NAME", autocompletion=completion.devices)
    ] = None,
    detect: Annotated[bool, typer.Option("--detect", help="read this machine")] = False,
    json_: Json = False,
) -> None:
    """List the devices, show one with the source of each number, or detect this machine."""
    from planner import hardware_view
    from planner.errors import UsageError

    if name and detect:
        raise UsageError("--detect reads this machine and takes no name", "plan hw --detect")
    if detect:
        found = hardware_view.detected()
        print(json.dumps(found, sort_keys=True, indent=2) if json_ else hardware_view.machine_text(found))
    elif name:
        device = hardware_view.device(name)
        print(json.dumps(device, sort_keys=True, indent=2) if json_ else hardware_view.device_text(device))
    else:
        rows = hardware_view.rows()
        print(
            json.dumps(rows, sort_keys=True, indent=2)
            if json_
            else hardware_view.text(rows, sys.stdout.isatty())
        )


def tasks(json_: Json = False) -> None:
    """List the tasks with their lengths and limits."""
    from dataclasses import asdict

    from planner import columns, units
    from planner import tasks as known

    rows = list(known.load().values())
    if json_:
        print(json.dumps([asdict(task) for task in rows], sort_keys=True, indent=2))
        return
    table = [("task", "context", "prompt", "output", "tok/s", "first token", "what")]
    for task in rows:
        table.append(
            (
                task.name, units.format_tokens(task.context), str(task.prompt), str(task.output),
                f">= {units.format_rate(task.min_tps)}", f"<= {units.format_seconds(task.max_ttft_s)}",
                task.summary,
            )
        )  # fmt: skip
    print(columns.aligned(table, sys.stdout.isatty()))
