"""Latent ability of models from published scores that do not share a protocol.

Scores are self-reported, each vendor picks its benchmarks, and most models have none. So no score is compared
with another directly. With z the log-odds of a score,

    z(model, benchmark) = slope_b * ability(model, skill_b) + level_b + noise

    ability(model, skill) = size, date and kind of the model (regression)
                          + its publisher + its family + itself + its own bent for the skill

and, in a score only, how kindly this model was reported: a part of every score of a model that says nothing
of it.

Everything but the slopes is linear and Gaussian, hence solved exactly, with a covariance; slopes alternate
with it, and noise has heavy tails (Student t), so that one odd score moves little. What has no evidence keeps
its prior's width. This is a two-parameter item response model (Birnbaum 1968) with a hierarchical prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NOISE, TAIL = 0.40, 4.0  # standard deviation of a score in log-odds; degrees of freedom
PUBLISHER, FAMILY, MODEL, BENT, REPORT = 0.25, 0.30, 0.25, 0.30, 0.30  # prior standard deviations, log-odds
LEVEL, SLOPE = 2.0, 0.25
REGRESSION = (3.0, 1.0, 1.0, 2.0, 1.0, 1.0)  # of the coefficients of `Subject.features`
ROUNDS = 25
SMALL = 4.0  # billions of active parameters below which published scores fall faster than their logarithm


def features(total: float, active: float, years: float, last: float, base: bool) -> tuple[float, ...]:
    """What the regression sees: log sizes (parameters in billions), an extra deficit of models below 4B
    active, age (`years` since 2024), and whether it is a base model without instruction tuning.

    Progress is not extrapolated in full: after `last`, the year of the newest evidence, half of the trend
    counts.
    """
    aged = years if years <= last else last + (years - last) / 2
    small = max(0.0, float(np.log10(SMALL / active)))
    return (1.0, float(np.log10(total)), float(np.log10(active)), small, aged, float(base))


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to be rated. `features` are those of `features()`; `kinds` shift some skills (`coder`,
    `thinker`)."""

    id: str
    publisher: str
    family: str
    features: tuple[float, ...]
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Score:
    """One published score: index of its subject, its benchmark, the skill it measures, a fraction in [0,
    1]."""

    subject: int
    benchmark: str
    skill: str
    fraction: float


@dataclass(frozen=True)
class Abilities:
    """`mean` and `deviation` per (subject, skill) in log-odds of a benchmark of median difficulty; `n_scores`
    per subject; `residual` is the spread of scores around the fit."""

    skills: tuple[str, ...]
    mean: Array
    deviation: Array
    n_scores: NDArray[np.int64]
    residual: float
    regression: Array  # coefficients of `features`, the level of the median benchmark added to the first


def fit(subjects: Sequence[Subject], scores: Sequence[Score], skills: tuple[str, ...]) -> Abilities:
    """Abilities of all subjects, rated or not."""
    layout = _Layout(subjects, scores, skills)
    z = np.array([_log_odds(s.fraction) for s in scores])
    benchmark = np.array([layout.benchmarks[s.benchmark] for s in scores])
    slopes, weights = np.ones(len(layout.benchmarks)), np.full(len(scores), NOISE**-2)
    ability_rows = layout.ability_rows([(s.subject, s.skill) for s in scores], reported=True)
    for _ in range(ROUNDS):
        rows = ability_rows * slopes[benchmark, None]
        rows[np.arange(len(scores)), layout.first_level + benchmark] += 1.0
        precision = (rows * weights[:, None]).T @ rows + np.diag(layout.prior**-2)
        unknowns = np.linalg.solve(precision, rows.T @ (weights * z))
        ability = ability_rows @ unknowns
        residual = z - rows @ unknowns
        weights = (TAIL + 1) / (TAIL + (residual / NOISE) ** 2) * NOISE**-2
        slopes = _slopes(ability, residual + slopes[benchmark] * ability, benchmark, weights, len(slopes))
    covariance = np.linalg.inv(precision)
    wanted = layout.ability_rows([(i, skill) for i in range(len(subjects)) for skill in skills])
    mean = (wanted @ unknowns).reshape(len(subjects), len(skills))
    variance = ((wanted @ covariance) * wanted).sum(1).reshape(mean.shape)
    variance += BENT**2 * ~layout.has_bent(skills)
    median = float(np.median(unknowns[layout.first_level :]))
    regression = unknowns[: len(REGRESSION)].copy()
    regression[0] += median
    return Abilities(
        skills, mean + median, np.sqrt(variance), layout.n_scores, float(np.std(residual)), regression
    )


def _log_odds(fraction: float) -> float:
    clipped = min(max(fraction, 0.02), 0.98)
    return float(np.log(clipped / (1 - clipped)))


def _slopes(ability: Array, target: Array, benchmark: NDArray[np.int64], weights: Array, n: int) -> Array:
    """Ridge toward 1 of the slope of each benchmark, given abilities; kept positive."""
    weight = np.bincount(benchmark, weights * ability**2, n) + SLOPE**-2
    pull = np.bincount(benchmark, weights * ability * target, n) + SLOPE**-2
    return np.clip(pull / weight, 0.4, 2.0)


class _Layout:
    """Where each unknown stands: coefficients, publishers, families, models, bents, kinds x skills,
    levels."""

    def __init__(self, subjects: Sequence[Subject], scores: Sequence[Score], skills: tuple[str, ...]) -> None:
        self.subjects = subjects
        names: dict[tuple[str, ...], int] = {("feature", str(i)): i for i in range(len(REGRESSION))}
        for subject in subjects:
            for key in (("publisher", subject.publisher), ("family", subject.family), ("model", subject.id)):
                names.setdefault(key, len(names))
        for score in scores:
            names.setdefault(("bent", subjects[score.subject].id, score.skill), len(names))
            names.setdefault(("report", subjects[score.subject].id), len(names))
        for kind in sorted({kind for s in subjects for kind in s.kinds}):
            for skill in skills:
                names.setdefault(("kind", kind, skill), len(names))
        self.names, self.first_level = names, len(names)
        self.benchmarks = {b: i for i, b in enumerate(sorted({s.benchmark for s in scores}))}
        widths = {
            "publisher": PUBLISHER,
            "family": FAMILY,
            "model": MODEL,
            "bent": BENT,
            "report": REPORT,
            "kind": 0.5,
        }
        head = [REGRESSION[i] if name[0] == "feature" else widths[name[0]] for name, i in names.items()]
        self.prior = np.array([*head, *[LEVEL] * len(self.benchmarks)])
        self.n_scores = np.bincount([s.subject for s in scores], minlength=len(subjects))

    def ability_rows(self, pairs: Sequence[tuple[int, str]], reported: bool = False) -> Array:
        rows = np.zeros((len(pairs), len(self.prior)))
        for row, (index, skill) in zip(rows, pairs, strict=True):
            subject = self.subjects[index]
            row[: len(subject.features)] = subject.features
            keys: list[tuple[str, ...]] = [
                ("publisher", subject.publisher),
                ("family", subject.family),
                ("model", subject.id),
            ]
            keys += [("bent", subject.id, skill), *(("kind", kind, skill) for kind in subject.kinds)]
            keys += [("report", subject.id)] if reported else []
            for key in keys:
                if key in self.names:
                    row[self.names[key]] += 1.0
        return rows

    def has_bent(self, skills: tuple[str, ...]) -> NDArray[np.bool_]:
        return np.array([[("bent", s.id, skill) in self.names for skill in skills] for s in self.subjects])
