"""`plan calibrate`: learn from measurements; list and forget what was learnt."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from planner import completion
from planner.errors import UsageError


def calibrate(
    files: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            help="results of llama-bench, vllm bench serve, sglang, guidellm, or rows as CSV; repeatable",
            metavar="FILE",
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            help="the device measured, `2x3090` for two, where the file does not say",
            metavar="NAME",
            autocompletion=completion.devices,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="the model measured, over what the file says",
            metavar="MODEL",
            autocompletion=completion.models,
        ),
    ] = None,
    quant: Annotated[
        str | None,
        typer.Option("--quant", "-q", help="its quantization, over what the file says", metavar="SCHEME"),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine",
            help="the engine, over what the file says",
            metavar="ENGINE",
            autocompletion=completion.engines,
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="what was learnt so far, with its origin")] = False,
    undo: Annotated[str | None, typer.Option("--undo", help="forget one, or `all`", metavar="ID")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="compare and print, keep nothing")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="fit all efficiencies to many rows instead, and write them here",
            metavar="FILE",
        ),
    ] = None,
) -> None:
    """Sharpen the predictions for this machine by your own measurements, kept in your configuration
    folder."""
    chosen = [
        name for name, given in (("--from", files), ("--list", show), ("--undo", undo is not None)) if given
    ]
    if len(chosen) != 1:
        said = "nothing to do" if not chosen else f"{' and '.join(chosen)} exclude each other"
        raise UsageError(said, "plan calibrate --from FILE, or --list, or --undo ID")
    if show:
        from planner.calibrate import listing

        print(listing(), end="")
    elif undo is not None:
        from planner import calibrations

        gone = calibrations.remove(undo)
        print(f"forgotten: {', '.join(gone)}" if gone else "nothing was kept")
    elif out is not None:
        from planner.refit import refit

        print(refit(files or [], out))
    else:
        from planner.calibrate import calibrate as learn
        from planner.calibrate import text
        from planner.drafts import Hints

        hints = Hints(_gpus(gpu), model or "", quant or "", _engine(engine))
        print(text(learn(files or [], hints, keep=not dry_run), kept=not dry_run), end="")


def _gpus(name: str | None) -> tuple[int, str] | None:
    """`2x3090` -> (2, "3090")."""
    if name is None:
        return None
    found = re.fullmatch(r"\s*(?:(\d{1,3})\s*[xX*]\s*)?(.*\S)\s*", name, re.ASCII)
    if found is None or not 1 <= int(found[1] or 1) <= 64:
        raise UsageError("--gpu needs a name", 'write it like --gpu "rtx 4060" or --gpu 2x3090')
    return int(found[1] or 1), found[2]


def _engine(name: str | None) -> str:
    """The engine's id, whatever its spelling."""
    from planner import labels
    from planner.errors import UnknownName

    if name is None:
        return ""
    found = labels.engine(name)
    if found is None:
        raise UnknownName(f"no engine is called `{ascii(name[:40])[1:-1]}`", "llama.cpp, vllm, sglang, ...")
    return found
