"""What an indexer spares the bundled runner's steps, and what it costs them (DeepSeek-V3.2, GLM-5).

A layer's attention reads the tokens that the indexer chose, once there are more; the indexer reads its keys of all, of
which one stands for several tokens where they are pooled (GLM-5.3-Flash). MiniMax-M3's chooses whole blocks, always the
one that the token is in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from modeldb.layers import Attention, LatentAttention
from modeldb.model import Model


@dataclass(frozen=True)
class Spared:
    """Of a step: numbers of the cache, and FLOPs of attention, that are left out; and FLOPs of the indexers' scores."""

    elements: float
    flops: float
    index_flops: float


Sparse = Attention | LatentAttention


def spared(model: Model, n_tokens: float) -> Spared:
    """Of the step with `n_tokens` in the cache."""
    elements = flops = index_flops = 0.0
    for m in layers(model):
        unseen = _unseen(m, n_tokens)
        elements += unseen * row_elements(m)
        width = m.head_dim + m.value_dim if isinstance(m, Attention) else 2 * m.kv_rank + m.rope_dim
        flops += unseen * 2.0 * m.n_heads * width
        index_flops += _keys(m, n_tokens) * 2.0 * m.n_index_heads * m.index_dim
    return Spared(elements, flops, index_flops)


def row_elements(m: Sparse) -> int:
    """Numbers of a token in a layer's cache."""
    if isinstance(m, Attention):
        return m.n_kv_heads * (m.head_dim + m.value_dim)
    return m.kv_rank + m.rope_dim


def index_elements(model: Model, n_tokens: float) -> float:
    """Numbers of the indexers' keys of `n_tokens` tokens."""
    return sum(_keys(m, n_tokens) * m.index_dim for m in layers(model))


def state_elements(model: Model) -> int:
    """Numbers (float32) of keys and gates that indexers keep until they are pooled."""
    return sum(2 * (pool(m) - 1) * m.index_dim for m in layers(model))


def _unseen(m: Sparse, n_tokens: float) -> float:
    """Of `n_tokens` tokens, those that the last one does not see."""
    if isinstance(m, Attention):
        last = (n_tokens - 1) % m.index_block + 1  # of its block
        return max(0.0, n_tokens - m.index_top_k) and n_tokens - (m.index_top_k - m.index_block + last)
    return max(0.0, _keys(m, n_tokens) - m.index_top_k // pool(m)) * pool(m)


def _keys(m: Sparse, n_tokens: float) -> float:
    return n_tokens // pool(m)


def pool(m: Sparse) -> int:
    """Tokens of a key."""
    return 1 if isinstance(m, Attention) else max(1, m.index_pool)


def layers(model: Model) -> Iterator[Sparse]:
    """Layers whose attention sees what an indexer chose."""
    for block in model.blocks:
        for m in block.mixers:
            if isinstance(m, Attention | LatentAttention) and m.index_top_k:
                yield m
