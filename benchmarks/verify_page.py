"""docs/verify.md, from runs of `verify_runs`."""

from __future__ import annotations

from typing import Any

import numpy as np
from verify_fit import deployments
from verify_runs import LONG, LONG_BYTES


def page(seen: list[dict[str, Any]], host: str) -> str:
    """docs/verify.md."""
    from estimators import reference

    held = reference.calibration()
    errors: dict[str, list[float]] = {"decode": [], "prefill": []}
    inside = {"decode": 0, "prefill": 0}
    body, apart = [], []
    for s in seen:
        rows = deployments(s)
        cells = []
        for phase, d, t in rows:
            found = reference.expected(reference.terms(d, held), held, phase)
            p = found.best
            errors[phase].append(p / t - 1)
            inside[phase] += found.low <= t <= found.high
            cells.append(f"{p * 1e3:.1f} / {t * 1e3:.1f} ({p / t - 1:+.0%})")
        readings = list(s.get("agreement", {}).values())
        apart += readings
        other = " ".join(f"{r:+.1%} ± {error:.1%}" for r, error, _ in readings)
        name, scheme = s["pair"].split(":")
        read = f"{s['bandwidth'] / 1e9:.1f}"
        row = (
            name,
            scheme,
            read,
            cells[0],
            cells[1],
            str(s["n_prompt"]),
            cells[2],
            other,
            f"{s['load']:.1f}",
        )
        body.append(f"| {' | '.join(row)} |")
    lines = [
        "# Predicted against measured: the bundled runner",
        "",
        f"{len(seen)} pairs of model and scheme, none of whose models the calibration was fitted on, on {host} with",
        f"{seen[0]['threads']} threads; synthetic weights. Times in ms, predicted / measured (error). `read` is the",
        "bandwidth measured between the tokens in GB/s, `load` the load average, the run itself included.",
        "",
        "| model | scheme | read | TPOT at 256 | TPOT at 1536 | prompt | TTFT | sampled against full | load |",
        "|---|---|---|---|---|---|---|---|---|",
        *body,
        "",
        "| | median error | worst | inside the interval |",
        "|---|---|---|---|",
    ]
    for phase, label in (("decode", "TPOT"), ("prefill", "TTFT")):
        e = np.abs(errors[phase])
        lines.append(f"| {label} | {np.median(e):.1%} | {e.max():.1%} | {inside[phase]} of {len(e)} |")
    if apart:
        a = np.abs([r[0] for r in apart])
        lines += [
            "",
            f"Sampled execution differs from full by {np.median(a):.1%} (median), {a.max():.1%} at worst, over",
            f"{len(a)} comparisons (with the standard error of each): a step, a prompt of 256 tokens and, of models",
            f"below {LONG_BYTES / 1e9:.1f} GB, one of {LONG:,} that was sampled in a second, large matrices by a share",
            "of their rows. Both take turns, full, sampled, sampled, full, until the median of their ratio is known",
            "well or turns end; the largest models run sampled only.",
        ]
    busy = sum(bool(s["remarks"]) for s in seen)
    if busy:
        lines += [
            "",
            f"**Contaminated**: other processes were busy during {busy} of {len(seen)} runs, so these errors hold",
        ]
        lines += [
            "the noise of a shared machine. On an idle one: `python benchmarks/verify.py --page docs/verify.md`."
        ]
    errors_of_fit = held["provenance"]["errors"]
    told = ", ".join(f"{p} {v['median_error_left_out']:.1%}" for p, v in errors_of_fit.items())
    lines += [
        "",
        f"The calibration (`--fit`) saw {len(held['provenance']['pairs'])} other pairs; leaving one model out at a",
    ]
    lines += [f"time, its median errors are {told}.", "", "Written by `benchmarks/verify.py`."]
    return "\n".join(lines) + "\n"
