"""Fits the efficiencies of the roofline to measurements: a hierarchical, robust, physical regression.

Each latent quantity of `estimators.efficiency` is a base plus effects of groups (engine, backend, family of
devices, device, format ...). Effects are shrunk to zero, that is to the parent group, by a normal prior; a
group gets an effect only where it has at least MIN_ROWS rows from two sources or two models. Residuals are
of log(metric), weighted by the trust in the source and the inverse root of its size, with a Cauchy loss.
Solved by damped Gauss-Newton.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from estimators import speed
from estimators.efficiency import (
    ABSENT,
    CACHES,
    FIXED,
    HEADS,
    LATENTS,
    SHARES,
    STRUCTURES,
    Situation,
    effect_value,
    packing,
)
from estimators.metrics import METRICS, printed
from estimators.peaks import NOTHING_TO_UNPACK
from estimators.priors import BASES, PRIORS
from estimators.walk import Walk

MIN_ROWS = 8
MIN_KINDS = 2  # of sources or of models
TRUST = {"high": 1.0, "medium": 0.7, "low": 0.2}
SOURCE_ROWS = 60  # a source with more rows than this weighs as the root of its number
#: Of a family that is measured on one device only: how the deviation of its effect is shared between the family,
#: which the next device inherits, and the device (their squares add up to one).
ONE_DEVICE = (0.8, 0.6)
REFERENCE = {"", "one", "narrow", "cache16"}  # levels that need no effect of their own
DATED = ("ggml",)  # lineages whose builds were measured year after year: only they have effects of time
NOISE = 0.08  # standard deviation of log(metric) between runs of the same configuration
TAIL = 20.0  # squared residual, in units of the noise, beyond which a row loses weight


@dataclass(frozen=True)
class Rows:
    """Measurements as arrays, one entry per row. `prompt_tokens` and `output_tokens` are per sequence;
    peaks are operations per second of one device; `value` is the metric as printed."""

    situations: Sequence[Situation]
    formats: np.ndarray  # class names
    structure: np.ndarray  # index into STRUCTURES
    cache: np.ndarray  # index into CACHES
    heads: np.ndarray  # index into HEADS
    walk: Walk
    bandwidth_bytes_per_s: np.ndarray
    matrix_flops: np.ndarray
    vector_flops: np.ndarray
    attention_flops: np.ndarray
    link_bytes_per_s: np.ndarray
    expanded_bytes: np.ndarray
    n_tensor: np.ndarray
    n_stages: np.ndarray
    chunk_tokens: np.ndarray
    eager: np.ndarray
    pipelined: np.ndarray
    expert_launches: np.ndarray
    meeting: np.ndarray
    gathered: np.ndarray
    server: np.ndarray
    plain: np.ndarray
    absorbed: np.ndarray
    masked: np.ndarray
    vector_tokens: np.ndarray
    tile_tokens: np.ndarray
    n_sequences: np.ndarray
    prompt_tokens: np.ndarray
    output_tokens: np.ndarray
    cached_tokens: np.ndarray
    kv_bytes: np.ndarray
    metric: np.ndarray
    value: np.ndarray
    source: np.ndarray
    trust: np.ndarray
    model: np.ndarray

    def __len__(self) -> int:
        return len(self.value)

    def take(self, keep: np.ndarray) -> Rows:
        """The rows at these positions (or under this mask)."""
        positions = np.arange(len(self))[keep]
        taken: dict[str, Any] = {
            f.name: getattr(self, f.name)[positions]
            for f in fields(self)
            if f.name not in ("situations", "walk")
        }
        return Rows(
            situations=[self.situations[i] for i in positions], walk=self.walk.take(positions), **taken
        )


def log_prediction(rows: Rows, latents: dict[str, np.ndarray]) -> np.ndarray:
    """log of what the benchmark would print, given each row's latents on their own scale."""
    share = {k: 1.0 / (1.0 + np.exp(-latents[k])) for k in SHARES}
    rates = speed.Rates(
        bandwidth_bytes_per_s=rows.bandwidth_bytes_per_s,
        matrix_flops=rows.matrix_flops,
        vector_flops=rows.vector_flops,
        attention_peak_flops=rows.attention_flops,
        weights_efficiency=share["weights"],
        experts_efficiency=share["experts"],
        cache_efficiency=share["cache"],
        compute_efficiency=share["compute"],
        experts_compute_efficiency=share["experts_compute"],
        attention_efficiency=share["attention"],
        unpack_efficiency=share["unpack"],
        reread_share=share["reread"],
        expert_half_params=np.exp(latents["half"]),
        sequence_overhead_s=np.exp(latents["sequence"]),
        activation_passes=np.exp(latents["passes"]),
        expanded_bytes=rows.expanded_bytes,
        expert_padding_tokens=np.exp(latents["padding"]),
        layer_overhead_s=np.exp(latents["layer"]),
        step_overhead_s=np.exp(latents["step"]),
        reduce_overhead_s=np.exp(latents["reduce"]),
        hop_overhead_s=np.exp(latents["hop"]),
        link_bytes_per_s=rows.link_bytes_per_s * share["link"],
        gathered=rows.gathered,
        n_tensor=rows.n_tensor,
        n_stages=rows.n_stages,
        chunk_tokens=rows.chunk_tokens,
        eager=rows.eager,
        pipelined=rows.pipelined,
        expert_launches=rows.expert_launches,
        meeting=rows.meeting,
        plain=rows.plain,
        absorbed=rows.absorbed,
        masked=rows.masked,
        vector_tokens=rows.vector_tokens,
        tile_tokens=rows.tile_tokens,
    )
    kv = (rows.kv_bytes, rows.kv_bytes)
    prompt = np.maximum(rows.prompt_tokens, 1.0)
    start = rows.cached_tokens + rows.prompt_tokens
    prefill = speed.prefill(rows.walk, rates, prompt, rows.cached_tokens, rows.n_sequences, *kv).total_s
    step = speed.decode_step(
        rows.walk, rates, rows.n_sequences, start, start + rows.output_tokens, *kv
    ).total_s
    request = np.where(rows.server, np.exp(latents["request"]), 0.0)
    table = printed(prefill, step, request, rows.n_sequences, prompt, rows.output_tokens)
    return np.log(np.select([rows.metric == m for m in METRICS], [table[m] for m in METRICS]))


