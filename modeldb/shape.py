"""A model built from its architecture as one flat record.

`Shape` is what readers and the catalogue fill in; `build` is the only place that turns it into layer kinds.
"""

from __future__ import annotations

from typing import Any

from modeldb.architectures import of_model_type
from modeldb.errors import UnsupportedModel
from modeldb.layers import (
    Attention,
    Block,
    CompressedAttention,
    Convolution,
    CrossAttention,
    Dense,
    Experts,
    FeedForward,
    LatentAttention,
    LinearAttention,
    Mixer,
    StateSpace,
)
from modeldb.model import Model
from modeldb.shape_facts import GLOBAL_EXTRAS, Shape, expand

__all__ = ["Shape", "build", "expand"]

ENCODERS = frozenset({"bert", "xlm-roberta", "nomic_bert"})  # whole-text attention, no cache
PREFIXED = frozenset({"chatglm1"})  # prompts are read in both directions
# models whose attention stands beside the feed-forward (it changes the order of execution, not the size)
PARALLEL = frozenset({"cohere", "cohere2", "phi", "gptj", "gpt_neox", "falcon"})


def build(shape: Shape, **identity: Any) -> Model:
    """The model of a shape. `identity` are fields of `Model` that a shape does not know (id, name, hf_id,
    licence ...).

    Raises UnsupportedModel when the patterns do not describe `n_layers` layers.
    """
    mixers, ffns = expand(shape.layer_pattern), expand(shape.ffn_pattern)
    if len(mixers) != shape.n_layers or len(ffns) != shape.n_layers:
        raise UnsupportedModel(
            f"layer_pattern and ffn_pattern name {len(mixers)} and {len(ffns)} layers, "
            f"n_layers is {shape.n_layers}"
        )
    fields: dict[str, Any] = {
        "id": "", "name": "", "hf_id": "", "family": "", "base": "", "modality": "text",
        "architecture": of_model_type(shape.model_type, bool(shape.n_experts), shape.latent),
        "model_type": shape.model_type, "hidden_size": shape.hidden_size, "vocab_size": shape.vocab_size,
        "tied_embeddings": shape.tie_word_embeddings, "has_head": shape.has_lm_head,
        "max_context": shape.max_context or None,
        "native_dtype": shape.native_dtype, "non_text_params": shape.non_text_params,
        "rotary_dim": _rotary_dim(shape), "rope_theta": shape.rope_theta, "rope_scaling": shape.rope_scaling,
        "norm_width": shape.norm_params_per_channel,
        "causal": shape.model_type not in ENCODERS,
        "extra": tuple((k, float(getattr(shape, k))) for k in GLOBAL_EXTRAS if getattr(shape,
        k) != _default(k)),
    }  # fmt: skip
    if shape.model_type == "whisper":
        fields["blocks"], fields["encoder_blocks"] = _whisper(shape)
    else:
        fields["blocks"] = _blocks(shape, mixers, ffns)
    fields.update(identity)
    return Model(**fields)


def _default(name: str) -> Any:
    return Shape.__dataclass_fields__[name].default


def _rotary_dim(s: Shape) -> int:
    return s.qk_rope_head_dim if s.latent else int(s.head_dim * (s.partial_rotary_factor or 1.0))


def _blocks(s: Shape, mixers: str, ffns: str) -> tuple[Block, ...]:
    """Equal layers are one Block, shared: a model has few kinds of them."""
    kinds: dict[object, Block] = {}
    blocks = []
    for i in range(s.n_layers):
        reused = i >= s.n_layers - s.kv_shared_layers
        kind = s.nas[i] if s.nas else (mixers[i], ffns[i], reused, _has_indexer(s, i, mixers))
        if kind not in kinds:
            kinds[kind] = _block(s, i, mixers, ffns)
        blocks.append(kinds[kind])
    return tuple(blocks)


def _block(s: Shape, i: int, mixers: str, ffns: str) -> Block:
    if s.nas:
        return _nas_block(s, i)
    return Block(
        mixers=_mixers(s, i, mixers),
        feed_forwards=_feed_forwards(s, i, ffns[i]),
        n_norms=s.norms_per_layer + (3 if s.gemma4_moe else 0),
        norm_width=s.norm_params_per_channel,
        extra_params=_extra_params(s, mixers[i]),
    )


