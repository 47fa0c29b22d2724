"""Fits the latents of `serving_model` to measurements under load: hierarchical, robust, physical.

Effects are shrunk to zero, that is to the parent group, by a normal prior; a group has one only where it has at least
MIN_ROWS rows of two models or two devices. Residuals are of log seconds; copies of one measurement share its weight;
the loss is Huber's at first and Cauchy's then, since rows differ by what they do not state (workers, load generators).
Rows that do not say whether tokens were drafted are a mixture of both (`serving_drafts`).
Whole batches of the same engines (single streams and offline runs) are fitted beside servers: kernels are the same.
Solved by damped Gauss-Newton: a row depends on its latents only, so the Jacobian takes one evaluation per latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from estimators.serving_drafts import drafting, shared, speculating, with_and_without_drafts
from estimators.serving_measurements import Rows, labelled
from estimators.serving_model import Latents, serve, whole_batch_s
from estimators.serving_rates import LATENTS, SHARES, label, scaled
from estimators.serving_terms import ARCHITECTURE, BASES, FIRST_TOKEN, FULL_WIDTH, TERMS, WIDTH

MIN_ROWS, MIN_KINDS = 8, 2
#: Of log seconds of TTFT, TPOT and whole batches, between runs alike in everything that rows state.
NOISES = (0.35, 0.12, 0.15)
STEP = 1e-4
ROUNDS, HUBER_ROUNDS = 20, 3
TAIL = 1.5  # squared residual, in units of the noise, from which Cauchy's loss takes weight

#: log(predicted / measured) of TTFT and TPOT; NaN where a row prints none.
Errors = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Effect:
    """One unknown: the base of a latent (`by` empty) or the effect of one label."""

    latent: str
    by: tuple[str, ...]
    label: str
    prior: float
    rows: int = 0
    models: int = 0


def effects(rows: Rows) -> list[Effect]:
    """The unknowns that these rows can support."""
    found = [Effect(name, (), "", BASES[name][1]) for name in LATENTS]
    models, devices, sources = (
        np.array([x.get(kind, "") for x in rows.labels]) for kind in ("model", "device", "source")
    )
    groups: dict[tuple[str, ...], list[tuple[str, int, int, int]]] = {}
    for by, named in labelled(rows, {by for _, by, _ in TERMS}).items():
        held = [(str(name), named == name) for name in np.unique(named)]
        others = sources if ARCHITECTURE in by else devices
        groups[by] = [
            (name, int(mine.sum()), len(set(models[mine])), len(set(others[mine]))) for name, mine in held
        ]
    for latent, by, prior in TERMS:
        width = 1.0 if latent in FULL_WIDTH else WIDTH
        for name, n, n_models, n_others in groups[by]:
            if n >= MIN_ROWS and max(n_models, n_others) >= MIN_KINDS:
                found.append(Effect(latent, by, name, width * prior, n, n_models))
    return found


def _columns(rows: Rows, unknowns: Sequence[Effect]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each latent: positions of its unknowns, and which rows each reaches."""
    named = labelled(rows, {e.by for e in unknowns})
    found = {}
    for name in LATENTS:
        at = [i for i, e in enumerate(unknowns) if e.latent == name]
        found[name] = (
            np.array(at),
            np.array([named[unknowns[i].by] == unknowns[i].label for i in at]).T * 1.0,
        )
    return found


def _errors(rows: Rows, q: Latents) -> np.ndarray:
    """(metric, row): log(predicted / measured) of TTFT, TPOT and whole batches; NaN where a row prints none."""
    found = np.full((len(NOISES), len(rows)), np.nan)
    (served, load), (batched, batch) = rows.parts
    if len(served):
        times = serve(load, {name: value[served] for name, value in q.items()})
        found[0, served] = np.log(times.ttft_s / rows.ttft_s[served])
        found[1, served] = np.log(times.tpot_s / rows.tpot_s[served])
    if len(batched):
        whole = whole_batch_s(batch, {name: value[batched] for name, value in q.items()})
        found[2, batched] = np.log(whole / rows.whole_s[batched])
    return found


