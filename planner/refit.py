"""`plan calibrate --from rows.csv --out effects.yaml`: the project's own efficiencies fitted to other rows.

Many rows of many machines, not one user's: the result has the form of `estimators/data/efficiency.yaml`,
each value with the number of its rows, their spread and their sources. Nothing of the package changes."""

from __future__ import annotations

import datetime
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from estimators.observation import Observation
from planner import observations
from planner.asks import Ask
from planner.errors import EnvironmentFailed, UsageError

FEWEST = 50  # comparable rows: fewer say little about groups of engines and devices
EXCLUDED = frozenset({"speculative", "spilled", "offloaded", "assumed-lengths"})


def comparable(paths: Sequence[Path]) -> tuple[list[Observation], int]:
    """The rows that a roofline of one batch can explain, and how many there were."""
    from planner import rows

    found: list[Observation] = []
    n = 0
    for path in paths:
        file = rows.read(path)
        if file.layout != "speed":
            raise UsageError(
                f"{path} holds {file.layout} rows; efficiencies are fitted to speed rows",
                "plan calibrate --from SPEED.csv --out FILE",
            )
        n += len(file.records)
        seen = observations.of_file(file)
        found += [o.observation for o in seen if not EXCLUDED & set(o.ask.flags) and not _queued(o.ask)]
    return found, n


def _queued(ask: Ask) -> bool:
    """Latencies of requests that waited for others say how the load was, not how fast kernels are."""
    work = ask.deployment.workload
    if work.client == "burst":
        return ask.metric in ("tpot_ms", "ttft_ms")
    return work.client in ("closed", "poisson") and work.n_sequences > 1


def refit(paths: Sequence[Path], out: Path) -> str:
    """Fit, write `out` whole or not at all, and say what was done. Errors: UsageError for too few rows."""
    import numpy as np
    import yaml

    from estimators import calibration, intervals, observation

    seen, n = comparable(paths)
    rows, _ = observation.rows(seen)
    if len(rows) < FEWEST:
        raise UsageError(
            f"{len(rows)} comparable rows of {n}: a fit of all efficiencies needs at least {FEWEST}",
            "to sharpen the predictions of your own machine leave --out away",
        )
    table = calibration.fit(rows)
    error = np.abs(calibration.predict(table, rows) / rows.value - 1)
    raw = {
        "provenance": {
            "fitted": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "files": [path.name for path in paths],
            "rows": len(rows),
            "sources": sorted({str(s) for s in rows.source}),
            **intervals.knowledge(rows),
            "median_error": round(float(np.median(error)), 4),
        },
        "latents": table,
    }
    text = yaml.safe_dump(raw, sort_keys=False, width=110, default_flow_style=None, allow_unicode=True)
    _write(out, "# Fitted by `plan calibrate --out`; the form of estimators/data/efficiency.yaml.\n" + text)
    return f"{out}: fitted to {len(rows):,} of {n:,} rows, median error in sample {np.median(error):.1%}"


def _write(out: Path, text: str) -> None:
    try:
        with tempfile.NamedTemporaryFile(
            "w", dir=out.parent, prefix=f".{out.name}.", delete=False, encoding="utf-8"
        ) as stream:
            stream.write(text)
        os.chmod(stream.name, 0o644)
        os.replace(stream.name, out)
    except OSError as error:
        raise EnvironmentFailed(f"cannot write {out}: {error.strerror or error}", "another --out") from None
