"""How wide predictions under load are: from residuals of configurations, models and devices that fits did not see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from estimators.serving_fit import Errors
from estimators.serving_measurements import Rows, labelled
from estimators.serving_rates import INTERVAL_GROUPS

MIN_GROUP = 20  # rows of a group that may stretch its tier's ends
#: Of intervals, chosen by nested coverage and interval score as `estimators.intervals` does: voters at which a group
#: counts as much as its parent, a residual's largest part in a mean, and the share beyond each end.
BLEND, LARGEST = 10.0, 2.5
TAIL_OF = {"seen": 0.045, "model": 0.03, "device": 0.04}


def intervals(
    rows: Rows, tiers: Mapping[str, tuple[Errors, np.ndarray]], learn: np.ndarray | None = None
) -> dict[str, Any]:
    """Factors on predicted seconds that hold 90% of measured / predicted, by metric, tier and group. `tiers` holds the
    residuals and the voters of each: of a model or device never seen, n rows of one model and device weigh as sqrt(n),
    since a thousand rows of one model say little about the next. A group's ends are its tier's, stretched by how much
    larger its residuals are on average, shrunk by its voters. Rows outside the mask `learn` are left out."""
    named = labelled(rows, set(INTERVAL_GROUPS))
    chosen = np.ones(len(rows), dtype=bool) if learn is None else learn
    table: dict[str, Any] = {}
    for position, metric in enumerate(("ttft", "tpot")):
        table[metric] = {}
        for tier, (errors, voters) in tiers.items():
            at = np.flatnonzero(chosen & ~np.isnan(errors[position]))
            held = {by: names[at] for by, names in named.items()}
            table[metric][tier] = _widths(-errors[position][at], voters[at], held, TAIL_OF[tier])
    return table


def _widths(
    log_ratio: np.ndarray, voters: np.ndarray, named: Mapping[tuple[str, ...], np.ndarray], tail: float
) -> dict[str, Any]:
    """The ends of one tier (`*`) and of its groups."""
    _, inverse, count = np.unique(voters, return_inverse=True, return_counts=True)
    weight = count[inverse] ** -0.5
    size = np.minimum(np.abs(log_ratio), LARGEST)
    scale = max(float(np.average(size, weights=weight)), 1e-6)
    nearest = np.ones(len(size))
    by: dict[tuple[str, ...], np.ndarray] = {(): nearest.copy()}
    groups: dict[str, tuple[float, int, int]] = {"*": (1.0, len(size), len(count))}
    for features in reversed(INTERVAL_GROUPS):
        parent = by[max((g for g in by if set(g) < set(features)), key=len)]
        by[features] = parent.copy()
        for name in np.unique(named[features]):
            mine = named[features] == name
            if mine.sum() < MIN_GROUP:
                continue
            n = len(np.unique(voters[mine]))
            own = np.log(np.average(size[mine] / parent[mine], weights=weight[mine]) / scale)
            by[features][mine] = nearest[mine] = parent[mine] * np.exp(own * n / (n + BLEND))
            groups[str(name)] = float(nearest[mine][0]), int(mine.sum()), n
    fast, slow = _quantiles(log_ratio / scale / nearest, weight, (tail, 1.0 - tail))
    return {
        name: {
            "fast": round(float(np.exp(min(fast, 0.0) * scale * stretch)), 4),
            "slow": round(float(np.exp(max(slow, 0.0) * scale * stretch)), 4),
            "rows": n_rows,
            "voters": n_voters,
        }
        for name, (stretch, n_rows, n_voters) in groups.items()
    }


def _quantiles(values: np.ndarray, weight: np.ndarray, shares: tuple[float, float]) -> np.ndarray:
    order = np.argsort(values, kind="stable")
    below = (np.cumsum(weight[order]) - weight[order] / 2.0) / weight.sum()
    return np.interp(shares, below, values[order])