def _residuals(rows: Rows, q: Latents) -> np.ndarray:
    """In units of the noise; rows say nothing about what they do not print."""
    return np.nan_to_num(_errors(rows, q) / np.array(NOISES)[:, None]).ravel()


def solve(rows: Rows, n_rounds: int = ROUNDS) -> tuple[list[Effect], np.ndarray]:
    """The unknowns and their values on the logit or logarithmic scale.

    Rows that do not say whether speculation was on lie around two predictions. They are fitted as a mixture: each
    counts with both, by how likely its time per token makes either (expectation-maximization).
    """
    unknowns = effects(rows)
    both, unsaid = with_and_without_drafts(rows)
    columns = _columns(both, unknowns)
    kinds = _kinds(columns, len(both))
    prior = np.array([e.prior for e in unknowns])
    start = np.array([_raw(e.latent) if not e.by else 0.0 for e in unknowns])

    def residuals(x: np.ndarray) -> np.ndarray:
        return _residuals(both, {n: scaled(n, m @ x[at]) for n, (at, m) in columns.items()})

    def loss(x: np.ndarray, r: np.ndarray, cauchy: bool) -> float:
        each = TAIL * np.log1p(r * r / TAIL) if cauchy else 2.0 * (np.sqrt(1.0 + r * r) - 1.0)
        return float((weight * each).sum() + (((x - start) / prior) ** 2).sum())

    x, damping = start.copy(), 1.0
    r = residuals(x)
    for turn in range(n_rounds):
        cauchy = turn >= HUBER_ROUNDS
        per_token = r.reshape(len(NOISES), -1)[1]
        likely = drafting(per_token, x, columns["speculates"], len(rows), unsaid, cauchy)
        weight = np.tile(shared(both.weights, likely, unsaid), len(NOISES))
        x = speculating(x, columns["speculates"], likely, rows.weights, unsaid, start, prior)
        now = loss(x, r, cauchy)
        slope = _slopes(both, columns, x, r)
        pull = weight / (1.0 + r * r / TAIL) if cauchy else weight / np.sqrt(1.0 + r * r)
        curve, downhill = _normal(kinds, slope, pull, r)
        curve, downhill = curve + np.diag(prior**-2), downhill + (x - start) / prior**2
        fixed = columns["speculates"][0]
        downhill[fixed] = 0.0
        for _ in range(6):
            move = np.linalg.solve(curve + damping * 0.01 * np.diag(np.diag(curve)), -downhill)
            tried = x + np.clip(move, -1.0, 1.0)
            there = residuals(tried)
            if loss(tried, there, cauchy) < now:
                x, r, damping = tried, there, max(damping / 4.0, 1e-3)
                break
            damping *= 6.0
    return unknowns, x


def _raw(name: str) -> float:
    """Where a latent starts, on the scale of its effects."""
    value = BASES[name][0]
    return float(np.log(value / (1.0 - value))) if name in SHARES else float(np.log(value))


