"""`plan` itself: the question, the answer, the report, the exit code."""

from __future__ import annotations

import sys

from planner import request as requests
from planner import terminal, units
from planner.errors import NOTHING_FITS, OK
from planner.flags import Flags


def answer(flags: Flags) -> int:
    """Print the answer to the flags; 0, or 3 when nothing holds the limits."""
    output = terminal.choose(flags)
    if flags.offline:
        import os

        os.environ["HF_HUB_OFFLINE"] = "1"
    from planner import answer as answers
    from planner import calibrations

    request = calibrations.into(requests.build(flags), flags.no_calibration)

    found = answers.answer(request)
    shown = len(found.rows) if flags.all else flags.top or terminal.usual_top(output, len(found.rows))
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    terminal.write(found, output, shown, flags.commands)
    if found.rows:
        return OK
    print(f"error: {nothing_fits(found)}", file=sys.stderr)
    if found.near:
        first = found.near[0]
        print(
            f"hint: {first.model.name or first.model.id} {first.lacks}: {', or '.join(first.fixes)}",
            file=sys.stderr,
        )
    elif not found.n_models:
        print("hint: no model is left: another --license, --max-size or --task", file=sys.stderr)
    elif not found.n_candidates:
        print("hint: nothing here runs that: another --quant, --kv or --engine", file=sys.stderr)
    else:
        print("hint: ask for less: fewer limits, another --task, a smaller --context", file=sys.stderr)
    return NOTHING_FITS


def nothing_fits(found: object) -> str:
    """One sentence that says how far the search went."""
    from planner.answer import Answer

    assert isinstance(found, Answer)
    left = ", ".join(f"{count} {why}" for why, count in found.left_out if count)
    models = units.counted(found.n_models, "model")
    tried = f"none of {units.counted(found.n_candidates, 'deployment')} of {models} holds the limits"
    tried += f" on {found.target.label}"
    return tried + (f" (left out: {left})" if left else "")
