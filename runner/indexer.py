"""The indexer of sparse attention, as operations of a program: which cached tokens a layer's attention sees.

A step attends to the rows of the chosen tokens, copied side by side; tokens of a prompt choose each for itself, so
they attend to the whole cache under a mask. Layers without an indexer see what the last layer with one chose. Keys of
GLM-5.3-Flash stand for several tokens each; a token sees those after the last key as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np

from modeldb.errors import BrokenFile, UnsupportedModel
from runner import kernel_attention, kernel_index, kernel_index_pool, kernel_ops
from runner.keys import Keys

if TYPE_CHECKING:
    from runner.builder import Builder
    from runner.cache import LayerCache
    from runner.weights import Weight

Parts = list[tuple["Weight", np.ndarray, int, np.ndarray | None]]
EPS = 1e-6  # of the key's norm (llama.cpp's deepseek32)
LEAST_WIDTH = 64  # that llama.cpp's Hadamard matrices have
MAX_POOL = 1024  # tokens of a key, far beyond any model


@dataclass(frozen=True, slots=True)
class Indexer:
    """`n_heads` queries of `width` numbers against one key for each `pool` tokens; a token sees the `top_k` best of
    those before it."""

    n_heads: int
    width: int
    top_k: int
    pool: int = 1
    eps: float = EPS

    def keys(self, n_tokens: int) -> int:
        """Keys of `n_tokens` tokens."""
        return n_tokens // self.pool

    def seen(self, n_tokens: int) -> int:
        """Of `n_tokens` tokens, those that the last one sees."""
        return min(self.keys(n_tokens), self.top_k // self.pool) * self.pool + n_tokens % self.pool


def read(keys: Keys, rotary: int) -> Indexer | None:
    """From a file's metadata. Raises UnsupportedModel for heads that are not a power of two wide, or tokens after the
    last key that are not seen, BrokenFile for numbers that do not fit each other."""
    heads, width, top_k = (
        keys.count(f"attention.indexer.{k}", 0) for k in ("head_count", "key_length", "top_k")
    )
    found = Indexer(heads, width, top_k, keys.count("attention.indexer.kpool", 1))
    if not (found.n_heads and found.top_k):
        return None
    if found.width < max(LEAST_WIDTH, rotary) or found.width & (found.width - 1):
        raise UnsupportedModel(
            f"{keys.name}: indexer heads of width {found.width} are not supported by the runner"
        )
    if not 0 < found.pool <= MAX_POOL or found.top_k % found.pool:
        raise BrokenFile(f"{keys.name}: {found.top_k} tokens chosen by index keys of {found.pool}")
    if found.pool == 1:
        return found
    if not keys.get("attention.indexer.kpool_select_tail", True):
        raise UnsupportedModel(
            f"{keys.name}: an indexer that hides the last tokens is not supported by the runner"
        )
    return replace(found, eps=float(keys.number("attention.layer_norm_epsilon", EPS)))


def layers(keys: Keys, own: object, attends: tuple[bool, ...]) -> tuple[bool, ...]:
    """Which layers have one: what `types` says, else all that attend (but see `hyper.fitted`). Raises BrokenFile where
    the first has none to share."""
    if own is None:
        return (False,) * len(attends)
    types = keys.by_layer("attention.indexer.types", len(attends), True)
    if True in attends and not types[attends.index(True)]:
        raise BrokenFile(f"{keys.name}: the first layer shares an indexer that none before it has")
    return tuple(bool(v) and here for v, here in zip(types, attends, strict=True))


@dataclass(frozen=True)
class Sight:
    """What a layer's attention reads: its cache (`window`: the last tokens of it), and which rows of it (`mask`: bytes
    [token][position], or none; `count`: how many of the first ones, or none); or, behind it, `further` rows, each of
    which stands for some tokens, and then mask and count are of these. Or a byte of the mask
    stands for `each` positions, and each key-value head has some of a token's `mask_bytes`."""

    cache: LayerCache
    window: int = 0
    mask: np.ndarray | None = None
    count: np.ndarray | None = None
    further: np.ndarray | None = None
    each: int = 1
    mask_bytes: int = 0


