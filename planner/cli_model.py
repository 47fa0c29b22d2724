"""`plan why` and `plan command`: one model, in full."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from typing import Annotated

import typer

from planner import completion
from planner.flags import Flags, with_flags

Model = Annotated[
    str,
    typer.Argument(
        help="a model's name, or a GGUF file, config.json or directory",
        metavar="MODEL",
        autocompletion=completion.models,
    ),
]

# flags that choose among models or rows, where there is one
CHOOSING = ("license", "max_size", "top", "commands", "format", "markdown", "csv", "color")


@partial(with_flags, hides=(*CHOOSING, "all"))
def why(model: Model, *, flags: Flags) -> None:
    """The itemised bill of one model on the machine, its roofline, its sources."""
    from planner import answer, calibrations
    from planner import request as requests
    from planner import why as account

    as_json = _as_json(flags)
    request = requests.build(_with_model(flags, model))
    found = account.why(calibrations.into(request, flags.no_calibration))
    for note in (*found.target.notes, *answer.overlong(request, [found.row.model])):
        print(f"note: {note}", file=sys.stderr)
    if as_json:
        print(json.dumps(account.document(found), sort_keys=True, indent=2, allow_nan=False))
    else:
        print(account.text(found), end="")
    if not found.holds:
        from planner.errors import NothingFits

        fixes = ", or ".join(found.near[0].fixes) if found.near else "another --quant, --context or machine"
        lacks = found.near[0].lacks if found.near else "the limits are not held"
        raise NothingFits(f"{found.row.model.id}: {lacks}", fixes)


@partial(with_flags, hides=CHOOSING)
def command(
    model: Model,
    all: Annotated[bool, typer.Option("--all", help="of every engine, or why it cannot")] = False,
    *,
    flags: Flags,
) -> None:
    """The exact command that runs a model; with --all, of every engine that can."""
    from planner import calibrations, commands
    from planner import request as requests

    as_json = _as_json(flags)
    request = calibrations.into(requests.build(_with_model(flags, model)), flags.no_calibration)
    found = commands.find(request, every=all)
    if as_json:
        print(json.dumps(commands.document(found), sort_keys=True, indent=2))
    else:
        print(commands.text(found), end="")


def _as_json(flags: Flags) -> bool:
    """Whether JSON is asked for; what only tables of models have is refused."""
    from planner import terminal
    from planner.errors import UsageError

    wanted = terminal.choose(flags).format
    if wanted in ("markdown", "csv"):
        raise UsageError(f"one model's account is text or JSON, not {wanted}", "leave that out, or --json")
    return wanted == "json"


def _with_model(flags: Flags, model: str) -> Flags:
    return replace(flags, model=[model])
