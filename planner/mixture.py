"""The interval of a class of machines: 90% of a mixture in which every machine has one vote."""

from __future__ import annotations

import math
from collections.abc import Sequence

NORMAL_95 = 1.6449  # 95% quantile of the standard normal distribution
STEPS = 60  # of the bisection: the logarithm's bracket shrinks below 1e-15 of itself


def interval(members: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """5% and 95% quantiles of a mixture of (low, best, high), each the 5%, 50% and 95% quantiles of one
    member: a lognormal of its own width on either side of the best. All positive, of any one unit."""
    if len(members) == 1:
        return members[0][0], members[0][2]
    logs = [tuple(math.log(x) for x in member) for member in members]
    low, high = min(x[0] for x in logs), max(x[2] for x in logs)
    return math.exp(_quantile(logs, 0.05, low, high)), math.exp(_quantile(logs, 0.95, low, high))


def _quantile(logs: Sequence[tuple[float, ...]], share: float, low: float, high: float) -> float:
    """Where the mean of the members' distributions reaches `share`; every quantile between 5% and 95% lies
    between the lowest low and the highest high."""
    for _ in range(STEPS):
        middle = (low + high) / 2
        if sum(_below(middle, *member) for member in logs) / len(logs) < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _below(x: float, low: float, best: float, high: float) -> float:
    """Share of one member below `x` (logarithms)."""
    width = high - best if x > best else best - low
    if width <= 0:
        return 1.0 if x >= best else 0.0
    return 0.5 * math.erfc(-(x - best) / width * NORMAL_95 / math.sqrt(2))
