"""From logits to the next token: penalties, truncation, temperature, a seeded draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runner.errors import RunnerError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. The defaults are greedy.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_k: keep this many of the likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens whose probabilities reach this sum (arXiv 1904.09751).
        min_p: keep tokens at least this likely, as a share of the likeliest (arXiv 2407.01082).
        repetition_penalty: divides positive and multiplies negative logits of recent ones (arXiv 1909.05858).
        penalty_last: how many of the last tokens count as recent.
        seed: of the draws.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    penalty_last: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        checks = (
            (self.temperature >= 0, "the temperature is 0 or more"),
            (self.top_k >= 0, "top-k is 0 or more"),
            (0 < self.top_p <= 1, "top-p is above 0 and at most 1"),
            (0 <= self.min_p <= 1, "min-p is between 0 and 1"),
            (self.repetition_penalty > 0, "the repetition penalty is above 0"),
            (self.penalty_last >= 0, "the number of recent tokens is 0 or more"),
        )
        for holds, rule in checks:
            if not holds:
                raise RunnerError(rule)


def distribution(logits: np.ndarray, sampling: Sampling, recent: Sequence[int] = ()) -> np.ndarray:
    """Probabilities (float64 [vocab]) of the next token, in llama.cpp's order of samplers: penalty, top-k,
    top-p, min-p, temperature. Greedy is a one on the likeliest token."""
    scores = np.asarray(logits, np.float64).copy()
    if sampling.repetition_penalty != 1.0 and sampling.penalty_last:
        ids = np.unique(np.asarray(recent[-sampling.penalty_last :], np.int64))
        seen = scores[ids]
        scores[ids] = np.where(
            seen > 0, seen / sampling.repetition_penalty, seen * sampling.repetition_penalty
        )
    if sampling.temperature == 0:
        out = np.zeros(len(scores))
        out[int(np.argmax(scores))] = 1.0
        return out
    if 0 < sampling.top_k < len(scores):
        kept = np.argpartition(-scores, sampling.top_k - 1)[: sampling.top_k]
        scores = _only(scores, kept)
    if sampling.top_p < 1:
        order = np.argsort(-scores, kind="stable")
        reached = np.cumsum(softmax(scores)[order])
        scores = _only(scores, order[: int(np.searchsorted(reached, sampling.top_p)) + 1])
    if sampling.min_p > 0:
        floor = scores.max() + np.log(sampling.min_p)
        scores = np.where(scores >= floor, scores, -np.inf)
    return softmax(scores / sampling.temperature)


def draw(probabilities: np.ndarray, rng: np.random.Generator) -> int:
    """A token by its probability."""
    reached = np.cumsum(probabilities)
    return int(min(np.searchsorted(reached, rng.random() * reached[-1], side="right"), len(reached) - 1))


def pick(logits: np.ndarray, sampling: Sampling, recent: Sequence[int], rng: np.random.Generator) -> int:
    """The next token."""
    if sampling.temperature == 0 and sampling.repetition_penalty == 1.0:
        return int(np.argmax(logits))
    return draw(distribution(logits, sampling, recent), rng)


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = np.asarray(scores, np.float64) - float(np.max(scores))
    return shifted - np.log(np.exp(shifted).sum())


def _only(scores: np.ndarray, kept: np.ndarray) -> np.ndarray:
    out = np.full(len(scores), -np.inf)
    out[kept] = scores[kept]
    return out