def _slopes(rows: Rows, columns: dict[str, Any], x: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Of each residual by each latent: (residuals, latents)."""
    raw = {name: reach @ x[at] for name, (at, reach) in columns.items()}
    here = {name: scaled(name, value) for name, value in raw.items()}
    moved = [_residuals(rows, {**here, name: scaled(name, raw[name] + STEP)}) for name in columns]
    return (np.stack(moved, axis=1) - r[:, None]) / STEP


@dataclass(frozen=True)
class _Kinds:
    """Rows with the same effects, so that the normal equations take one small product per kind of row: which unknowns
    reach each kind, the kind of each residual, and the latent of each unknown."""

    reach: np.ndarray
    kind: np.ndarray
    latent: np.ndarray


def _kinds(columns: dict[str, Any], n: int) -> _Kinds:
    n_unknowns = sum(len(at) for at, _ in columns.values())
    latent, reach = np.empty(n_unknowns, dtype=int), np.empty((n, n_unknowns), dtype=bool)
    for i, (at, mine) in enumerate(columns.values()):
        latent[at], reach[:, at] = i, mine > 0
    packed = np.packbits(reach, axis=1)
    _, first, kind = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    return _Kinds(reach[first], np.tile(kind, len(NOISES)), latent)


def _normal(
    kinds: _Kinds, slope: np.ndarray, pull: np.ndarray, r: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """J'WJ and J'Wr of all unknowns."""
    n = len(kinds.latent)
    curve, downhill = np.zeros((n, n)), np.zeros(n)
    for i, reached in enumerate(kinds.reach):
        mine, here = kinds.kind == i, np.flatnonzero(reached)
        pulled, at = slope[mine] * pull[mine, None], kinds.latent[here]
        curve[np.ix_(here, here)] += (pulled.T @ slope[mine])[np.ix_(at, at)]
        downhill[here] += (pulled.T @ r[mine])[at]
    return curve, downhill


def predicted(rows: Rows, unknowns: Sequence[Effect], x: np.ndarray) -> Errors:
    """log(predicted / measured) of TTFT and TPOT."""
    ttft, tpot, _ = _all_errors(rows, unknowns, x)
    return ttft, tpot


def _all_errors(rows: Rows, unknowns: Sequence[Effect], x: np.ndarray) -> np.ndarray:
    return _errors(
        rows, {name: scaled(name, m @ x[at]) for name, (at, m) in _columns(rows, unknowns).items()}
    )


def cross_validate(rows: Rows, group: np.ndarray, n_folds: int | None = None) -> Errors:
    """log(predicted / measured) of each server, from fits that leave its group out (each group a fold, or dealt);
    batches of the group are left out with it."""
    names, inverse = np.unique(group, return_inverse=True)
    fold = np.random.default_rng(0).permutation(len(names)) % (n_folds or len(names))
    ttft, tpot = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    for i in np.unique(fold[inverse[rows.servers]]):
        out = fold[inverse] == i
        fitted = solve(rows.take(~out))
        ttft[out], tpot[out] = predicted(rows.take(out), *fitted)
    return ttft, tpot


def tabulate(rows: Rows, unknowns: Sequence[Effect], x: np.ndarray) -> dict[str, Any]:
    """The `latents` part of a calibration, with the evidence of each effect: rows, models, and the spread of its rows'
    residuals (standard deviation of log seconds, from the median absolute one)."""
    ttft, tpot, whole = _all_errors(rows, unknowns, x)
    table: dict[str, Any] = {}
    for name in LATENTS:
        terms: dict[tuple[str, ...], dict[str, Any]] = {}
        base = 0.0
        for effect, value in zip(unknowns, x, strict=True):
            if effect.latent != name:
                continue
            if not effect.by:
                base = float(value)
                continue
            mine = np.array([label(labels, effect.by) == effect.label for labels in rows.labels])
            order = (ttft, tpot, whole) if name in FIRST_TOKEN else (tpot, ttft, whole)
            error = next(each[mine] for each in order if not np.isnan(each[mine]).all())
            terms.setdefault(effect.by, {})[effect.label] = {
                "value": round(float(value), 4),
                "rows": effect.rows,
                "models": effect.models,
                "spread": round(1.4826 * float(np.nanmedian(np.abs(error))), 3),
            }
        table[name] = {
            "base": round(base, 4),
            "means": float(f"{float(scaled(name, base)):.4g}"),
            "terms": [{"by": list(by), "effects": held} for by, held in terms.items()],
        }
    return table


def compact(raw: dict[str, Any]) -> dict[str, Any]:
    """What predicting needs of a calibration file."""
    latents = {
        name: {
            "base": entry["base"],
            "terms": [
                {"by": term["by"], "effects": {k: v["value"] for k, v in term["effects"].items()}}
                for term in entry["terms"]
            ],
        }
        for name, entry in raw["latents"].items()
    }
    return {"latents": latents, "intervals": raw["intervals"], "provenance": raw["provenance"]}
