"""Index keys that stand for several tokens: what they are made of, however a prompt is cut, and what is chosen by
them."""

# mypy: disable-error-code=no-untyped-def
from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba")

from modeldb.errors import BrokenFile, UnsupportedModel
from runner import indexer, kernel_index, kernel_index_pool
from runner.keys import Keys
from runner.program import Crew, Program

WIDTH, POOL = 64, 4


def ran(position: int, n_tokens: int, *operations) -> None:
    program = Program()
    for operation, *arguments in operations:
        program.add("it", operation, *arguments)
    crew = Crew(2)
    crew.run(program.finish(), n_tokens, position)
    crew.close()


@pytest.mark.parametrize("cuts", [(23,), (4, 8, 11), (3, 20), (1,) * 23, (5, 1, 1, 9, 7)])
def test_a_key_is_the_gated_mean_of_its_tokens_however_a_prompt_is_cut(cuts: tuple[int, ...]) -> None:
    n = sum(cuts)
    rng = np.random.default_rng(n)
    keys, gates = (rng.standard_normal((n, WIDTH)).astype(np.float32) for _ in range(2))
    added = rng.standard_normal((POOL, WIDTH)).astype(np.float32)
    kept, rows = np.zeros((POOL - 1, 2, WIDTH), np.float32), np.zeros((n // POOL + 1, WIDTH), np.float16)
    scratch, each = np.zeros(2 * 3 * WIDTH, np.float32), kernel_index_pool.scratch_bytes(WIDTH)
    first = 0
    for size in cuts:
        part = slice(first, first + size)
        shared = (keys[part].copy(), gates[part].copy(), WIDTH, POOL, added, kept)
        pool = kernel_index_pool.pool("F16")
        ran(
            first,
            size,
            (pool, *shared, rows, WIDTH * 2, scratch, each),
            (kernel_index_pool.remember, *shared),
        )
        first += size
    whole = n // POOL * POOL
    weights = np.exp(gates[:whole].reshape(-1, POOL, WIDTH) + added)
    expected = (weights * keys[:whole].reshape(-1, POOL, WIDTH)).sum(1) / weights.sum(1)
    assert np.abs(rows[: n // POOL] - expected).max() < 2e-3
    assert (rows[n // POOL] == 0).all()


@pytest.mark.parametrize("n", [3, 11, 30, 121])
def test_tokens_of_a_prompt_see_what_a_step_would_choose(n: int) -> None:
    heads, k, before = 6, 3, 5
    rng = np.random.default_rng(n)
    end = before + n
    keys = rng.standard_normal((end // POOL, WIDTH)).astype(np.float16)
    queries = rng.standard_normal((n, heads, WIDTH)).astype(np.float32)
    weights = rng.standard_normal((n, heads)).astype(np.float32)
    each = kernel_index.scratch_bytes(heads)
    scratch = np.zeros(2 * each, np.uint8)
    mask, rows = np.zeros((n, end), np.uint8), np.zeros((2, end), np.float32)
    shared = (heads, WIDTH, keys, WIDTH * 2)
    many = kernel_index.choices("F16")
    ran(before, n, (many, queries, *shared, weights, 0.5, rows, scratch, each, POOL, k, mask, end))
    for t in range(n):
        seen = before + t + 1
        found, count = np.full((k + 1) * POOL, -1, np.int64), np.zeros(1, np.int64)
        one = (
            kernel_index.scores("F16"),
            queries[t].copy(),
            *shared,
            weights[t].copy(),
            0.5,
            rows[0],
            scratch,
            each,
            POOL,
        )
        ran(seen - 1, 1, one, (kernel_index.positions, rows[0], k, found, count, POOL))
        chosen = found[: count[0]]
        assert chosen.tolist() == np.flatnonzero(mask[t]).tolist()
        assert len(chosen) == indexer.Indexer(heads, WIDTH, k * POOL, POOL).seen(seen)
        tail = seen % POOL
        assert chosen[len(chosen) - tail :].tolist() == list(range(seen - tail, seen))
        products = np.maximum(keys[: seen // POOL].astype(np.float32) @ queries[t].T, 0) @ weights[t]
        best = sorted(np.argsort(-products, kind="stable")[:k].tolist())
        assert sorted({int(p) // POOL for p in chosen[: len(chosen) - tail]}) == best


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"kpool": 5}, BrokenFile, "12 tokens chosen by index keys of 5"),
        ({"kpool": 0}, BrokenFile, "12 tokens chosen by index keys of 0"),
        ({"kpool_select_tail": False}, UnsupportedModel, "an indexer that hides the last tokens"),
    ],
)
def test_pools_that_cannot_be_are_refused_in_a_line(given, error, said: str) -> None:
    sizes = {"head_count": 8, "key_length": 64, "top_k": 12, "kpool": 4} | given
    metadata = {f"x.attention.indexer.{k}": v for k, v in sizes.items()}
    with pytest.raises(error, match=said):
        indexer.read(Keys({"general.architecture": "x", **metadata}, "m"), 0)
