"""The indexer of sparse attention, as operations of a program: which cached tokens a layer's attention sees.

A step attends to the rows of the chosen tokens, copied side by side; tokens of a prompt choose each for itself, so
they attend to the whole cache under a mask. Layers without an indexer see what the last layer with one chose.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np

from modeldb.errors import BrokenFile, UnsupportedModel
from runner import kernel_attention, kernel_index, kernel_ops
from runner.keys import Keys

if TYPE_CHECKING:
    from runner.builder import Builder
    from runner.cache import LayerCache
    from runner.weights import Weight

Parts = list[tuple["Weight", np.ndarray, int, np.ndarray | None]]
EPS = 1e-6  # of the key's norm (llama.cpp's deepseek32)
LEAST_WIDTH = 64  # that llama.cpp's Hadamard matrices have


@dataclass(frozen=True, slots=True)
class Indexer:
    """`n_heads` queries of `width` numbers against one key per token; a token sees the `top_k` best."""

    n_heads: int
    width: int
    top_k: int


def read(keys: Keys, rotary: int) -> Indexer | None:
    """From a file's metadata. Raises UnsupportedModel for heads that are not a power of two wide."""
    found = Indexer(*(keys.count(f"attention.indexer.{k}", 0) for k in ("head_count", "key_length", "top_k")))
    if not (found.n_heads and found.top_k):
        return None
    if found.width < max(LEAST_WIDTH, rotary) or found.width & (found.width - 1):
        raise UnsupportedModel(
            f"{keys.name}: indexer heads of width {found.width} are not supported by the runner"
        )
    return found


def layers(keys: Keys, own: Indexer | None, n_layers: int) -> tuple[bool, ...]:
    """Which layers have one: what `types` says, else all (but see `hyper.fitted`). Raises BrokenFile where the first
    has none to share."""
    if own is None:
        return (False,) * n_layers
    found = tuple(bool(v) for v in keys.by_layer("attention.indexer.types", n_layers, True))
    if not found[0]:
        raise BrokenFile(f"{keys.name}: the first layer shares an indexer that none before it has")
    return found


@dataclass(frozen=True)
class Sight:
    """What a layer's attention reads: its cache (`window`: the last tokens of it), and which rows of it (`mask`: bytes
    [token][position], or none)."""

    cache: LayerCache
    window: int = 0
    mask: np.ndarray | None = None


class Choice:
    """The choice of one layer with an indexer: buffers for its queries, its key and the weights of its heads."""

    def __init__(self, b: Builder, i: int) -> None:
        own = b.h.indexer
        assert own is not None
        self.b, self.i, self.own, self.prefix = b, i, own, f"blk.{i}.indexer."
        self.queries = b.floats("index_q", own.n_heads * own.width)
        self.key, self.weights = b.floats("index_k", own.width), b.floats("index_weights", own.n_heads)

    def of_queries(self, rank: int) -> Parts:
        """Products with the compressed queries."""
        n = self.own.n_heads * self.own.width
        return [(self.b.w.get(self.prefix + "attn_q_b.weight", (rank, n)), self.queries, n, None)]

    def of_input(self) -> Parts:
        """Products with the layer's normed input."""
        w, hidden, own = self.b.w, self.b.h.hidden, self.own
        return [
            (w.get(self.prefix + "attn_k.weight", (hidden, own.width)), self.key, own.width, None),
            (w.get(self.prefix + "proj.weight", (hidden, own.n_heads)), self.weights, own.n_heads, None),
        ]

    def make(self, angles: np.ndarray | None) -> None:
        """Store the key and choose."""
        b, own, c = self.b, self.own, self.b.cache.layers[self.i]
        add, style = b.program.add, b.h.style
        n = own.n_heads * own.width
        weight, bias = (b.vector(f"{self.prefix}k_norm.{x}", own.width) for x in ("weight", "bias"))
        add("norm", kernel_ops.norm, self.key, weight, bias, self.key, own.width, EPS, 1, own.width,
            own.width, 1, 0, 0)  # fmt: skip
        for x, heads, stride in ((self.queries, own.n_heads, n), (self.key, 1, own.width)):
            if angles is not None:
                pairs, halves = b.h.rotary // 2, int(style.index_halves)
                add("rope", kernel_ops.rope, x, heads, own.width, stride, angles, pairs, halves)
            add("hadamard", kernel_index.hadamard, x, heads, own.width, stride)
        fmt = b.cache.key_format
        add("store", kernel_attention.store_cache(fmt), self.key, own.width, own.width, c.index_keys,
            c.index_row_bytes, c.n_slots, 1)  # fmt: skip
        rows = b.room.floats("index_scores", c.n_slots * (b.room.n_threads if b.many else 1))
        shared = (self.queries, own.n_heads, own.width, c.index_keys, c.index_row_bytes, self.weights, 1 / sqrt(n),
                  rows, b.room.scratch, b.room.scratch_bytes)  # fmt: skip
        if b.many:
            add("index", kernel_index.choices(fmt), *shared, own.top_k, _mask(b, c), c.n_slots)
        else:
            add("index", kernel_index.scores(fmt), *shared)
            add("choose", kernel_index.positions, rows, own.top_k, _positions(b))


def _mask(b: Builder, c: LayerCache) -> np.ndarray:
    return b.room.floats("index_mask", -(-b.room.n_batch * c.n_slots // 4)).view(np.uint8)


def _positions(b: Builder) -> np.ndarray:
    assert b.h.indexer is not None
    return b.room.integers("index_positions", b.h.indexer.top_k)


def sight(b: Builder, i: int) -> Sight:
    """What layer i sees of its cache, after the choice was made."""
    c, own = b.cache.layers[i], b.h.indexer
    if own is None:
        return Sight(c, b.h.windows[i])
    if b.many:
        return Sight(c, mask=_mask(b, c))
    n = min(own.top_k, c.n_slots)
    rows = b.room.floats("index_rows", -(-n * c.key_row_bytes // 4)).view(np.uint8)
    b.program.add("gather", kernel_index.gather, _positions(b), n, c.keys, c.key_row_bytes, rows)
    return Sight(replace(c, keys=rows, values=rows, n_slots=n), window=n)
