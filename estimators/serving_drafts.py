"""Servers that do not say whether they draft tokens: each such row is a mixture of both, by expectation-maximization.

Speculation is the largest thing that rows leave unstated (1.4 to 2.1 times per token).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from estimators.serving_measurements import Rows

TAILS = 4.0  # degrees of freedom of what a row's time says about whether it drafted


def with_and_without_drafts(rows: Rows) -> tuple[Rows, np.ndarray]:
    """The rows as if those that may draft did not, then once more those as if they did; where these are."""
    unsaid = np.flatnonzero(rows.load.may_draft)
    both = rows.take(np.concatenate([np.arange(len(rows)), unsaid]))
    drafts = both.load.drafts | (np.arange(len(both)) >= len(rows))
    load = replace(both.load, drafts=drafts, may_draft=np.zeros(len(both), dtype=bool))
    return replace(both, load=load), unsaid


def drafting(
    r: np.ndarray,
    x: np.ndarray,
    speculates: tuple[np.ndarray, np.ndarray],
    n: int,
    unsaid: np.ndarray,
    settled: bool,
) -> np.ndarray:
    """How likely each row that may draft did, by its time per token: `r` holds the residuals of `n` rows without
    drafts and then of those with them. A fifth until the fit has settled."""
    if not settled:
        return np.full(len(unsaid), 0.2)
    at, reach = speculates
    odds = reach[unsaid] @ x[at] + (_log_density(r[n:]) - _log_density(r[unsaid]))
    return 1.0 / (1.0 + np.exp(-np.clip(odds, -50.0, 50.0)))


def _log_density(r: np.ndarray) -> np.ndarray:
    return -0.5 * (TAILS + 1.0) * np.log1p(r * r / TAILS)


def shared(weights: np.ndarray, likely: np.ndarray, unsaid: np.ndarray) -> np.ndarray:
    """Row weights, where a row that may draft divides its own between its two copies."""
    divided = weights.copy()
    divided[unsaid] *= 1.0 - likely
    divided[len(weights) - len(unsaid) :] *= likely
    return divided


def speculating(
    x: np.ndarray,
    speculates: tuple[np.ndarray, np.ndarray],
    likely: np.ndarray,
    weights: np.ndarray,
    unsaid: np.ndarray,
    start: np.ndarray,
    prior: np.ndarray,
) -> np.ndarray:
    """The unknowns with those of `speculates` after a step of logistic regression of the likelihoods."""
    at, reach = speculates
    if not len(unsaid):
        return x
    x, reach, weight = x.copy(), reach[unsaid], weights[unsaid]
    for _ in range(3):
        share = 1.0 / (1.0 + np.exp(-(reach @ x[at])))
        slope = reach.T @ (weight * (share - likely)) + (x[at] - start[at]) / prior[at] ** 2
        curve = reach.T @ ((weight * share * (1.0 - share))[:, None] * reach) + np.diag(prior[at] ** -2.0)
        x[at] = x[at] - np.clip(np.linalg.solve(curve, slope), -1.0, 1.0)
    return x
