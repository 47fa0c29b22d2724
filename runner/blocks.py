"""Sparse attention by blocks of keys (MiniMax-M3): for each key-value head a head of an indexer chooses which blocks
a token sees: those whose best key scores highest, and always the last ones.

A step attends to the rows of the chosen blocks, copied side by side; tokens of a prompt attend to the whole cache under
a mask of blocks. Follows https://github.com/ggml-org/llama.cpp/blob/master/src/models/minimax-m3.cpp with flash
attention; without it llama.cpp attends to everything.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from modeldb.errors import BrokenFile, UnsupportedModel
from runner import kernel_attention, kernel_blocks, kernel_ops
from runner.indexer import Sight
from runner.keys import Keys

if TYPE_CHECKING:
    from runner.builder import Builder

MAX_TOKENS = 1 << 20  # of a block, far beyond any model
PAD_FLOATS = 16  # readable behind the last row


@dataclass(frozen=True, slots=True)
class Blocks:
    """`n_heads` queries of `width` numbers against one key per token; a head sees the `chosen` best blocks of `size`
    tokens, the last `local` ones among them."""

    n_heads: int
    width: int
    chosen: int
    size: int
    local: int
    pool: int = 1  # tokens of a key

    def keys(self, n_tokens: int) -> int:
        """Keys of `n_tokens` tokens."""
        return n_tokens

    def seen(self, n_tokens: int) -> int:
        """Of `n_tokens` tokens, those that the last one sees in each key-value head."""
        if n_tokens <= self.chosen * self.size:
            return n_tokens
        return (self.chosen - 1) * self.size + (n_tokens - 1) % self.size + 1

    def most(self, n_slots: int) -> int:
        """Blocks of `n_slots` positions."""
        return -(-n_slots // self.size)


def read(keys: Keys, rotary: int, kv_heads: int) -> Blocks | None:
    """From a file's metadata. Raises BrokenFile for numbers that do not fit each other, UnsupportedModel for blocks of
    which the last is not always seen."""
    size = keys.count("attention.indexer.block_size", 0)
    if not size:
        return None
    heads, width, top_k = (
        keys.count(f"attention.indexer.{k}") for k in ("head_count", "key_length", "top_k")
    )
    local = keys.count("attention.indexer.local_blocks")
    if (
        heads != kv_heads
        or width < rotary
        or not width
        or width % 32
        or size > MAX_TOKENS
        or not 0 < top_k <= MAX_TOKENS
    ):
        raise BrokenFile(
            f"{keys.name}: {heads} indexer heads of width {width} for {kv_heads} key-value heads, {top_k} blocks of "
            f"{size}"
        )
    if not 0 < local <= top_k or size < 2:
        raise UnsupportedModel(
            f"{keys.name}: {local} of {top_k} blocks always seen is not supported by the runner"
        )
    return Blocks(heads, width, top_k, size, local)


def sight(b: Builder, i: int, normed: np.ndarray, angles: np.ndarray | None) -> Sight:
    """What layer i sees of its cache: its index key is stored, and blocks are chosen by its input."""
    own, c = b.h.indexer, b.cache.layers[i]
    assert isinstance(own, Blocks)
    queries = _indexed(b, own, i, normed, angles)
    fmt, most = b.cache.key_format, own.most(c.n_slots)
    scores = b.room.floats("block_scores", own.n_heads * most * (b.room.n_threads if b.many else 1))
    shared = (queries, own.n_heads, own.width, c.index_keys, c.index_row_bytes, own.size, own.local, own.chosen, scores,
              most, b.room.scratch, b.room.scratch_bytes)  # fmt: skip
    if b.many:
        mask = b.room.floats("block_mask", -(-b.room.n_batch * own.n_heads * most // 4)).view(np.uint8)
        b.program.add("index", kernel_blocks.choices(fmt), *shared, mask)
        return Sight(c, mask=mask, mask_bytes=own.n_heads * most, each=own.size)
    listed, count = b.room.integers("block_list", own.n_heads * own.chosen), b.room.integers("block_count", 1)
    b.program.add("index", kernel_blocks.scores(fmt), *shared)
    b.program.add(
        "choose", kernel_blocks.listed, scores, own.n_heads, most, own.chosen, own.size, listed, count
    )
    n = min(own.chosen, most) * own.size
    found = []
    for name, rows, row_bytes in (("keys", c.keys, c.key_row_bytes), ("values", c.values, c.value_row_bytes)):
        out = b.room.floats(f"block_{name}", -(-n * row_bytes // 4) + PAD_FLOATS).view(np.uint8)
        each = row_bytes // own.n_heads
        b.program.add("gather", kernel_blocks.gather, listed, own.n_heads, own.chosen, own.size, rows, each,
                      each * c.n_slots, out, each * n, wait=name == "values")  # fmt: skip
        found.append(out)
    return Sight(replace(c, keys=found[0], values=found[1], n_slots=n), count=count)


def _indexed(b: Builder, own: Blocks, i: int, normed: np.ndarray, angles: np.ndarray | None) -> np.ndarray:
    """The indexer's queries [token][head][width], normed and rotated; its key, likewise, is stored."""
    h, c, p = b.h, b.cache.layers[i], f"blk.{i}.indexer."
    n = own.n_heads * own.width
    queries, key = b.floats("index_q", n), b.floats("index_k", own.width)
    b.project(normed, h.hidden, [
        (b.w.get(p + "q_proj.weight", (h.hidden, n)), queries, n, None),
        (b.w.get(p + "k_proj.weight", (h.hidden, own.width)), key, own.width, None),
    ])  # fmt: skip
    for x, name, heads in ((queries, "q_norm", own.n_heads), (key, "k_norm", 1)):
        weight = b.vector(b.w.get(f"{p}{name}.weight").name, own.width)
        b.norm(x, weight, x, own.width, heads, heads * own.width)
        if angles is not None:
            pairs, halves = h.heads[i].rotary // 2, int(h.style.halves)
            b.program.add(
                "rope", kernel_ops.rope, x, heads, own.width, heads * own.width, angles, pairs, halves
            )
    store = kernel_attention.store_cache(b.cache.key_format)
    b.program.add("store", store, key, own.width, own.width, c.index_keys, c.index_row_bytes, c.n_slots, 1)
    return queries
