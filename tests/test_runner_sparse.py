"""Sparse attention: what an indexer chooses, and what is seen of it by steps and by prompts."""

# mypy: disable-error-code=no-untyped-def
from __future__ import annotations

import numpy as np
import pytest
import runner_tiny
import tiny_latent

pytest.importorskip("numba")

from modeldb.errors import BrokenFile, UnsupportedModel
from runner import hyper, kernel_index
from runner.engine import load
from runner.program import Crew, Program


def ran(operation, position: int, n_tokens: int, *arguments) -> None:
    program = Program()
    program.add("it", operation, *arguments)
    crew = Crew(2)
    crew.run(program.finish(), n_tokens, position)
    crew.close()


@pytest.mark.parametrize(("n", "k"), [(5, 8), (8, 8), (9, 8), (300, 8), (300, 299)])
@pytest.mark.parametrize("ties", [False, True])
def test_the_chosen_are_the_largest_in_order_and_the_first_of_equals(n: int, k: int, ties: bool) -> None:
    rng = np.random.default_rng(n)
    scores = rng.standard_normal(n).astype(np.float32)
    if ties:
        scores = np.round(scores)
    expected = sorted(np.argsort(-scores, kind="stable")[:k].tolist())
    found = np.full(k, -1, np.int64)
    count = np.zeros(1, np.int64)
    ran(kernel_index.positions, n - 1, 1, scores.copy(), k, found, count, 1)
    assert count[0] == min(n, k)
    assert found[: min(n, k)].tolist() == expected
    assert (found[min(n, k) :] == -1).all()


def test_hadamards_matrix_keeps_products_and_undoes_itself() -> None:
    x = np.random.default_rng(0).standard_normal((3, 2, 64)).astype(np.float32)
    y = x.copy()
    ran(kernel_index.hadamard, 0, 3, y, 2, 64, 128)
    assert np.allclose((x[:, 0] * x[:, 1]).sum(-1), (y[:, 0] * y[:, 1]).sum(-1), atol=1e-4)
    assert not np.allclose(x, y, atol=0.1)
    ran(kernel_index.hadamard, 0, 3, y, 2, 64, 128)
    assert np.allclose(x, y, atol=1e-5)


@pytest.mark.parametrize("n", [3, 9, 200])
def test_tokens_of_a_prompt_see_what_a_step_would_choose(n: int) -> None:
    heads, width, k, before = 6, 64, 5, 4
    rng = np.random.default_rng(n)
    end = before + n
    keys = rng.standard_normal((end, width)).astype(np.float16)
    queries = rng.standard_normal((n, heads, width)).astype(np.float32)
    weights = rng.standard_normal((n, heads)).astype(np.float32)
    scratch = np.zeros(2 * kernel_index.scratch_bytes(heads), np.uint8)
    mask, rows = np.zeros((n, end), np.uint8), np.zeros((2, end), np.float32)
    shared = (heads, width, keys, width * 2)
    tail = (scratch, kernel_index.scratch_bytes(heads))
    ran(kernel_index.choices("F16"), before, n, queries, *shared, weights, 0.5, rows, *tail, 1, k, mask, end)
    for t in range(n):
        seen = before + t + 1
        products = np.maximum(keys[:seen].astype(np.float32) @ queries[t].T, 0) @ weights[t] * 0.5
        found, chosen = np.zeros(end, np.float32), np.full(k, -1, np.int64)
        ran(
            kernel_index.scores("F16"),
            seen - 1,
            1,
            queries[t].copy(),
            *shared,
            weights[t].copy(),
            0.5,
            found,
            *tail,
            1,
        )
        assert np.allclose(found[:seen], products, atol=1e-3)
        ran(kernel_index.positions, seen - 1, 1, found, k, chosen, np.zeros(1, np.int64), 1)
        assert chosen[chosen >= 0].tolist() == np.flatnonzero(mask[t]).tolist()
        assert mask[t].sum() == min(seen, k)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return runner_tiny.write(tmp_path_factory.mktemp("sparse") / "x.gguf", "glm-dsa-shared", "F16")


def test_what_is_chosen_matters_and_the_cache_holds_a_key_of_each_indexer(path) -> None:
    sparse = load(path, n_context=128, n_threads=2)
    tokens = runner_tiny.prompt() * 3
    metadata = dict(sparse.weights.metadata)
    metadata["glm-dsa.attention.indexer.top_k"] = 128
    everything = load(type(sparse.weights)("x", metadata, sparse.weights.tensors), n_context=128, n_threads=2)
    near = tiny_latent.TOP_K
    assert np.abs(sparse.prefill(tokens[:near]) - everything.prefill(tokens[:near])).max() < 1e-4
    a, b = sparse.prefill(tokens[near:120]), everything.prefill(tokens[near:120])
    assert np.abs(a - b).max() > 0.01 * b.std()
    latent, key = (tiny_latent.RANK + tiny_latent.ROTARY) * 2, tiny_latent.INDEX_WIDTH * 2
    assert sparse.cache.allocated_bytes == 128 * (4 * latent + 2 * key)
    assert sparse.cache.bytes_at(100) == 100 * (4 * latent + 2 * key)
    sparse.close()
    everything.close()


@pytest.mark.parametrize("cache", ["q8_0", "q4_0"])
def test_indexers_keys_are_cached_in_the_caches_format(path, cache: str) -> None:
    exact, coarse = (
        load(path, n_context=64, n_threads=2),
        load(path, n_context=64, n_threads=2, cache_type=cache),
    )
    a, b = (e.prefill(runner_tiny.prompt()) for e in (exact, coarse))
    assert 0 < np.abs(a - b).max() < a.std()
    assert coarse.cache.allocated_bytes < 0.6 * exact.cache.allocated_bytes
    exact.close()
    coarse.close()


@pytest.mark.parametrize(
    ("key", "value", "error", "said"),
    [
        ("key_length", 96, UnsupportedModel, "indexer heads of width 96"),
        ("key_length", 32, UnsupportedModel, "indexer heads of width 32"),
        (
            "types",
            [False, True, True, True],
            BrokenFile,
            "the first layer shares an indexer that none before it has",
        ),
        ("types", [True], BrokenFile, "has 1 entries for 4 layers"),
    ],
)
def test_indexers_that_cannot_be_are_refused_in_a_line(path, key: str, value, error, said: str) -> None:
    engine = load(path, n_context=64, n_threads=1)
    metadata = {**engine.weights.metadata, f"glm-dsa.attention.indexer.{key}": value}
    engine.close()
    with pytest.raises(error, match=said):
        hyper.read(metadata, "x")
