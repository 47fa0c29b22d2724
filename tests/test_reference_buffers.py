"""Buffers of a batch: predicted from the model's layers, and what the runner allocates."""

from __future__ import annotations

import pytest

from estimators.reference_buffers import activation_bytes
from modeldb import catalogue, schemes
from runner import sampled, synthetic

pytest.importorskip("numba")


@pytest.mark.parametrize(
    "name",
    [
        "qwen3-30b-a3b",
        "deepseek-v3",
        "lfm2-8b-a1b",
        "gpt-oss-20b",
        "falcon-h1-0.5b-instruct",
        "gemma-3-27b-it",
        "minimax-text-01",
    ],
)
def test_predicted_buffers_hold_what_the_runner_allocates(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # nothing runs: no weights are needed
    monkeypatch.setattr(synthetic, "_repeated", lambda pattern, out: out)
    model, held = catalogue.load().resolve(name), schemes.get("Q4_0")
    sample = sampled.load(model, held, 513, n_threads=2, n_filled=1)
    sample.engine._program("last")
    measured = sample.activation_bytes
    sample.close()
    found = activation_bytes(model, held, 512)
    assert found.low <= measured <= found.high
    assert found.best == pytest.approx(measured, rel=0.15)


def test_more_tokens_and_more_experts_need_more_room() -> None:
    model, held = catalogue.load().resolve("qwen3-30b-a3b"), schemes.get("Q4_0")
    assert activation_bytes(model, held, 256).best < activation_bytes(model, held, 512).best
    dense = catalogue.load().resolve("qwen3-8b")
    assert activation_bytes(dense, held, 512).high < activation_bytes(dense, held, 4096).low
