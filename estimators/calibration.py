"""Fits the efficiencies of the roofline to measurements: a hierarchical, robust, physical regression.

Each latent quantity of `estimators.efficiency` is a base plus effects of groups (engine, backend, family of
devices, device, format ...). Effects are shrunk to zero, that is to the parent group, by a normal prior; a
group gets an effect only where it has at least MIN_ROWS rows from two sources or two models. Residuals are
of log(metric), weighted by the trust in the source and the inverse root of its size, with a Cauchy loss.
Solved by damped Gauss-Newton.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from estimators.design import Design, design
from estimators.efficiency import ABSENT, LATENTS, effect_value
from estimators.measurements import Rows, features, joined, log_prediction, row_weights
from estimators.priors import BASES, PRIORS

NOISE = 0.08  # standard deviation of log(metric) between runs of the same configuration
TAIL = 20.0  # squared residual, in units of the noise, beyond which a row loses weight


def _latents(plan: Design, theta: np.ndarray) -> dict[str, np.ndarray]:
    found = {}
    for latent in LATENTS:
        total = plan.start[latent].copy()
        for codes, weight in plan.columns[latent]:
            total += np.where(codes >= 0, theta[codes], 0.0) * weight
        found[latent] = total
    return found


def _loss(residual: np.ndarray, weight: np.ndarray, noise: float) -> float:
    return float(np.sum(weight * TAIL * np.log1p((residual / noise) ** 2 / TAIL)))


def solve(rows: Rows, iterations: int = 30, verbose: bool = False) -> tuple[Design, np.ndarray]:
    """The effects that explain these rows best: (their design, their values).

    The noise is annealed from four times its value, so that bad starts are pulled in before outliers are
    let go.
    """
    plan, weight, target = design(rows), row_weights(rows), np.log(rows.value)
    deviation = np.array([e.deviation for e in plan.effects])
    theta = np.zeros(len(plan.effects))
    damping, noise = 0.03, 4 * NOISE
    latents = _latents(plan, theta)
    predicted = log_prediction(rows, latents)
    best = _loss(target - predicted, weight, noise) + float(np.sum((theta / deviation) ** 2))
    for iteration in range(iterations):
        if iteration in (5, 9):
            noise = max(NOISE, noise / 2)
            best = _loss(target - predicted, weight, noise) + float(np.sum((theta / deviation) ** 2))
        residual = target - predicted
        k = weight / noise**2 / (1 + (residual / noise) ** 2 / TAIL)
        normal, gradient = _normal(rows, plan, latents, predicted, k, residual)
        slope = gradient - theta / deviation**2
        diagonal = np.diag(normal) + deviation**-2
        improved = 0.0
        for _ in range(6):
            damped = normal + np.diag(deviation**-2 + damping * diagonal)
            trial = theta + np.clip(np.linalg.solve(damped, slope), -0.7, 0.7)
            trial_latents = _latents(plan, trial)
            trial_predicted = log_prediction(rows, trial_latents)
            loss = _loss(target - trial_predicted, weight, noise) + float(np.sum((trial / deviation) ** 2))
            if loss < best:
                improved, best, damping = best - loss, loss, damping / 4
                theta, latents, predicted = trial, trial_latents, trial_predicted
                break
            damping *= 4
        if verbose:
            error = np.median(np.abs(target - predicted))
            print(f"{iteration:3d} loss {best:10.1f} damping {damping:.1e} median error {error:.3f}")
        if iteration > 10 and improved < 3e-4 * best:
            break
    return plan, theta


def _normal(
    rows: Rows,
    plan: Design,
    latents: dict[str, np.ndarray],
    predicted: np.ndarray,
    k: np.ndarray,
    residual: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(J' K J, J' K r) with J = d log(metric) / d effect by one finite difference per latent. Rows of one
    engine on one backend touch few effects, so the sums run over such blocks."""
    slopes = {}
    for latent in LATENTS:
        moved = log_prediction(rows, latents | {latent: latents[latent] + 0.02})
        slopes[latent] = (moved - predicted) / 0.02
    n = len(plan.effects)
    normal, gradient = np.zeros((n, n)), np.zeros(n)
    for block in plan.blocks:
        entries = [
            (codes[block], slopes[latent][block] * weight[block])
            for latent in LATENTS
            for codes, weight in plan.columns[latent]
        ]
        used = np.unique(np.concatenate([codes for codes, _ in entries]))
        used = used[used >= 0]
        at = np.full(n + 1, -1)
        at[used] = np.arange(len(used))
        jacobian = np.zeros((len(block), len(used)))
        index = np.arange(len(block))
        for codes, slope in entries:
            has = codes >= 0
            jacobian[index[has], at[codes[has]]] += slope[has]
        weighted = jacobian * k[block, None]
        normal[np.ix_(used, used)] += weighted.T @ jacobian
        gradient[used] += weighted.T @ residual[block]
    return normal, gradient


