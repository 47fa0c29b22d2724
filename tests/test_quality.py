"""Quality: laws of the ratings and of what quantization costs; the compiled file equals its sources."""

from __future__ import annotations

import json

import numpy as np
import pytest

from estimators import ability, compile_quality, quality

CHAT = {"general": 0.5, "instruct": 0.5}


def rate(model: str, billions: float, scheme: str = "F16", kv: str = "f16", weights: dict[str, float] = CHAT):  # type: ignore[no-untyped-def]
    return quality.rate(model, billions * 1e9, billions * 1e9, scheme, kv, weights)


def test_the_compiled_ratings_equal_their_sources() -> None:
    fresh, stored = compile_quality.compiled(), json.loads(quality.DATA.read_text(encoding="utf-8"))
    assert fresh["models"].keys() == stored["models"].keys()
    assert fresh["schemes"] == stored["schemes"]
    for name, row in fresh["models"].items():
        assert row["n_scores"] == stored["models"][name]["n_scores"]
        assert row["mean"] == pytest.approx(stored["models"][name]["mean"], abs=0.005)
        assert row["deviation"] == pytest.approx(stored["models"][name]["deviation"], abs=0.005)


def test_fewer_bits_never_gain() -> None:
    ladder = ["F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"]
    scores = [rate("llama-3.1-8b-instruct", 8, scheme).best for scheme in ladder]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] - scores[4] < 3 < scores[0] - scores[6]


def test_a_smaller_model_loses_more_to_the_same_scheme() -> None:
    _, losses, _ = quality.loss(["Q4_K_M"] * 3, ["f16"] * 3, np.array([1e9, 8e9, 70e9]))
    assert losses[0] > losses[1] > losses[2] > 0


def test_a_quantized_cache_costs_something() -> None:
    full, eight, four = (rate("qwen3-8b", 8.2, "Q4_K_M", kv).best for kv in ("f16", "q8_0", "q4_0"))
    assert full > eight > four


def test_without_evidence_the_interval_is_wider_and_assumed() -> None:
    known, unknown = rate("llama-3.1-8b-instruct", 8), rate("qwen3.5-9b", 9)
    assert known.origin == "calibrated"
    assert unknown.origin == "assumed"
    assert unknown.high - unknown.low > known.high - known.low


def test_a_model_nobody_knows_is_rated_by_size() -> None:
    small, large = rate("my-own-model", 1), rate("my-own-model", 70)
    assert small.best < large.best
    assert small.origin == "assumed"


@pytest.mark.parametrize(
    ("better", "worse", "skill"),
    [
        ("qwen2.5-72b-instruct", "qwen2.5-7b-instruct", "general"),
        ("gemma-3-27b-it", "gemma-3-4b-it", "reasoning"),
        ("llama-3.1-70b-instruct", "llama-3.1-8b-instruct", "general"),
        ("qwen2.5-coder-7b-instruct", "qwen2.5-7b-instruct", "code"),
        ("qwen3-32b", "llama-2-70b-hf", "general"),
        ("llama-3.2-3b-instruct", "llama-3.2-1b-instruct", "instruct"),
    ],
)
def test_orders_that_nobody_disputes(better: str, worse: str, skill: str) -> None:
    ratings = quality.load()
    column = ratings.skills.index(skill)
    assert ratings.mean[ratings.rows[better], column] > ratings.mean[ratings.rows[worse], column]


def test_one_inflated_report_moves_a_model_little() -> None:
    """Thirty models of two families; one score far above everything else of its model."""
    rng = np.random.default_rng(3)
    subjects = [
        ability.Subject(
            f"m{i}", f"p{i % 3}", f"f{i % 6}", ability.features(2.0 + i, 2.0 + i, 0.5, 1.0, False)
        )
        for i in range(30)
    ]
    truth = np.linspace(-1, 1, 30)
    difficulty = rng.normal(0, 0.7, 8)
    scores = [
        ability.Score(
            i, f"b{b}", "general", float(1 / (1 + np.exp(-(truth[i] - difficulty[b] + rng.normal(0, 0.2)))))
        )
        for i in range(30)
        for b in range(8)
        if (i + b) % 3
    ]
    honest = ability.fit(subjects, scores, ("general",))
    assert np.corrcoef(honest.mean[:, 0], truth)[0, 1] > 0.97
    inflated = [*scores, ability.Score(0, "b0", "general", 0.98)]
    moved = ability.fit(subjects, inflated, ("general",)).mean[0, 0] - honest.mean[0, 0]
    assert 0 <= moved < 0.4


def test_an_unrated_relative_inherits_with_a_wider_interval() -> None:
    subjects = [
        ability.Subject("rated", "p", "f", ability.features(8, 8, 1, 1, False)),
        ability.Subject("sibling", "p", "f", ability.features(8, 8, 1, 1, False)),
        ability.Subject("stranger", "q", "g", ability.features(8, 8, 1, 1, False)),
        *(ability.Subject(f"m{i}", "q", "h", ability.features(8, 8, 1, 1, False)) for i in range(5)),
    ]
    scores = [ability.Score(0, f"b{b}", "general", 0.95) for b in range(6)]
    scores += [ability.Score(3 + i, f"b{b}", "general", 0.5) for i in range(5) for b in range(6)]
    fitted = ability.fit(subjects, scores, ("general",))
    rated, sibling, stranger = fitted.mean[:3, 0]
    assert rated > sibling > stranger
    assert fitted.deviation[0, 0] < fitted.deviation[1, 0] < fitted.deviation[2, 0]
