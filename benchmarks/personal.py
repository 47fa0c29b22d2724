"""What a user's own rows are worth: predictions of a device left out of the fit, after 0, 1, 2 and 5 of its rows.

    LLM_PLAN_TRUTH=DIR python benchmarks/personal.py

Groups are rows of one device, number of devices, engine, backend and source with at least 8 of a kind; rows to learn
from are drawn at random, the others are predicted. Prints the median and 90th-percentile error and what share of them
the 90% interval covers. This is what the shares in `estimators/personal.py` were chosen by. Takes a few minutes.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import fit_speed

from estimators import folds, observation
from estimators.personal import Phase, Residual, Target, correction

Group = tuple[str, int, str, str, str]
Looks = list[tuple[float, Target]]  # log(measured / predicted seconds), and of what
FEWEST, DRAWS, LARGEST = 8, 4, 2.5
LEARNT = (0, 1, 2, 5)


def groups(folder: Path) -> dict[Phase, dict[Group, Looks]]:
    """Held-out rows, by kind and group."""
    seen = fit_speed.observations(folder)[0]
    rows, _ = observation.rows(seen)
    ratio = folds.seconds_ratio(rows, folds.cross_validate(rows, "hardware", 8, n_processes=2))
    kinds = folds.kind(rows)
    sizes = {
        "prefill": np.maximum(rows.prompt_tokens, 1),
        "batch": rows.n_sequences,
        "decode": np.ones(len(rows)),
    }
    found: dict[Phase, dict[Group, Looks]] = {"decode": {}, "prefill": {}, "batch": {}}
    for i, s in enumerate(rows.situations):
        if rows.trust[i] != "low" and abs(ratio[i]) < LARGEST:
            n_devices = int(rows.n_tensor[i] * rows.n_stages[i])
            key = (s.device, n_devices, s.engine, s.backend, str(rows.source[i]))
            target = Target(str(rows.formats[i]), float(rows.walk.total_params[i]), float(sizes[kinds[i]][i]))
            found[kinds[i]].setdefault(key, []).append((float(ratio[i]), target))
    return {k: {key: v for key, v in by.items() if len(v) >= FEWEST} for k, by in found.items()}


def scores(kind: Phase, by: dict[Group, Looks], n: int) -> tuple[float, float, float]:
    """(median error, 90th percentile, share covered) of the rows not learnt from."""
    everything = [ratio for looks in by.values() for ratio, _ in looks]
    fast, slow = (float(np.exp(np.quantile(everything, q))) for q in (0.05, 0.95))
    rng = np.random.default_rng(0)
    errors, covered = [], []
    for group, looks in by.items():
        for _ in range(DRAWS):
            order = rng.permutation(len(looks))
            rows = [_residual(group, kind, i, *looks[i]) for i in order[:n]]
            for i in order[n : n + 20]:
                left, target = math.exp(looks[i][0]), looks[i][1]
                factor, low, high = 1.0, fast, slow
                if rows:
                    found = correction(rows, slow, fast, target)
                    factor, low, high = found.factor, found.fast, found.slow
                errors.append(abs(factor / left - 1))
                covered.append(low <= left <= high)
    return float(np.median(errors)), float(np.quantile(errors, 0.9)), float(np.mean(covered))


def _residual(group: Group, kind: Phase, number: int, ratio: float, of: Target) -> Residual:
    device, n_devices, engine, backend, _ = group
    return Residual(
        device, n_devices, engine, backend, kind, ratio, 0.0, str(number), "", of.format, of.n_params, of.size
    )


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
