"""Sparse attention by blocks: what is chosen, and what is seen of it by steps and by prompts."""

# mypy: disable-error-code=no-untyped-def
from __future__ import annotations

import numpy as np
import pytest
import runner_tiny

pytest.importorskip("numba")

from modeldb.errors import BrokenFile, UnsupportedModel
from runner import hyper, kernel_blocks, kernel_index
from runner.engine import load
from runner.program import Crew, Program


def ran(operation, position: int, n_tokens: int, *arguments) -> None:
    program = Program()
    program.add("it", operation, *arguments)
    crew = Crew(2)
    crew.run(program.finish(), n_tokens, position)
    crew.close()


@pytest.mark.parametrize(
    ("n", "size", "chosen", "local"), [(5, 8, 3, 1), (70, 8, 3, 1), (300, 300, 2, 1), (90, 16, 4, 2)]
)
def test_steps_and_prompts_choose_the_best_blocks_and_the_last(
    n: int, size: int, chosen: int, local: int
) -> None:
    heads, width, before = 3, 64, 4
    rng = np.random.default_rng(n)
    end = before + n
    most = -(-end // size)
    keys = rng.standard_normal((end, width)).astype(np.float16)
    queries = rng.standard_normal((n, heads, width)).astype(np.float32)
    bytes_each = kernel_index.scratch_bytes(heads)
    scratch = np.zeros(2 * bytes_each, np.uint8)
    tail = (most, scratch, bytes_each)
    shared = (heads, width, keys, width * 2, size, local, chosen)
    mask, rows = np.zeros((n, heads, most), np.uint8), np.zeros((2, heads, most), np.float32)
    ran(kernel_blocks.choices("F16"), before, n, queries, *shared, rows, *tail, mask)
    for t in range(n):
        seen = before + t + 1
        products = queries[t] @ keys[:seen].astype(np.float32).T
        blocks = -(-seen // size)
        best = np.stack([products[:, b * size : (b + 1) * size].max(1) for b in range(blocks)], 1)
        best[:, max(0, blocks - local) :] = np.inf
        want = np.sort(np.argsort(-best, axis=1)[:, :chosen], axis=1)
        for h in range(heads):
            assert np.flatnonzero(mask[t, h]).tolist() == want[h].tolist()
        found, listed, count = (
            np.zeros((heads, most), np.float32),
            np.zeros((heads, chosen), np.int64),
            np.zeros(1, np.int64),
        )
        ran(kernel_blocks.scores("F16"), seen - 1, 1, queries[t].copy(), *shared, found, *tail)
        ran(kernel_blocks.listed, seen - 1, 1, found, heads, most, chosen, size, listed, count)
        assert listed[:, : want.shape[1]].tolist() == want.tolist()
        assert count[0] == sum(min(size, seen - b * size) for b in want[0])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return runner_tiny.write(tmp_path_factory.mktemp("blocks") / "x.gguf", "minimax-m3-two", "F16")


def test_which_blocks_are_chosen_matters_and_the_cache_holds_a_key_of_each_indexer(path) -> None:
    sparse = load(path, n_context=128, n_threads=2)
    tokens = runner_tiny.prompt() * 3
    metadata = {**sparse.weights.metadata, "minimax-m3.attention.indexer.top_k": 16}
    everything = load(type(sparse.weights)("x", metadata, sparse.weights.tensors), n_context=128, n_threads=2)
    assert np.abs(sparse.prefill(tokens[:24]) - everything.prefill(tokens[:24])).max() < 1e-4
    a, b = sparse.prefill(tokens[24:120]), everything.prefill(tokens[24:120])
    assert np.abs(a - b).max() > 0.01 * b.std()
    row = 2 * runner_tiny.KV_HEADS * runner_tiny.HEAD_DIM * 2
    assert sparse.cache.allocated_bytes == 128 * (3 * row + 2 * 64 * 2)
    sparse.close()
    everything.close()


@pytest.mark.parametrize(
    ("key", "value", "error", "said"),
    [
        ("head_count", 4, BrokenFile, "4 indexer heads of width 64 for 2 key-value heads"),
        ("key_length", 48, BrokenFile, "of width 48"),
        ("top_k", 0, BrokenFile, "0 blocks of 8"),
        ("local_blocks", 0, UnsupportedModel, "0 of 3 blocks always seen"),
    ],
)
def test_indexers_that_cannot_be_are_refused_in_a_line(path, key: str, value, error, said: str) -> None:
    engine = load(path, n_context=64, n_threads=1)
    metadata = {**engine.weights.metadata, f"minimax-m3.attention.indexer.{key}": value}
    engine.close()
    with pytest.raises(error, match=said):
        hyper.read(metadata, "x")
