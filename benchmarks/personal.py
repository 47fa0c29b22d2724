"""What a user's own rows are worth: predictions of a device left out of the fit, after 0, 1, 2 and 5 of its rows.

    LLM_PLAN_TRUTH=DIR python benchmarks/personal.py

Groups are rows of one device, number of devices, engine, backend and source with at least 8 of a kind; rows to learn
from are drawn at random, the others are predicted. Prints the median and 90th-percentile error and what share of them
the 90% interval covers. This is what `WITHIN_SHARE` of `estimators/personal.py` was chosen by. Takes a few minutes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import fit_speed

from estimators import folds, observation
from estimators.personal import Phase, Residual, correction

Group = tuple[str, int, str, str, str]
FEWEST, DRAWS, LARGEST = 8, 4, 2.5
LEARNT = (0, 1, 2, 5)


def groups(folder: Path) -> dict[Phase, dict[Group, np.ndarray]]:
    """log(measured / predicted seconds) of held-out rows, by kind and group."""
    seen = fit_speed.observations(folder)[0]
    rows, _ = observation.rows(seen)
    ratio = folds.seconds_ratio(rows, folds.cross_validate(rows, "hardware", 8, n_processes=2))
    kinds = folds.kind(rows)
    found: dict[Phase, dict[Group, list[float]]] = {"decode": {}, "prefill": {}, "batch": {}}
    for i, s in enumerate(rows.situations):
        if rows.trust[i] != "low" and abs(ratio[i]) < LARGEST:
            n_devices = int(rows.n_tensor[i] * rows.n_stages[i])
            key = (s.device, n_devices, s.engine, s.backend, str(rows.source[i]))
            found[kinds[i]].setdefault(key, []).append(float(ratio[i]))
    return {k: {key: np.array(v) for key, v in by.items() if len(v) >= FEWEST} for k, by in found.items()}


def scores(kind: Phase, by: dict[Group, np.ndarray], n: int) -> tuple[float, float, float]:
    """(median error, 90th percentile, share covered) of the rows not learnt from."""
    everything = np.concatenate(list(by.values()))
    fast, slow = (float(np.exp(np.quantile(everything, q))) for q in (0.05, 0.95))
    rng = np.random.default_rng(0)
    errors, covered = [], []
    for (device, n_devices, engine, backend, _), ratios in by.items():
        for _ in range(DRAWS):
            order = rng.permutation(len(ratios))
            rows = [
                Residual(device, n_devices, engine, backend, kind, ratios[i], 0.0, str(i)) for i in order[:n]
            ]
            factor, low, high = 1.0, fast, slow
            if rows:
                found = correction(rows, slow, fast)
                factor, low, high = found.factor, found.fast, found.slow
            left = np.exp(ratios[order[n : n + 20]])
            errors += list(np.abs(factor / left - 1))
            covered += list((left >= low) & (left <= high))
    return float(np.median(errors)), float(np.quantile(errors, 0.9)), float(np.mean(covered))


def main() -> None:
    folder = Path(os.environ.get("LLM_PLAN_TRUTH", ""))
    if not os.environ.get("LLM_PLAN_TRUTH") or not (folder / "speed.csv").exists():
        sys.exit("set LLM_PLAN_TRUTH to the folder of speed.csv")
    for kind, by in groups(folder).items():
        print(f"{kind}: {sum(map(len, by.values()))} rows of {len(by)} groups on devices left out of the fit")
        for n in LEARNT:
            median, tail, share = scores(kind, by, n)
            print(f"  after {n} rows: median {median:5.1%}  90th {tail:6.1%}  covered {share:.0%}")


if __name__ == "__main__":
    main()