def tabulate(rows: Rows, plan: Design, theta: np.ndarray) -> dict[str, Any]:
    """The fitted effects in the form of `estimators/data/efficiency.yaml`: each with its number of rows,
    the median absolute residual of those rows (in logs) and the sources they come from."""
    residual = np.log(rows.value) - log_prediction(rows, _latents(plan, theta))
    table: dict[str, Any] = {}
    for latent in LATENTS:
        shift = float(theta[next(i for i, e in enumerate(plan.effects) if e.latent == latent and not e.by)])
        base = {k: round(float(v) + shift, 4) for k, v in BASES[latent][0].items()}
        terms = []
        for (by, _, per_year), (codes, _) in zip(PRIORS[latent], plan.columns[latent][1:], strict=True):
            effects = {}
            for code in np.unique(codes[codes >= 0]):
                members = codes == code
                effects[plan.effects[code].label] = {
                    "value": round(float(theta[code]), 4),
                    "rows": int(members.sum()),
                    "spread": round(float(np.median(np.abs(residual[members]))), 3),
                    "sources": _few({str(x) for x in rows.source[members]}),
                }
            terms.append({"by": list(by), "per_year": per_year, "effects": effects})
        table[latent] = {"base": base, "terms": terms}
    return table


def _few(names: set[str]) -> list[str]:
    """At most three names, and how many more there are."""
    first = sorted(names)[:3]
    return first if len(names) <= 3 else [*first, f"and {len(names) - 3} more"]


def compact(table: dict[str, Any]) -> dict[str, Any]:
    """The calibration without its evidence: what predicting needs."""
    return {
        latent: {
            "base": entry["base"],
            "terms": [
                {
                    "by": term["by"],
                    "per_year": term["per_year"],
                    "effects": {label: effect["value"] for label, effect in term["effects"].items()},
                }
                for term in entry["terms"]
                if term["effects"]
            ],
        }
        for latent, entry in table.items()
    }


def fit(rows: Rows, verbose: bool = False) -> dict[str, Any]:
    """The `latents` part of a calibration, from these rows, with the evidence of each effect."""
    return tabulate(rows, *solve(rows, verbose=verbose))


def row_latents(table: dict[str, Any], rows: Rows) -> dict[str, np.ndarray]:
    """Each row's latents under a calibration (labels it does not know add nothing)."""
    found = features(rows)
    age = np.array([s.age for s in rows.situations])
    latents = {}
    for latent in LATENTS:
        entry = table.get(latent, ABSENT)
        base = entry["base"]
        total = np.array([base.get(x, base["*"]) for x in found["lineage"]], dtype=float)
        for term in entry["terms"]:
            labels = joined(found, term["by"])
            unique, inverse = np.unique(labels, return_inverse=True)
            effect = np.array([effect_value(term["effects"].get(str(x), 0.0)) for x in unique])[inverse]
            total += effect * (age if term["per_year"] else 1.0)
        latents[latent] = total
    return latents


def predict(table: dict[str, Any], rows: Rows) -> np.ndarray:
    """What each row's benchmark would print."""
    return np.exp(log_prediction(rows, row_latents(table, rows)))