class Choice:
    """The choice of one layer with an indexer: buffers for its queries, its key and the weights of its heads."""

    def __init__(self, b: Builder, i: int) -> None:
        own = b.h.indexer
        assert isinstance(own, Indexer)
        self.b, self.i, self.own, self.prefix = b, i, own, f"blk.{i}.indexer"
        self.queries = b.floats("index_q", own.n_heads * own.width)
        self.key, self.weights = b.floats("index_k", own.width), b.floats("index_weights", own.n_heads)
        self.gates = b.floats("index_gates", own.width) if own.pool > 1 else None

    def of_queries(self, rank: int) -> Parts:
        """Products with the compressed queries."""
        n = self.own.n_heads * self.own.width
        return [(self.b.w.get(self.prefix + ".attn_q_b.weight", (rank, n)), self.queries, n, None)]

    def of_input(self) -> Parts:
        """Products with the layer's normed input."""
        w, hidden, own = self.b.w, self.b.h.hidden, self.own
        wide = (hidden, own.width)
        parts: Parts = [
            (w.get(self.prefix + ".attn_k.weight", wide), self.key, own.width, None),
            (w.get(self.prefix + ".proj.weight", (hidden, own.n_heads)), self.weights, own.n_heads, None),
        ]
        if self.gates is not None:
            gate = w.get(self.prefix + "_compressor_gate.weight", wide)
            parts.append((gate, self.gates, own.width, None))
        return parts

    def make(self, angles: np.ndarray | None) -> None:
        """Store the key and choose."""
        b, own, c = self.b, self.own, self.b.cache.layers[self.i]
        weight, bias = (b.vector(f"{self.prefix}.k_norm.{x}", own.width) for x in ("weight", "bias"))
        b.program.add("norm", kernel_ops.norm, self.key, weight, bias, self.key, own.width, own.eps, 1, own.width,
                      own.width, 1, 0, 0)  # fmt: skip
        if self.gates is None:
            self._turn(angles)
            store = kernel_attention.store_cache(b.cache.key_format)
            b.program.add("store", store, self.key, own.width, own.width, c.index_keys, c.index_row_bytes, c.n_slots,
                          1)  # fmt: skip
        else:
            self._pool(self.gates)
        self._choose()

    def _turn(self, angles: np.ndarray | None) -> None:
        b, own = self.b, self.own
        n = own.n_heads * own.width
        for x, heads, stride in ((self.queries, own.n_heads, n), (self.key, 1, own.width)):
            if angles is not None:
                pairs, halves = b.h.rotary // 2, int(b.h.style.index_halves)
                b.program.add("rope", kernel_ops.rope, x, heads, own.width, stride, angles, pairs, halves)
            b.program.add("hadamard", kernel_index.hadamard, x, heads, own.width, stride)

    def _pool(self, gates: np.ndarray) -> None:
        """Keys of so many tokens become one; what is left over is kept for the next."""
        b, own, c, kept = self.b, self.own, self.b.cache.layers[self.i], self.b.cache.states[self.i]
        assert kept is not None
        name = self.prefix + "_compressor_ape.weight"
        added = b.vector(b.w.get(name, (own.width, own.pool)).name, own.width * own.pool)
        shared = (self.key, gates, own.width, own.pool, added, kept.tail)
        pool = kernel_index_pool.pool(b.cache.key_format)
        b.program.add(
            "pool", pool, *shared, c.index_keys, c.index_row_bytes, b.room.scratch, b.room.scratch_bytes
        )
        b.program.add("remember", kernel_index_pool.remember, *shared)

    def _choose(self) -> None:
        b, own, c = self.b, self.own, self.b.cache.layers[self.i]
        fmt, add, n = b.cache.key_format, b.program.add, own.n_heads * own.width
        rows = b.room.floats("index_scores", c.n_slots * (b.room.n_threads if b.many else 1))
        shared = (self.queries, own.n_heads, own.width, c.index_keys, c.index_row_bytes, self.weights, 1 / sqrt(n),
                  rows, b.room.scratch, b.room.scratch_bytes, own.pool)  # fmt: skip
        chosen = own.top_k // own.pool
        if b.many:
            add("index", kernel_index.choices(fmt), *shared, chosen, _mask(b, c), c.n_slots)
        else:
            add("index", kernel_index.scores(fmt), *shared)
            add("choose", kernel_index.positions, rows, chosen, *_positions(b, own), own.pool)


def _mask(b: Builder, c: LayerCache) -> np.ndarray:
    return b.room.floats("index_mask", -(-b.room.n_batch * c.n_slots // 4)).view(np.uint8)


def _positions(b: Builder, own: Indexer) -> tuple[np.ndarray, np.ndarray]:
    """Those that a step sees, and how many these are."""
    return b.room.integers("index_positions", own.top_k + own.pool), b.room.integers("index_count", 1)


def sight(b: Builder, i: int) -> Sight:
    """What layer i sees of its cache, after the choice was made."""
    c, own = b.cache.layers[i], b.h.indexer
    if not isinstance(own, Indexer):
        return Sight(c, b.h.windows[i])
    if b.many:
        return Sight(c, mask=_mask(b, c))
    n = min(own.top_k + own.pool - 1, c.n_slots)
    rows = b.room.floats("index_rows", -(-n * c.key_row_bytes // 4)).view(np.uint8)
    positions, count = _positions(b, own)
    b.program.add("gather", kernel_index.gather, positions, count, c.keys, c.key_row_bytes, rows)
    return Sight(replace(c, keys=rows, values=rows, n_slots=n), count=count)