def _mixers(s: Shape, i: int, letters: str) -> tuple[Mixer, ...]:
    match letters[i]:
        case "F" | "S" | "C" if s.latent:
            return (_latent(s, _has_indexer(s, i, letters)),) * s.mla_per_layer
        case "F" | "S" | "C" | "A":
            return (_attention(s, i, letters),)
        case "X":
            return (CrossAttention(s.n_heads, s.n_kv_heads, s.head_dim, gated=True),)
        case "L":
            return (_linear(s),)
        case "M":
            return (_mamba(s),)
        case "K":
            return (Convolution(s.conv_kernel),)
        case "H":
            return (_attention(s, i, letters), _mamba(s))
        case "P" | "Q" | "W":
            return (_compressed(s, letters[i]),)
        case "-":
            return ()
        case letter:
            raise UnsupportedModel(f"layer_pattern: unknown layer kind `{letter}`")


def _attention(s: Shape, i: int, letters: str) -> Attention:
    letter = letters[i]
    kv_heads, head_dim, value_dim = s.n_kv_heads, s.head_dim, s.v_head_dim or s.head_dim
    if letter == "F" and s.global_head_dim:
        kv_heads, head_dim, value_dim = s.global_kv_heads or kv_heads, s.global_head_dim, s.global_head_dim
    if letter == "S" and s.swa_kv_heads:
        kv_heads = s.swa_kv_heads
    indexed = _has_indexer(s, i, letters)
    return Attention(
        n_heads=(s.swa_heads if letter == "S" else 0) or s.n_heads,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        value_dim=value_dim,
        window_tokens=s.sliding_window if letter in "SC" else None,
        chunked=letter == "C",
        qkv_bias=s.qkv_bias,
        output_bias=s.o_bias,
        qk_norm=s.qk_norm,
        gate=s.q_gate,
        sinks=s.sinks == "all" or s.sinks == letter,
        keys_are_values=s.k_eq_v and letter == "F",
        shares_cache=letter in "FSC" and i >= s.n_layers - s.kv_shared_layers,
        prefixed=s.model_type in PREFIXED,
        parallel=s.model_type in PARALLEL or (s.model_type == "stablelm" and s.norms_per_layer == 1),
        n_index_heads=s.index_n_heads if indexed else 0,
        index_dim=s.index_head_dim if indexed else 0,
        index_top_k=s.index_topk if indexed else 0,
        index_block=s.index_block if indexed else 0,
    )


def _has_indexer(s: Shape, i: int, letters: str) -> bool:
    if s.index_pattern:
        return expand(s.index_pattern)[i] == "I"
    if not s.n_indexer_layers:
        return False
    attending = [j for j, c in enumerate(letters) if c in "FSC"]
    return i in attending[-s.n_indexer_layers :]


def _latent(s: Shape, indexed: bool) -> LatentAttention:
    return LatentAttention(
        n_heads=s.n_heads,
        q_rank=s.q_lora_rank,
        kv_rank=s.kv_lora_rank,
        rope_dim=s.qk_rope_head_dim,
        nope_dim=s.qk_nope_head_dim,
        value_dim=s.v_head_dim,
        head_gate=s.mla_gate_heads,
        n_index_heads=s.index_n_heads if indexed else 0,
        index_dim=s.index_head_dim if indexed else 0,
        index_top_k=s.index_topk if indexed or s.index_pattern else 0,
        index_pool=s.idx_kpool if indexed or s.index_pattern else 0,
    )


def _compressed(s: Shape, letter: str) -> CompressedAttention:
    return CompressedAttention(
        n_heads=s.n_heads,
        head_dim=s.head_dim,
        q_rank=s.q_lora_rank,
        o_groups=s.o_groups,
        o_rank=s.o_lora_rank,
        window_tokens=s.sliding_window,
        ratio={"P": s.csa_ratio, "Q": s.hca_ratio, "W": 0}[letter],
        n_index_heads=s.index_n_heads if letter == "P" else 0,
        index_dim=s.index_head_dim if letter == "P" else 0,
        index_top_k=s.index_topk if letter == "P" else 0,
    )


def _mamba(s: Shape) -> StateSpace:
    if s.linear_kind == "mamba1":
        return StateSpace(
            1,
            s.ssm_d_inner,
            s.ssm_state,
            s.conv_kernel,
            dt_rank=s.ssm_dt_rank,
            inner_norms=s.mamba_inner_norms,
        )
    inner = s.ssm_d_inner or s.ssm_heads * s.ssm_head_dim
    return StateSpace(
        2,
        inner,
        s.ssm_state,
        s.conv_kernel,
        n_heads=s.ssm_heads,
        n_groups=s.ssm_groups,
        normed=bool(s.mamba_norm),
    )


