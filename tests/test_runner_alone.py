"""Architectures that llama.cpp does not have: the runner against Hugging Face's Transformers
(benchmarks/golden_transformers.py) on tiny files."""

# mypy: disable-error-code=no-untyped-def
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import runner_tiny

pytest.importorskip("numba")

from modeldb.errors import UnsupportedModel
from runner.engine import load

GOLDEN = dict(np.load(Path(__file__).parent / "data/runner/golden_transformers.npz").items())
CASES = sorted({tuple(key.split("/")[:2]) for key in GOLDEN})
# of float32 in the reference: the runner rounds caches to float16, and inputs of Q8_0 matrices to eight bits
CLOSE = {"F16": 6e-3, "Q8_0": 0.1}


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_logits_and_greedy_continuations_are_transformers(tmp_path, name: str, kind: str) -> None:
    expected, greedy = GOLDEN[f"{name}/{kind}/logits"], GOLDEN[f"{name}/{kind}/greedy"].tolist()
    engine = load(runner_tiny.write(tmp_path / "m.gguf", name, kind), n_threads=2)
    try:
        logits = engine.prefill(runner_tiny.prompt(), all_logits=True)[-len(expected) :]
        assert np.abs(logits - expected).max() <= CLOSE[kind] * expected.std()
        found, last = [], logits[-1]
        for _ in greedy:
            found.append(int(last.argmax()))
            last = engine.decode(found[-1])
    finally:
        engine.close()
    assert found == greedy


def test_embeddings_without_a_logit_are_tokens_all_the_same(tmp_path) -> None:
    engine = load(runner_tiny.write(tmp_path / "m.gguf", "mllama", "F16"), n_threads=1)
    n_words = runner_tiny.VOCAB
    assert engine.vocab_size == n_words - 8
    assert engine.prefill([1, n_words - 1], all_logits=True).shape == (2, n_words - 8)
    with pytest.raises(ValueError, match=f"token {n_words} is outside"):
        engine.decode(n_words)
    engine.close()


def test_a_step_leaves_layers_that_need_an_image_alone(tmp_path) -> None:
    engine = load(runner_tiny.write(tmp_path / "m.gguf", "mllama", "F16"), n_threads=1)
    sizes = {name: w.data.nbytes for name, w in engine.weights.tensors.items()}
    table = sizes.pop("token_embd.weight")
    idle = sum(size for name, size in sizes.items() if name.startswith("blk.1."))
    assert engine.meter.weight_bytes == table + sum(sizes.values())
    assert engine.meter.token_weight_bytes == table // runner_tiny.VOCAB + sum(sizes.values()) - idle
    kept = 2 * runner_tiny.KV_HEADS * runner_tiny.HEAD_DIM * 2
    assert engine.cache.bytes_at(10) == 10 * (runner_tiny.LAYERS - 1) * kept
    engine.close()


def test_positions_of_opt_end_two_rows_before_its_table(tmp_path) -> None:
    path = runner_tiny.write(tmp_path / "m.gguf", "opt", "F16")
    load(path, n_context=runner_tiny.CONTEXT, n_threads=1).close()
    with pytest.raises(UnsupportedModel, match=f"end at {runner_tiny.CONTEXT} tokens"):
        load(path, n_context=runner_tiny.CONTEXT + 1, n_threads=1)
