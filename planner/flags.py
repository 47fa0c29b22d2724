"""The flags that describe a question, declared once and shared by every command that takes one."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_args

import typer

from planner import completion

MACHINE, WORK, CHOICE, OUTPUT = "The machine", "The work", "What may answer", "Output"


def _option(*names: str, help: str, panel: str, complete: Any = None, metavar: str | None = None) -> Any:
    return typer.Option(
        *names, help=help, rich_help_panel=panel, autocompletion=complete, metavar=metavar, show_default=False
    )


@dataclass(frozen=True, slots=True)
class Flags:
    """What was typed, still as text. `planner.request.build` turns it into a Request."""

    vram: Annotated[
        str | None,
        _option(
            "--vram", help="memory of the GPU; alone: any GPU of that memory", panel=MACHINE, metavar="SIZE"
        ),
    ] = None
    ram: Annotated[
        str | None,
        _option(
            "--ram", help="memory of the host, for what the GPU cannot hold", panel=MACHINE, metavar="SIZE"
        ),
    ] = None
    gpu: Annotated[
        list[str] | None,
        _option(
            "--gpu", help="a GPU by name, `2x3090` for two; repeat for others", panel=MACHINE, metavar="NAME",
            complete=completion.devices,
        ),
    ] = None  # fmt: skip
    cpu: Annotated[
        str | None,
        _option(
            "--cpu", help="the host's CPU by name", panel=MACHINE, metavar="NAME", complete=completion.devices
        ),
    ] = None
    machine: Annotated[
        str | None,
        _option("--machine", help="a YAML file that describes the machine", panel=MACHINE, metavar="FILE"),
    ] = None
    task: Annotated[
        str | None,
        _option(
            "--task",
            "-t",
            help="chat, code, ... (default chat)",
            panel=WORK,
            metavar="TASK",
            complete=completion.tasks,
        ),
    ] = None
    context: Annotated[
        str | None,
        _option("--context", "-c", help="tokens to hold, 32k = 32768", panel=WORK, metavar="TOKENS"),
    ] = None
    prompt: Annotated[
        str | None, _option("--prompt", help="tokens of a prompt", panel=WORK, metavar="TOKENS")
    ] = None
    output: Annotated[
        str | None, _option("--output", help="tokens of an answer", panel=WORK, metavar="TOKENS")
    ] = None
    min_tps: Annotated[
        str | None,
        _option("--min-tps", help="least tokens per second for one user", panel=WORK, metavar="RATE"),
    ] = None
    max_ttft: Annotated[
        str | None, _option("--max-ttft", help="longest time to the first token", panel=WORK, metavar="TIME")
    ] = None
    users: Annotated[
        int | None, _option("--users", help="requests at the same time", panel=WORK, metavar="N")
    ] = None
    engine: Annotated[
        list[str] | None,
        _option(
            "--engine",
            help="only this engine; repeatable",
            panel=CHOICE,
            metavar="ENGINE",
            complete=completion.engines,
        ),
    ] = None
    model: Annotated[
        list[str] | None,
        _option(
            "--model", "-m", help="only this model: a name, GGUF file, config.json or directory; repeatable",
            panel=CHOICE, metavar="MODEL", complete=completion.models,
        ),
    ] = None  # fmt: skip
    quant: Annotated[
        list[str] | None,
        _option(
            "--quant", "-q", help="only this quantization, Q4_K_M; repeatable", panel=CHOICE, metavar="SCHEME"
        ),
    ] = None
    kv: Annotated[
        list[str] | None,
        _option(
            "--kv", help="only this type of KV cache, f16 or q8_0; repeatable", panel=CHOICE, metavar="TYPE"
        ),
    ] = None
    license: Annotated[
        list[str] | None,
        _option(
            "--license",
            help="`permissive`, or a licence like apache-2.0; repeatable",
            panel=CHOICE,
            metavar="LICENCE",
        ),
    ] = None
    max_size: Annotated[
        str | None,
        _option("--max-size", help="most parameters of a model, 10B", panel=CHOICE, metavar="SIZE"),
    ] = None
    no_calibration: Annotated[
        bool,
        _option(
            "--no-calibration",
            help="predict without what you measured (plan calibrate)",
            panel=CHOICE,
        ),
    ] = False
    top: Annotated[
        int | None, _option("--top", help="rows to print (default 8)", panel=OUTPUT, metavar="N")
    ] = None
    all: Annotated[bool, _option("--all", help="print every row", panel=OUTPUT)] = False
    format: Annotated[
        str | None,
        _option(
            "--format",
            "-f",
            help="table, json, markdown, csv or tsv",
            panel=OUTPUT,
            metavar="FORMAT",
            complete=completion.formats,
        ),
    ] = None
    json: Annotated[bool, _option("--json", help="as JSON, in base SI units", panel=OUTPUT)] = False
    markdown: Annotated[bool, _option("--markdown", help="as Markdown", panel=OUTPUT)] = False
    csv: Annotated[bool, _option("--csv", help="as CSV", panel=OUTPUT)] = False
    commands: Annotated[
        bool, _option("--commands", help="also print the command of every row", panel=OUTPUT)
    ] = False
    offline: Annotated[bool, _option("--offline", help="never use the network", panel=OUTPUT)] = False
    color: Annotated[
        str | None,
        _option(
            "--color", help="auto, always or never", panel=OUTPUT, metavar="WHEN", complete=completion.colors
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """Only what was typed."""
        return {
            f.name: value for f in fields(self) if (value := getattr(self, f.name)) not in (None, False, [])
        }


def with_flags(function: Callable[..., None], hides: tuple[str, ...] = ()) -> Callable[..., None]:
    """Give `function(..., flags: Flags)` one command-line option per field of Flags, in place of `flags`; a
    field that the function has a parameter of its own for is left out, and those that mean nothing to it are
    not in its help."""
    hints = inspect.get_annotations(Flags, eval_str=True)
    signature = inspect.signature(function, eval_str=True)
    own = [p for p in signature.parameters.values() if p.name != "flags"]
    taken = {p.name for p in own}
    wanted = [f for f in fields(Flags) if f.name not in taken]
    hints |= {name: _hidden(hints[name]) for name in hides}
    shared = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
        for f in wanted
    ]

    @functools.wraps(function)
    def command(**arguments: Any) -> None:
        typed = Flags(**{f.name: arguments.pop(f.name) for f in wanted})
        function(**arguments, flags=typed)

    del command.__wrapped__
    command.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in [*own, *shared]}
    return command


def _hidden(option: Any) -> Any:
    """An annotated option, accepted but not in the help."""
    kind, told = get_args(option)
    told = copy.copy(told)
    told.hidden = True
    return Annotated[kind, told]
