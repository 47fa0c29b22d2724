"""How good an answer is likely to be: a latent ability per model and skill, less what quantization costs.

Abilities come from `estimators/data/quality.json` (made by `python -m estimators.compile_quality`), in log-
odds; a score is the share of a benchmark of median difficulty that the model would answer. The order of
models is meant, the number is only a scale. A model without published scores is rated by its size, date and
relatives, with the width that follows, and its origin is `assumed`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from estimators.quantity import Quantity

DATA = Path(__file__).parent / "data" / "quality.json"
Array = NDArray[np.float64]

Z90 = 1.645  # half width of a 90% interval, in standard deviations

#: Log-odds of a right answer lost per nat of mean KL divergence to the unquantized model. Qwen3-4B loses
#: 3.33, 1.67 and 0.52 points of MMLU-Pro at 64% in MLX 4-, 5- and 6-bit g64 (mlx-lm BENCHMARKS.md: 0.145,
#: 0.073, 0.023 log-odds); llama.cpp's plain blocks of as many bits, Q4_1, Q5_1 and Q6_K, diverge by 0.072,
#: 0.018 and 0.0055 nats (tools/perplexity/README.md): 2.0, 4.0 and 4.1 log-odds per nat, here their middle.
LOG_ODDS_PER_NAT = 3.0
#: The same mix costs a larger model less: exponent of (8.03B / parameters). Between 4B and 30B the MMLU-Pro
#: loss at 4 bits falls with exponent 0.22 (mlx-lm), between 7B and 70B the perplexity loss of Q4_K_M with
#: 0.07 (llama.cpp).
SIZE_EXPONENT = 0.15
REFERENCE_PARAMETERS = 8.03e9  # Llama-3-8B, on which the divergences were measured
#: Nats of divergence by type of cache. No published table covers caches: they are taken to cost as much as
#: weights stored in the same blocks do, hence `assumed`, and the interval of the loss spans a factor of
#: three.
KV_NATS: dict[str, float] = {
    "f32": 0.0, "f16": 0.0, "bf16": 0.0, "q8_0": 0.0014, "int8": 0.0014, "fp8": 0.005, "fp8_e4m3": 0.005,
    "fp8_e5m2": 0.02, "q5_1": 0.018, "q5_0": 0.022, "q4_1": 0.072, "q4_0": 0.072, "iq4_nl": 0.036, "int4": 0.072,
    "nvfp4": 0.072,
}  # fmt: skip


@dataclass(frozen=True)
class Ratings:
    """Ability (log-odds) of each model in each skill, its standard deviation, and how many scores stand
    behind it."""

    rows: Mapping[str, int]
    skills: tuple[str, ...]
    mean: Array
    deviation: Array
    n_scores: NDArray[np.int64]
    schemes: Mapping[str, tuple[float, float, str]]  # nats, factor of the interval, origin
    by_size: tuple[float, ...]  # coefficients of `estimators.ability.features`
    by_size_deviation: float


@cache
def load() -> Ratings:
    """The compiled ratings."""
    raw: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8"))
    return Ratings(
        {name: i for i, name in enumerate(raw["models"])},
        tuple(raw["skills"]),
        np.array([row["mean"] for row in raw["models"].values()], dtype=float),
        np.array([row["deviation"] for row in raw["models"].values()], dtype=float),
        np.array([row["n_scores"] for row in raw["models"].values()], dtype=np.int64),
        {name: (row[0], row[1], row[2]) for name, row in raw["schemes"].items()},
        tuple(raw["by_size"]),
        float(raw["by_size_deviation"]),
    )


def ability(
    models: Iterable[tuple[str, float, float]], weights: Mapping[str, float]
) -> tuple[Array, Array, Array]:
    """(mean, deviation, n_scores) for models given as (id, total parameters, active parameters), skills mixed
    by `weights`. Models that are not rated count by size alone. Deviations of skills are taken as fully
    correlated."""
    ratings = load()
    weight = np.array([weights.get(skill, 0.0) for skill in ratings.skills])
    if weight.sum() == 0:
        return _by_size_only(models)
    weight /= weight.sum()
    found = []
    for name, total, active in models:
        row = ratings.rows.get(name)
        if row is None:
            found.append((_sized(total, active), ratings.by_size_deviation, 0))
        else:
            found.append((ratings.mean[row] @ weight, ratings.deviation[row] @ weight, ratings.n_scores[row]))
    columns = np.array(found, dtype=float).reshape(-1, 3)
    return columns[:, 0], columns[:, 1], columns[:, 2]


def _sized(total: float, active: float) -> float:
    from estimators.ability import features

    ratings = load()
    values = features(max(total, 1e6) / 1e9, max(active, 1e6) / 1e9, 0.0, 0.0, False)
    return float(np.dot(ratings.by_size, values))


def _by_size_only(models: Iterable[tuple[str, float, float]]) -> tuple[Array, Array, Array]:
    """A skill without any published score (embedding): larger is assumed better, and the width says how
    little is known."""
    sizes = np.array([math.log10(max(total, 1e6) / 1e9) for _, total, _ in models])
    return 0.4 * sizes, np.full(len(sizes), 0.7), np.zeros(len(sizes))


def loss(schemes: Iterable[str], kv_types: Iterable[str], parameters: Array) -> tuple[Array, Array, Array]:
    """(low, best, high) log-odds that each scheme and cache type cost a model of so many parameters."""
    table = load().schemes
    rows = [table.get(name, (0.0, 1.0, "assumed")) for name in schemes]
    nats = np.array([row[0] for row in rows])
    factor = np.array([row[1] for row in rows])
    cache_nats = np.array([KV_NATS.get(name, 0.0) for name in kv_types])
    scale = LOG_ODDS_PER_NAT * (REFERENCE_PARAMETERS / np.maximum(parameters, 1e7)) ** SIZE_EXPONENT
    return (
        scale * (nats / factor + cache_nats / 3),
        scale * (nats + cache_nats),
        scale * (nats * factor + cache_nats * 3),
    )


def score(log_odds: Array | float) -> Any:
    """Percent of a benchmark of median difficulty."""
    return 100.0 / (1.0 + np.exp(-np.asarray(log_odds)))


def rate(
    model: str, total: float, active: float, scheme: str, kv_type: str, weights: Mapping[str, float]
) -> Quantity:
    """The score of one model in one scheme, in percent."""
    mean, deviation, n_scores = (column[0] for column in ability([(model, total, active)], weights))
    low, best, high = (column[0] for column in loss([scheme], [kv_type], np.array([total])))
    ends = (mean - best, Z90 * deviation)
    return Quantity(
        float(score(ends[0] - math.hypot(ends[1], high - best))),
        float(score(ends[0])),
        float(score(ends[0] + math.hypot(ends[1], best - low))),
        "calibrated" if n_scores else "assumed",
        f"{n_scores:.0f} published scores" if n_scores else "no published score: size, date and relatives",
    )
