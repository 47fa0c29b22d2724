"""The one walk: a model's blocks to its tensors and its caches. Counts equal the published parameters.

Shapes are in ggml order (inputs first). Names are GGUF's where GGUF has one; how a real GGUF file differs
(fused projections, split latent matrices, rotation tables) is `modeldb.gguf_layout`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modeldb.layer_caches import mixer_caches
from modeldb.layer_tensors import Named, feed_forward_tensors, mixer_tensors
from modeldb.layers import Block, CrossAttention
from modeldb.tensor import Cache, Tensor
from modeldb.tensor_names import role_of

if TYPE_CHECKING:
    from modeldb.model import Model

NORM_NAMES = {
    1: ("attn_norm",),
    2: ("attn_norm", "ffn_norm"),
    3: ("attn_norm", "cross_attn_norm", "ffn_norm"),
    4: ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"),
    7: (
        "attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm",
        "post_ffw_norm_1", "pre_ffw_norm_2", "post_ffw_norm_2",
    ),
}  # fmt: skip


def tensors(model: Model) -> tuple[Tensor, ...]:
    """Every tensor of the text model (towers are `model.non_text_params`), parameter-exact."""
    found = [Tensor(name, shape, role) for name, shape, role in _outside(model)]
    for prefix, blocks in (("enc.blk", model.encoder_blocks), ("blk", model.blocks)):
        for i, block in enumerate(blocks):
            for name, shape, role in block_tensors(block, model.hidden_size):
                found.append(Tensor(f"{prefix}.{i}.{name}", shape, role, i if prefix == "blk" else None))
    return tuple(found)


def idle_layers(model: Model) -> frozenset[int]:
    """Layers that text alone does not run: those that only attend to an image (Llama 3.2 Vision, whose `forward` in
    Transformers' modeling_mllama.py passes over them, feed-forwards too, where it has no states of an image)."""
    return frozenset(
        i
        for i, b in enumerate(model.blocks)
        if b.mixers and all(isinstance(m, CrossAttention) for m in b.mixers)
    )


def is_idle(tensor: Tensor, layers: frozenset[int]) -> bool:
    """Whether no step of text reads this tensor of a model whose `idle_layers` are these."""
    return tensor.role == "idle" or tensor.layer in layers


def caches(model: Model) -> tuple[Cache, ...]:
    """What each layer keeps per sequence, in layer order (DeepSeek-V4 layers keep two caches,
    encoders none)."""
    if not model.causal:
        return ()
    return tuple(
        cache
        for i, block in enumerate(model.blocks)
        for mixer in block.mixers
        for cache in mixer_caches(mixer, i, model.hidden_size)
    )


def block_tensors(block: Block, hidden: int) -> Named:
    """(name, shape, role) of one block's tensors, names relative to the block."""
    norms = (
        NORM_NAMES[block.n_norms]
        if block.mixers or block.n_norms != 1 or not block.feed_forwards
        else ("ffn_norm",)
    )
    for name in norms:
        yield from _norm(name, hidden, block.norm_width)
    for n, mixer in enumerate(block.mixers):
        again = n and type(mixer) is type(block.mixers[n - 1])
        yield from _renamed(f"sub{n}." if again else "", mixer_tensors(mixer, hidden))
    for n, ffn in enumerate(block.feed_forwards):
        again = n and type(ffn) is type(block.feed_forwards[n - 1])
        yield from _renamed(f"sub{n}." if again else "", feed_forward_tensors(ffn, hidden))
    for name, n_params in block.extra_params:
        shape = (n_params,) if isinstance(n_params, int) else n_params
        multiplied = len(shape) > 1 and role_of(f"blk.0.{name}") == "dense"
        yield name, shape, "dense" if multiplied else "other"


def _renamed(prefix: str, named: Named) -> Named:
    return ((prefix + name, shape, role) for name, shape, role in named)


def _norm(name: str, width: int, params_per_channel: int) -> Named:
    """A norm's weight, and its bias where there are two parameters per channel."""
    for suffix in ("weight", "bias")[:params_per_channel]:
        yield f"{name}.{suffix}", (width,), "norm"


def _outside(model: Model) -> Named:
    """Tensors outside the layers: embeddings, head, final norms, per-layer embedding tables,
    position tables."""
    h, vocab, get = model.hidden_size, model.vocab_size, model.extra_value
    yield "token_embd.weight", (h, vocab + get("extra_embed_rows")), "embedding"
    if rows := get("learned_pos"):
        yield "position_embd.weight", (h, rows), "embedding"
    if rows := get("type_vocab"):
        yield "token_types.weight", (h, rows), "embedding"
    if get("emb_norm"):
        yield from _norm("token_embd_norm", h, model.norm_width)
    if get("final_norm", 1):
        yield from _norm("output_norm", h, model.norm_width)
    if model.has_head and not model.tied_embeddings:
        yield "output.weight", (h, vocab), "head"
    if get("lm_head_bias"):
        yield "output.bias", (vocab,), "head"
    if get("pooler"):
        yield "cls.weight", (h, h), "other"
        yield "cls.bias", (h,), "other"
    if p := get("ple_dim"):
        yield "per_layer_token_embd.weight", (p * model.n_layers, get("ple_vocab")), "embedding"
        yield "per_layer_model_proj.weight", (h, p * model.n_layers), "dense"
        yield "per_layer_proj_norm.weight", (p,), "norm"
    if n := get("altup"):
        yield "altup_proj.weight", (h, h, n - 1), "dense"
        yield "altup_unembd_proj.weight", (h, h, n - 1), "dense"
    if n := get("hc_mult"):
        yield "output_hc_fn.weight", (n * h, n), "other"
        yield "output_hc_base.weight", (n,), "other"
        yield "output_hc_scale.weight", (1,), "other"
    if model.encoder_blocks:
        yield from _whisper_outside(model)


def _whisper_outside(model: Model) -> Named:
    h, get = model.hidden_size, model.extra_value
    yield "enc.position_embd.weight", (h, get("src_pos")), "audio"
    yield "dec.position_embd.weight", (h, get("tgt_pos")), "embedding"
    for n, inputs in ((1, get("mel")), (2, h)):
        yield f"enc.conv{n}.weight", (3, inputs, h), "audio"
        yield f"enc.conv{n}.bias", (h,), "audio"
    yield from _norm("enc.output_norm", h, model.norm_width)