def features(rows: Rows) -> dict[str, np.ndarray]:
    """The features of every row, as labels."""
    found = {name: np.array([s.label(name) for s in rows.situations]) for name in FIXED}
    classes = [(s, str(c)) for s, c in zip(rows.situations, rows.formats, strict=True)]
    product = [s.product(c, e) for (s, c), e in zip(classes, rows.expanded_bytes, strict=True)]
    return found | {
        "library": np.array([s.library(c) for s, c in classes]),
        "product": np.array(product),
        "multiplied": np.array([packing(c) for c in product]),
        "format": rows.formats,
        "packed": np.array([packing(c) for _, c in classes]),
        "kernels": np.array([s.kernels(c) for s, c in classes]),
        "gemv": np.array([s.gemv(c) for s, c in classes]),
        "structure": np.array(STRUCTURES)[rows.structure],
        "cache": np.array(CACHES)[rows.cache],
        "heads": np.array(HEADS)[rows.heads],
    }


def row_weights(rows: Rows) -> np.ndarray:
    """Trust in the source, times the root that keeps a large source from drowning the rest."""
    _, inverse, counts = np.unique(rows.source, return_inverse=True, return_counts=True)
    return np.array([TRUST[t] for t in rows.trust]) * np.minimum(1.0, (counts[inverse] / SOURCE_ROWS) ** -0.5)


@dataclass(frozen=True)
class Effect:
    """One column of the regression: an effect of rows whose label is `label` (its base where `by` is
    empty)."""

    latent: str
    by: tuple[str, ...]
    per_year: bool
    label: str
    deviation: float


