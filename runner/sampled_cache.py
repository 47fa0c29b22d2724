"""Caches of a sampled run: what a layer's takes, and random rows in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from modeldb.model import Model
from runner import synthetic

if TYPE_CHECKING:
    from runner.engine import Engine

SIGMA = 0.5  # of the numbers


def layer_bytes(model: Model, layer: int, n_context: int) -> int:
    """Of a layer's cache in float16."""
    from modeldb.architectures import LAYOUTS, Layout
    from modeldb.layers import Attention, CompressedAttention, LatentAttention

    found = 0
    for mixer in model.blocks[layer].mixers if layer < len(model.blocks) else ():
        if isinstance(mixer, Attention):
            seen = min(n_context, mixer.window_tokens or n_context)
            found += 2 * mixer.n_kv_heads * (mixer.head_dim + mixer.value_dim) * seen
        elif isinstance(mixer, LatentAttention):
            row = mixer.kv_rank + mixer.rope_dim + mixer.index_dim
            if LAYOUTS.get(model.architecture, Layout()).decompressed_latent:
                row = mixer.n_heads * (mixer.nope_dim + mixer.rope_dim + mixer.value_dim)
            found += 2 * row * n_context
        elif isinstance(mixer, CompressedAttention):
            rows = n_context // mixer.ratio if mixer.ratio else 0
            found += 2 * (mixer.head_dim * min(n_context, mixer.window_tokens))
            found += 2 * rows * (mixer.head_dim + mixer.index_dim)
    return found


def fill_cache(engine: Engine, n_tokens: int = 0, seed: int = 0) -> None:
    """Random keys and values of `n_tokens` tokens (0: in every slot), in the cache's own format, all heads' alike."""
    rng, h, key_format = np.random.default_rng(seed), engine.hyper, engine.cache.key_format
    for i, c in enumerate(engine.cache.layers):
        if not c.own:
            continue
        n = min(n_tokens or c.n_slots, c.n_slots)
        for rows, fmt, width in ((c.keys, key_format, c.key_width),
                                 (c.values, engine.cache.value_format, c.value_width)):  # fmt: skip
            if width and (rows is c.keys or c.values is not c.keys):
                first, *others = c.by_head(rows)[:, :n]
                synthetic.blocks(fmt, width // c.n_heads, n, rng, SIGMA, first.reshape(-1))
                for head in others:
                    head[:] = first
        n = min(n_tokens or engine.n_context, engine.n_context) // c.index_tokens
        if c.index_row_bytes:
            width = h.indexer.width if h.indexer else h.compressed.index_width(i) if h.compressed else 0
            synthetic.blocks(key_format, width, n, rng, SIGMA, c.index_keys[: n * c.index_row_bytes])
        if c.n_further:
            synthetic.blocks(key_format, c.key_width, n, rng, SIGMA, c.further[: n * c.key_row_bytes])
