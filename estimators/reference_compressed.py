"""What compressed rows cost the bundled runner's steps (DeepSeek-V4): a layer's cache has a row for every few tokens,
of which an indexer, where there is one, looks at keys of their own and chooses some."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from modeldb.layers import CompressedAttention
from modeldb.model import Model


@dataclass(frozen=True)
class Rows:
    """Of the step with some tokens in the cache: numbers of compressed rows and their keys, those of rows that it
    leaves alone, and FLOPs of attention to the others, those of the indexers' scores included."""

    elements: float
    unread: float
    flops: float


def rows(model: Model, n_tokens: float) -> Rows:
    """Of the step with `n_tokens` in the cache."""
    elements = unread = flops = 0.0
    for m in layers(model):
        n = n_tokens // m.ratio
        seen = min(n, m.index_top_k) if m.n_index_heads else n
        elements += n * (m.head_dim + m.index_dim)
        unread += (n - seen) * m.head_dim
        flops += 4.0 * m.n_heads * m.head_dim * seen + 2.0 * m.n_index_heads * m.index_dim * n
    return Rows(elements, unread, flops)


def layers(model: Model) -> Iterator[CompressedAttention]:
    """Layers that have compressed rows."""
    for block in model.blocks:
        for m in block.mixers:
            if isinstance(m, CompressedAttention) and m.ratio:
                yield m
