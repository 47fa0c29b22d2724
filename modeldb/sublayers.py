"""Double layers, of two latent attentions and two dense feed-forwards (LongCat-Flash), as two layers each."""

from __future__ import annotations

from dataclasses import replace

from modeldb.layers import Block, Experts, LatentAttention
from modeldb.model import Model

NORMS = 2  # before the attention and before the feed-forward


def split(model: Model) -> Model:
    """The model with every double layer as two, of which the first has the experts: their sum is added behind the
    second (`LongcatFlashDecoderLayer` of Transformers' modeling_longcat_flash.py). Others stay as they are."""
    if not any(map(_is_double, model.blocks)):
        return model
    return replace(model, blocks=tuple(half for block in model.blocks for half in _halves(block)))


def _is_double(block: Block) -> bool:
    return len(block.mixers) > 1 and all(isinstance(m, LatentAttention) for m in block.mixers)


def _halves(block: Block) -> tuple[Block, ...]:
    if not _is_double(block):
        return (block,)
    experts = tuple(f for f in block.feed_forwards if isinstance(f, Experts))
    dense = [f for f in block.feed_forwards if not isinstance(f, Experts)]
    pairs = zip(block.mixers, dense, strict=True)
    return tuple(
        replace(block, mixers=(mixer,), feed_forwards=(ffn, *(() if i else experts)), n_norms=NORMS)
        for i, (mixer, ffn) in enumerate(pairs)
    )
