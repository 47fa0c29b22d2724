"""Sampling, generation, beams and speculation follow their definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import runner_tiny

from runner.errors import RunnerError
from runner.sampling import Sampling, distribution, draw, pick

pytest.importorskip("numba")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runner_tiny.write(tmp_path_factory.mktemp("tiny") / "m.gguf", "llama", "Q8_0")


@pytest.fixture(scope="module")
def engine(tiny: Path):  # type: ignore[no-untyped-def]
    import runner

    made = runner.load(tiny, n_context=128, n_threads=1, n_batch=32)
    yield made
    made.close()


LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.06, 0.04]))


def test_top_k_top_p_and_min_p_keep_what_their_papers_say() -> None:
    keep = lambda **s: set(np.flatnonzero(distribution(LOGITS, Sampling(temperature=1.0, **s))).tolist())  # noqa: E731
    assert keep() == {0, 1, 2, 3, 4}
    assert keep(top_k=2) == {0, 1}
    assert keep(top_p=0.74) == {0, 1}
    assert keep(top_p=0.76) == {0, 1, 2}
    assert keep(min_p=0.2) == {0, 1, 2}
    assert distribution(LOGITS, Sampling()).tolist() == [1, 0, 0, 0, 0]


def test_temperature_flattens_and_the_penalty_moves_away_from_what_was_said() -> None:
    hot, cold = (distribution(LOGITS, Sampling(temperature=t)) for t in (2.0, 0.5))
    assert hot[0] < 0.5 < cold[0]
    np.testing.assert_allclose(distribution(LOGITS, Sampling(temperature=1.0)), np.exp(LOGITS), rtol=1e-12)
    logits = np.array([2.0, 1.9, -1.0])
    said = distribution(logits, Sampling(repetition_penalty=1.5), [0])
    assert int(np.argmax(said)) == 1
    assert (
        distribution(logits, Sampling(temperature=1.0, repetition_penalty=2.0), [2])[2]
        < np.exp(-1) / np.exp(logits).sum()
    )


def test_draws_follow_the_distribution_and_the_seed() -> None:
    chances = distribution(LOGITS, Sampling(temperature=1.0))
    rng = np.random.default_rng(1)
    counts = np.bincount([draw(chances, rng) for _ in range(20_000)], minlength=5) / 20_000
    np.testing.assert_allclose(counts, chances, atol=0.012)
    a, b = ([pick(LOGITS, Sampling(temperature=1.0), [], rng) for _ in range(20)]
            for rng in (np.random.default_rng(3), np.random.default_rng(3)))  # fmt: skip
    assert a == b


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_p": 0}, {"min_p": 2}, {"repetition_penalty": 0}, {"top_k": -1}]
)
def test_senseless_settings_are_refused_in_a_sentence(wrong: dict) -> None:
    with pytest.raises(RunnerError, match=" is "):
        Sampling(**wrong)


def _tokens(steps) -> list[int]:  # type: ignore[no-untyped-def]
    return [s.token for s in steps]


def test_greedy_streaming_stops_at_stop_tokens_and_at_the_limit(engine) -> None:  # type: ignore[no-untyped-def]
    from runner import generate

    engine.rewind(0)
    made = _tokens(generate.stream(engine, [1, 2, 3], Sampling(), 12))
    assert len(made) == 12
    engine.rewind(0)
    stop = next(t for t in made if made.index(t) > 0)
    assert _tokens(generate.stream(engine, [1, 2, 3], Sampling(), 12, {stop})) == made[: made.index(stop)]
    engine.rewind(0)
    full = _tokens(generate.stream(engine, list(range(120)), Sampling(), 1000))
    assert len(full) == 9  # eight more fit the cache of 128; the ninth needs no room


def test_one_beam_is_greedy_and_more_beams_are_never_less_likely(engine) -> None:  # type: ignore[no-untyped-def]
    from runner import generate

    engine.rewind(0)
    greedy = _tokens(generate.stream(engine, [5, 6, 7], Sampling(), 8))
    engine.rewind(0)
    (one,) = generate.beams(engine, [5, 6, 7], 1, 8)
    assert one[0] == greedy
    engine.rewind(0)
    four = generate.beams(engine, [5, 6, 7], 4, 8)
    assert len(four) == 4
    assert four[0][1] >= one[1] - 1e-9
    assert four == sorted(four, key=lambda b: -b[1])
    for tokens, score in four:
        assert score == pytest.approx(_log_probability(engine, [5, 6, 7], tokens) / len(tokens), abs=0.02)


class Contrary:
    """A draft that always expects the next number."""

    vocab_size, n_batch, n_context, n_tokens = runner_tiny.VOCAB, 32, 128, 0

    def prefill(self, tokens: list[int]) -> np.ndarray:
        self.n_tokens += len(tokens)
        return np.eye(1, self.vocab_size, (tokens[-1] + 1) % self.vocab_size)[0]

    def decode(self, token: int) -> np.ndarray:
        return self.prefill([token])

    def rewind(self, n_tokens: int) -> None:
        self.n_tokens = n_tokens

    def close(self) -> None:
        """Nothing to close."""


def _log_probability(engine, prompt: list[int], tokens: list[int]) -> float:  # type: ignore[no-untyped-def]
    from runner.sampling import log_softmax

    engine.rewind(0)
    rows = engine.prefill(prompt + tokens, all_logits=True)[len(prompt) - 1 :]
    return sum(float(log_softmax(row)[t]) for row, t in zip(rows, tokens, strict=False))


def test_a_draft_equal_to_the_model_is_always_accepted_and_another_changes_nothing(engine, tiny) -> None:  # type: ignore[no-untyped-def]
    import runner
    from runner import generate

    engine.rewind(0)
    greedy = _tokens(generate.stream(engine, [9, 8, 7], Sampling(), 24))
    for same in (True, False):
        draft = runner.load(tiny, n_context=128, n_threads=1, n_batch=32) if same else Contrary()
        count = generate.Acceptance()
        engine.rewind(0)
        made = _tokens(generate.speculate(engine, draft, [9, 8, 7], Sampling(), 24, n_draft=4, count=count))
        draft.close()
        assert made == greedy
        assert count.rate == 1 if same else count.rate < 0.5
        assert count.proposed >= count.accepted
        assert 1 <= count.tokens_per_step <= 5


def test_a_draft_with_another_vocabulary_is_refused(engine) -> None:  # type: ignore[no-untyped-def]
    from types import SimpleNamespace

    from runner import generate

    with pytest.raises(RunnerError, match="they must share"):
        next(generate.speculate(engine, SimpleNamespace(vocab_size=5), [1], Sampling(), 4))  # type: ignore[arg-type]