def _linear(s: Shape) -> LinearAttention:
    if s.linear_kind not in ("gated_deltanet", "kda", "lightning"):
        raise UnsupportedModel(f"linear_kind: `{s.linear_kind}` is not known")
    return LinearAttention(
        s.linear_kind,  # type: ignore[arg-type]
        s.lin_k_heads, s.lin_v_heads, s.lin_k_dim, s.lin_v_dim, s.conv_kernel, s.kda_full_gates,
    )  # fmt: skip


def _feed_forwards(s: Shape, i: int, letter: str) -> tuple[FeedForward, ...]:
    wide = 2 if s.double_wide_mlp and i >= s.n_layers - s.kv_shared_layers else 1
    dense = (Dense(s.intermediate_size * wide, s.ffn_mats, s.mlp_bias),) * s.dense_per_layer
    match letter:
        case "D":
            return dense
        case "E":
            return (_experts(s),)
        case "B":
            return (*dense, _experts(s))
        case "-":
            return ()
        case _:
            raise UnsupportedModel(f"ffn_pattern: unknown feed-forward kind `{letter}`")


def _experts(s: Shape) -> Experts:
    return Experts(
        n_experts=s.n_experts,
        per_token=s.experts_per_token,
        inner=s.moe_intermediate_size,
        n_matrices=s.ffn_mats,
        shared_inner=s.shared_ff,
        shared_gate=s.shared_gate,
        bias=s.expert_bias,
        router_bias=s.router_bias,
        score_bias=s.score_bias_is_param,
        latent=s.moe_latent,
        n_zero_experts=s.zero_experts,
        n_shared=s.n_shared_experts,
    )


def _extra_params(s: Shape, mixer: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Tensors of a layer that belong to no mixer and no feed-forward: (name, shape)."""
    h = s.hidden_size
    out: list[tuple[str, tuple[int, ...]]] = []
    if s.gemma4_moe:
        out += [("ffn_gate_inp.scale", (h,)), ("ffn_down_exps.scale", (s.n_experts,))]
    if s.act_params_per_layer:
        out.append(("xielu", (s.act_params_per_layer,)))
    for streams in (s.mhc, s.hc_mult if mixer in "PQW" else 0):
        if streams:  # two hyper-connections: a projection of all streams, its bias and three scales
            n = (2 + streams) * streams
            for half in ("attn", "ffn"):
                out += [
                    (f"hc_{half}_fn.weight", (streams * h, n)),
                    (f"hc_{half}_base.weight", (n,)),
                    (f"hc_{half}_scale.weight", (3,)),
                ]
    if s.sub_norms:
        out += [("attn_sub_norm.weight", (h,)), ("ffn_sub_norm.weight", (s.intermediate_size,))]
    if p := s.ple_dim:
        out += [("inp_gate.weight", (h, p)), ("proj.weight", (p, h)), ("post_norm.weight", (h,))]
    if n := s.altup:
        out += [("altup_correct_scale.weight", (h,)), ("altup_correct_coef.weight", (n, n))]
        out += [("altup_predict_coef.weight", (n, n * n)), ("altup_router.weight", (h, n))]
        out.append(("altup_router_norm.weight", (h,)))
    if r := s.laurel_rank:
        out += [("laurel_l.weight", (h, r)), ("laurel_r.weight", (r, h)), ("laurel_post_norm.weight", (h,))]
    return tuple(out)


def _nas_block(s: Shape, i: int) -> Block:
    group, inner = s.nas[i]
    attention = Attention(s.n_heads, s.n_heads // group, s.head_dim, s.head_dim) if group else None
    return Block(
        mixers=(attention,) if attention else (),
        feed_forwards=(Dense(inner, s.ffn_mats),),
        n_norms=2 if attention else 1,
        norm_width=s.norm_params_per_channel,
    )


def _whisper(s: Shape) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
    """(decoder blocks,
    encoder blocks): biases everywhere but on keys; the decoder attends to the encoder too."""
    attend = Attention(
        s.n_heads, s.n_kv_heads, s.head_dim, s.head_dim, qkv_bias=True, key_bias=False, output_bias=True
    )
    cross = CrossAttention(s.n_heads, s.n_kv_heads, s.head_dim, n_tokens=s.src_pos, bias=True)
    ffn = (Dense(s.intermediate_size, 2, bias=True),)
    decoder = (Block((attend, cross), ffn, n_norms=3, norm_width=2),) * s.n_layers
    return decoder, (Block((attend,), ffn, n_norms=2, norm_width=2),) * s.encoder_layers
