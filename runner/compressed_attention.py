"""Attention over compressed rows (DeepSeek-V4), as operations of a program.

Each token has one key, which is its value too, for all heads. A layer sees those of a window and, behind them, rows
that stand for several tokens each: all of them, or those that its indexer chooses. What attention gives is rotated
back, and projected in groups of heads before it is joined.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from runner import kernel_compress, kernel_index, kernel_ops, rotation
from runner.attention import attend, rotate, store
from runner.builder import Builder, Groups
from runner.cache import LayerCache
from runner.compressed import Compressed
from runner.indexer import Parts, Sight


def prepare(b: Builder, rotating: set[bool]) -> None:
    """Angles that turn heads back."""
    for near in sorted(rotating):
        frequency, magnitude = rotation.frequencies(b.h, near, {}, b.cache.n_context)
        out = b.floats(f"angles_back_{near}", 2 * len(frequency))
        b.program.add("angles", kernel_ops.rope_angles, -frequency, len(frequency), out, magnitude)


class _Compressor:
    """One of a layer's two: of its keys, or of its indexer's. `first`: of its numbers among those that are kept."""

    def __init__(self, b: Builder, i: int, name: str, width: int, first: int) -> None:
        own = b.h.compressed
        assert own is not None
        self.b, self.i, self.name, self.width, self.first = b, i, f"blk.{i}.{name}_compressor", width, first
        self.reach, self.rate = own.reach(i), own.rates[i]
        self.n = width * self.reach
        self.values, self.scores = b.floats(f"{name}_values", self.n), b.floats(f"{name}_scores", self.n)

    def of_input(self) -> Parts:
        """Products with the layer's normed input."""
        shape = (self.b.h.hidden, self.n)
        return [
            (self.b.w.get(f"{self.name}_{part}.weight", shape), out, self.n, None)
            for part, out in (("kv", self.values), ("gate", self.scores))
        ]

    def make(self, rows: np.ndarray, row_bytes: int, mixed: bool) -> None:
        """Store the rows that are complete; keep tokens for those to come. `mixed`: by Hadamard's matrix."""
        b, state = self.b, self.b.cache.states[self.i]
        assert state is not None
        added = b.vector(b.w.get(f"{self.name}_ape.weight", (self.n, self.rate)).name, self.n * self.rate)
        norm = b.vector(b.w.get(f"{self.name}_norm.weight").name, self.width)
        frequency, _ = rotation.frequencies(b.h, False, {}, b.cache.n_context)
        shared = (self.values, self.scores, self.width, self.reach, self.rate, added, state.tail[self.first :],
                  state.state[self.first :])  # fmt: skip
        operation = kernel_compress.compress(b.cache.key_format)
        b.program.add("compress", operation, *shared, rows, row_bytes, norm, float(b.h.eps), frequency, len(frequency),
                      int(mixed), b.room.scratch, b.room.scratch_bytes)  # fmt: skip
        b.program.add("keep", kernel_compress.keep, *shared)


def mix(b: Builder, i: int, x: np.ndarray, normed: np.ndarray, angles: np.ndarray | None) -> None:
    """x += layer i's attention for `normed`."""
    h, p, own, c, heads = b.h, f"blk.{i}.", b.h.compressed, b.cache.layers[i], b.h.heads[i]
    assert own is not None
    width, n, nope = heads.width, heads.n_queries, heads.width - heads.rotary
    compressor = _Compressor(b, i, "attn", width, 0) if own.rates[i] else None
    choice = _Choice(b, i) if own.index_width(i) else None
    low = b.w.get(p + "attn_q_a.weight")
    rank = b.w.get(low.name, (h.hidden, low.rows)).rows
    narrow, q, key = b.floats("q_low", rank), b.floats("q", n), b.floats("key", width)
    kv = b.w.get(p + "attn_kv.weight", (h.hidden, width))
    parts: Parts = [(low, narrow, rank, None), (kv, key, width, None)]
    for each in (compressor, choice):
        parts += each.of_input() if each else []
    b.project(normed, h.hidden, parts)
    b.norm(narrow, b.vector(p + "attn_q_a_norm.weight", rank), narrow, rank)
    up = b.w.get(p + "attn_q_b.weight", (rank, n))
    b.project(narrow, rank, [(up, q, n, None), *(choice.of_queries(rank) if choice else [])])
    b.norm(q, None, q, width, heads.n, stride=n)
    b.norm(key, b.vector(p + "attn_kv_a_norm.weight", width), key, width)
    rotate(b, i, q[nope:], heads.n, width, n, angles, wait=False)
    rotate(b, i, key[nope:], 1, width, width, angles)
    store(b, c, False, key, width, wait=True)
    if compressor:
        compressor.make(c.further, c.key_row_bytes, mixed=False)
    if choice:
        choice.make(angles)
    mixed = b.floats("mixed", n)
    attend(b, i, q, n, 1, sight(b, i), b.vector(p + "attn_sinks.weight", heads.n), mixed)
    rotate(b, i, mixed[nope:], heads.n, width, n, b.floats(f"angles_back_{h.turns_near(i)}", heads.rotary))
    _join(b, i, x, mixed)