@dataclass(frozen=True)
class Design:
    """Which effects apply to which rows: for each latent and each term, a column per row (-1: none)."""

    effects: list[Effect]
    columns: dict[str, list[tuple[np.ndarray, np.ndarray]]]
    start: dict[str, np.ndarray]
    blocks: list[np.ndarray]  # positions of the rows of each engine and backend


def design(rows: Rows) -> Design:
    """The columns that these rows support."""
    found = features(rows)
    age = np.array([s.age for s in rows.situations])
    effects: list[Effect] = []
    columns: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {latent: [] for latent in LATENTS}
    start = {}
    labelled: dict[tuple[str, ...], np.ndarray] = {}
    followed = np.isin(found["lineage"], DATED)
    for latent in LATENTS:
        bases, deviation = BASES[latent]
        start[latent] = np.array([bases.get(x, bases["*"]) for x in found["lineage"]], dtype=float)
        columns[latent].append((np.full(len(rows), len(effects)), np.ones(len(rows))))
        effects.append(Effect(latent, (), False, "", deviation))
        matters = _matters(latent, rows)
        seen: dict[tuple[bool, bytes], int] = {}
        for by, deviation, per_year in PRIORS[latent]:
            if by not in labelled:
                labelled[by] = joined(found, by)
            codes = np.full(len(rows), -1)
            dated = per_year or "era" in by
            for label, members in _supported(labelled[by], rows, matters & followed if dated else matters):
                group = (per_year, np.packbits(members).tobytes())
                own = deviation
                if (twin := seen.get(group)) is not None:  # a group named twice keeps its widest name
                    if "device" not in by or "family" not in effects[twin].by:
                        continue
                    own = ONE_DEVICE[1] * effects[twin].deviation
                    effects[twin] = replace(effects[twin], deviation=ONE_DEVICE[0] * effects[twin].deviation)
                seen[group] = len(effects)
                codes[members] = len(effects)
                effects.append(Effect(latent, by, per_year, label, own))
            columns[latent].append((codes, age if per_year else np.ones(len(rows))))
    _, block = np.unique(joined(found, ("engine", "backend")), return_inverse=True)
    blocks = [np.nonzero(block == i)[0] for i in range(int(block.max()) + 1)]
    return Design(effects, columns, start, blocks)


def joined(found: dict[str, np.ndarray], by: Sequence[str]) -> np.ndarray:
    """The labels of a term: its features joined by `|`."""
    labels = found[by[0]]
    for name in by[1:]:
        labels = np.char.add(np.char.add(labels, "|"), found[name])
    return labels


def _matters(latent: str, rows: Rows) -> np.ndarray:
    """The rows that a latent can change at all."""
    if latent in ("experts", "experts_compute", "padding", "half"):
        return rows.walk.n_experts > 0
    if latent in ("link", "reduce"):
        return (rows.n_tensor > 1) & ~(rows.gathered & (latent == "reduce"))
    if latent == "unpack":
        return rows.vector_flops < NOTHING_TO_UNPACK
    if latent == "hop":
        return (rows.n_stages > 1) | rows.gathered
    if latent == "passes":
        return np.array([s.lineage == "ggml" for s in rows.situations])
    return rows.server if latent == "request" else np.ones(len(rows), dtype=bool)


def _supported(labels: np.ndarray, rows: Rows, matters: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """(label, its rows) of the groups with enough rows from enough sources or models; others stay at their
    parent."""
    unique, inverse = np.unique(labels, return_inverse=True)
    counts = np.bincount(inverse[matters], minlength=len(unique))
    for i in np.nonzero(counts >= MIN_ROWS)[0]:
        members = (inverse == i) & matters
        n_kinds = max(len(set(rows.source[members])), len(set(rows.model[members])))
        if n_kinds >= MIN_KINDS and not REFERENCE & set(str(unique[i]).split("|")):
            yield str(unique[i]), members


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
