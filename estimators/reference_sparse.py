"""What an indexer spares the bundled runner's steps, and what it costs them (DeepSeek-V3.2, GLM-5).

A layer's attention reads the tokens that the indexer chose, once there are more; the indexer reads its keys of all, of
which one stands for several tokens where they are pooled (GLM-5.3-Flash).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from modeldb.layers import LatentAttention
from modeldb.model import Model


@dataclass(frozen=True)
class Spared:
    """Of a step: numbers of the cache, and FLOPs of attention, that are left out; and FLOPs of the indexers' scores."""

    elements: float
    flops: float
    index_flops: float


def spared(model: Model, n_tokens: float) -> Spared:
    """Of the step with `n_tokens` in the cache."""
    elements = flops = index_flops = 0.0
    for m in layers(model):
        keys, pool = _keys(m, n_tokens), max(1, m.index_pool)
        unseen = max(0.0, keys - m.index_top_k // pool) * pool
        elements += unseen * (m.kv_rank + m.rope_dim)
        flops += unseen * 2.0 * m.n_heads * (2 * m.kv_rank + m.rope_dim)
        index_flops += keys * 2.0 * m.n_index_heads * m.index_dim
    return Spared(elements, flops, index_flops)


def index_elements(model: Model, n_tokens: float) -> float:
    """Numbers of the indexers' keys of `n_tokens` tokens."""
    return sum(_keys(m, n_tokens) * m.index_dim for m in layers(model))


def state_elements(model: Model) -> int:
    """Numbers (float32) of keys and gates that indexers keep until they are pooled."""
    return sum(2 * (m.index_pool - 1) * m.index_dim for m in layers(model) if m.index_pool)


def _keys(m: LatentAttention, n_tokens: float) -> float:
    return n_tokens // max(1, m.index_pool)


def layers(model: Model) -> Iterator[LatentAttention]:
    """Layers whose attention sees what an indexer chose."""
    for block in model.blocks:
        for m in block.mixers:
            if isinstance(m, LatentAttention) and m.index_top_k:
                yield m
