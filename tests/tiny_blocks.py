"""Tiny models of MiniMax-M3: attention to blocks of keys that an indexer chooses for each key-value head."""

from __future__ import annotations

from dataclasses import replace

from tiny_families import SIGMOID, Family, routed
from tiny_parts import HIDDEN, KV_HEADS, Tiny, head_sizes

WIDTH, ROTARY = 64, 32


def _keys(t: Tiny, size: int = 16, chosen: int = 4, local: int = 1) -> None:
    head_sizes(t)
    w = t.w
    w.add_expert_gating_func(SIGMOID)
    w.add_expert_weights_scale(2.0)
    w.add_expert_weights_norm(True)
    w.add_expert_shared_count(1)
    w.add_indexer_head_count(KV_HEADS)
    w.add_indexer_key_length(WIDTH)
    w.add_indexer_top_k(chosen)
    w.add_uint32("minimax-m3.attention.indexer.block_size", size)
    w.add_uint32("minimax-m3.attention.indexer.local_blocks", local)


def _two_local(t: Tiny) -> None:
    _keys(t, 8, 3, 2)


def _indexer(t: Tiny, p: str) -> None:
    if p == "blk.0.":
        return
    t.matrix(p + "indexer.q_proj", KV_HEADS * WIDTH, HIDDEN, "F32")
    t.matrix(p + "indexer.k_proj", WIDTH, HIDDEN, "F32")
    t.vector(p + "indexer.q_norm.weight", WIDTH)
    t.vector(p + "indexer.k_norm.weight", WIDTH)


_M3 = Family(
    heads="head",
    rotary=ROTARY,
    more=_indexer,
    **routed(_keys, bias="exp_probs_b.bias", shared=256, leading=1),
)
BLOCKS = {
    "minimax-m3": ("minimax-m3", _M3),
    "minimax-m3-two": (
        "minimax-m3",
        replace(_M3, **routed(_two_local, bias="exp_probs_b.bias", shared=256, leading=1)),
    ),
}
