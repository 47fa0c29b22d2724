"""The command line of what reads a folder of public measurements."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path


def parser(documentation: str | None, **flags: str) -> argparse.ArgumentParser:
    """`--truth DIR` (LLM_PLAN_TRUTH without it) and switches, each with what it does."""
    found = argparse.ArgumentParser(
        description=documentation,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    found.add_argument(
        "--truth",
        type=Path,
        default=os.environ.get("LLM_PLAN_TRUTH") or None,
        help="folder of the measurements",
    )
    for name, what in flags.items():
        found.add_argument(f"--{name}", action="store_true", help=what)
    return found


def parsed(options: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, of which `truth` is a folder that holds measurements. Exits with 2 where there is none."""
    found = options.parse_args(arguments)
    if found.truth is None or not (found.truth / "speed.csv").exists():
        options.error("no measurements: give --truth DIR or set LLM_PLAN_TRUTH to a folder with speed.csv")
    return found