def _join(b: Builder, i: int, x: np.ndarray, mixed: np.ndarray) -> None:
    """x += what attention gave, each group of heads through a matrix of its own, and all through one."""
    own, p, n = b.h.compressed, f"blk.{i}.", b.h.heads[i].n_mixed
    assert own is not None
    groups, rank, width = own.groups, own.group_rank, n // own.groups
    flat = b.w.get(p + "attn_output_a.weight", (width, groups * rank))
    stacked = replace(flat, shape=(width, rank, groups), data=flat.data.reshape(-1))
    pairs, first = (
        b.room.integers("group_pairs", b.room.n_batch * groups),
        b.room.integers("group_first", groups + 1),
    )
    b.program.add("pairs", kernel_ops.pairs_by_head, pairs, first, groups)
    by_group, low = Groups(pairs, first, groups, groups), b.floats("mixed_low", groups * rank)
    b.pack_experts(mixed, width, [stacked], groups, by_group)
    b.expert_project(stacked, None, mixed, low, rank, groups, by_group)
    b.touched += flat.data.nbytes
    b.flops += 2 * flat.rows * flat.width
    b.join(x, low, b.w.get(p + "attn_output_b.weight", (groups * rank, b.h.hidden)))


# -- what is seen of the compressed rows ---------------------------------------------------------------------


class _Choice:
    """A layer's choice among its compressed rows: each has a key of its own, compressed alike."""

    def __init__(self, b: Builder, i: int) -> None:
        own = b.h.compressed
        assert own is not None
        self.b, self.i, self.compressed, self.own, self.rate = b, i, own, own.indexer, own.rates[i]
        self.prefix, self.n = f"blk.{i}.indexer.", own.indexer.n_heads * own.indexer.width
        self.queries, self.weights = (
            b.floats("index_q", self.n),
            b.floats("index_weights", own.indexer.n_heads),
        )
        first = (
            own.state_numbers(i, b.h.heads[i].width) - own.rates[i] * own.reach(i) ** 2 * own.indexer.width
        )
        self.compressor = _Compressor(b, i, "indexer", own.indexer.width, first)

    def of_input(self) -> Parts:
        """Products with the layer's normed input."""
        n = self.own.n_heads
        weight = self.b.w.get(self.prefix + "proj.weight", (self.b.h.hidden, n))
        return [*self.compressor.of_input(), (weight, self.weights, n, None)]

    def of_queries(self, rank: int) -> Parts:
        """Products with the compressed queries."""
        return [(self.b.w.get(self.prefix + "attn_q_b.weight", (rank, self.n)), self.queries, self.n, None)]

    def make(self, angles: np.ndarray | None) -> None:
        """Store the keys that are complete and choose."""
        b, own, c, add = self.b, self.own, self.b.cache.layers[self.i], self.b.program.add
        self.compressor.make(c.index_keys, c.index_row_bytes, mixed=True)
        rotary, fmt = b.h.heads[self.i].rotary, b.cache.key_format
        add("rope", kernel_ops.rope, self.queries[own.width - rotary :], own.n_heads, own.width, self.n, angles,
            rotary // 2, 0)  # fmt: skip
        add("hadamard", kernel_index.hadamard, self.queries, own.n_heads, own.width, self.n)
        rows = b.room.floats("index_scores", c.n_further * (b.room.n_threads if b.many else 1))
        shared = (self.queries, own.n_heads, own.width, c.index_keys, c.index_row_bytes, self.weights,
                  self.n**-0.5, rows, b.room.scratch, b.room.scratch_bytes, self.rate)  # fmt: skip
        if b.many:
            add("index", kernel_index.choices(fmt), *shared, own.top_k, _mask(b, c), c.n_further, 1)
            return
        add("index", kernel_index.scores(fmt), *shared)
        chosen, count = b.room.integers("index_positions", own.top_k), b.room.integers("index_count", 1)
        add("choose", kernel_index.positions, rows, own.top_k, chosen, count, self.rate, 1)
        add("gather", kernel_index.gather, chosen, count, c.further, c.key_row_bytes,
            _gathered(b, c, self.compressed))  # fmt: skip


def _mask(b: Builder, c: LayerCache) -> np.ndarray:
    return b.room.floats("index_mask", -(-b.room.n_batch * c.n_further // 4)).view(np.uint8)


def _gathered(b: Builder, c: LayerCache, own: Compressed) -> np.ndarray:
    """Room for the rows that a step sees."""
    n = min(own.indexer.top_k, c.n_further)
    return b.room.floats("index_rows", -(-n * c.key_row_bytes // 4)).view(np.uint8)


def sight(b: Builder, i: int) -> Sight:
    """What layer i sees, after the choice was made."""
    c, own, window = b.cache.layers[i], b.h.compressed, b.h.windows[i]
    assert own is not None
    if not own.rates[i]:
        return Sight(c, window)
    if not own.index_width(i):
        return Sight(c, window, further=c.further, each=own.rates[i])
    if b.many:
        return Sight(c, window, _mask(b, c), further=c.further, each=own.rates[i])
    count = b.room.integers("index_count", 1)
    return Sight(c, window, count=count, further=_gathered(b, c, own), each=own.rates[i])
