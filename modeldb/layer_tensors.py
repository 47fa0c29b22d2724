"""The tensors of each layer kind: (name, shape, role), names relative to the block, shapes in ggml order."""

from __future__ import annotations

from collections.abc import Iterator

from modeldb.layers import (
    Attention,
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
from modeldb.tensor import Role

Named = Iterator[tuple[str, tuple[int, ...], Role]]


def mixer_tensors(mixer: Mixer, hidden: int) -> Named:
    """The tensors of one mixer in a model of `hidden` channels."""
    match mixer:
        case Attention():
            return _attention(mixer, hidden)
        case LatentAttention():
            return _latent(mixer, hidden)
        case CompressedAttention():
            return _compressed(mixer, hidden)
        case StateSpace(version=1):
            return _mamba1(mixer, hidden)
        case StateSpace():
            return _mamba2(mixer, hidden)
        case LinearAttention():
            return {"gated_deltanet": _deltanet, "kda": _kda, "lightning": _lightning}[mixer.kind](
                mixer, hidden
            )
        case Convolution():
            return _convolution(mixer, hidden)
        case CrossAttention():
            return _cross(mixer, hidden)


def _attention(a: Attention, hidden: int) -> Named:
    q, k, v = a.n_heads * a.head_dim, a.n_kv_heads * a.head_dim, a.n_kv_heads * a.value_dim
    wide_q = 2 * q if a.gate == "double_q" else q
    projections = [("q", wide_q, q)]
    if not a.shares_cache:
        projections.append(("k", k, k if a.key_bias else 0))
        if not a.keys_are_values:
            projections.append(("v", v, v))
    for name, outputs, biases in projections:
        yield f"attn_{name}.weight", (hidden, outputs), "attention"
        if a.qkv_bias and biases:
            yield f"attn_{name}.bias", (biases,), "attention"
    yield "attn_output.weight", (a.n_heads * a.value_dim, hidden), "attention"
    if a.output_bias:
        yield "attn_output.bias", (hidden,), "attention"
    yield from _qk_norms(a)
    if a.gate in ("per_head", "per_channel"):
        yield "attn_gate.weight", (hidden, a.n_heads if a.gate == "per_head" else q), "attention"
    if a.sinks:
        yield "attn_sinks.weight", (a.n_heads,), "attention"
    if a.n_index_heads:
        yield "indexer.q_proj.weight", (hidden, a.n_index_heads * a.index_dim), "attention"
        yield "indexer.k_proj.weight", (hidden, a.index_dim), "attention"
        yield "indexer.q_norm.weight", (a.index_dim,), "norm"
        yield "indexer.k_norm.weight", (a.index_dim,), "norm"


def _qk_norms(a: Attention) -> Named:
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
        "head": ((a.head_dim,), (a.head_dim,)),
        "full": ((a.n_heads * a.head_dim,), (a.n_kv_heads * a.head_dim,)),
        "qk_ln_heads": ((a.head_dim, a.n_heads), (a.head_dim, a.n_kv_heads)),
    }
    if a.qk_norm:
        q, k = shapes[a.qk_norm]
        yield "attn_q_norm.weight", q, "norm"
        if not a.shares_cache:
            yield "attn_k_norm.weight", k, "norm"


def _latent(a: LatentAttention, hidden: int) -> Named:
    q = a.n_heads * (a.nope_dim + a.rope_dim)
    if a.q_rank:
        yield "attn_q_a.weight", (hidden, a.q_rank), "attention"
        yield "attn_q_a_norm.weight", (a.q_rank,), "norm"
        yield "attn_q_b.weight", (a.q_rank, q), "attention"
    else:
        yield "attn_q.weight", (hidden, q), "attention"
    yield "attn_kv_a_mqa.weight", (hidden, a.kv_rank + a.rope_dim), "attention"
    yield "attn_kv_a_norm.weight", (a.kv_rank,), "norm"
    yield "attn_kv_b.weight", (a.kv_rank, a.n_heads * (a.nope_dim + a.value_dim)), "attention"
    yield "attn_output.weight", (a.n_heads * a.value_dim, hidden), "attention"
    if a.head_gate:
        yield "attn_gate.weight", (hidden, a.n_heads), "attention"
    if a.n_index_heads:
        yield from _latent_indexer(a, hidden)


def _latent_indexer(a: LatentAttention, hidden: int) -> Named:
    yield "indexer.attn_q_b.weight", (a.q_rank, a.n_index_heads * a.index_dim), "attention"
    yield "indexer.attn_k.weight", (hidden, a.index_dim), "attention"
    yield "indexer.k_norm.weight", (a.index_dim,), "norm"
    yield "indexer.k_norm.bias", (a.index_dim,), "norm"
    yield "indexer.proj.weight", (hidden, a.n_index_heads), "attention"
    if a.index_pool:
        yield "indexer_compressor_ape.weight", (a.index_dim, a.index_pool), "attention"
        yield "indexer_compressor_gate.weight", (hidden, a.index_dim), "attention"


def _compressed(a: CompressedAttention, hidden: int) -> Named:
    group_inputs = a.n_heads * a.head_dim // a.o_groups
    yield "attn_sinks.weight", (a.n_heads,), "attention"
    yield "attn_q_a.weight", (hidden, a.q_rank), "attention"
    yield "attn_q_a_norm.weight", (a.q_rank,), "norm"
    yield "attn_q_b.weight", (a.q_rank, a.n_heads * a.head_dim), "attention"
    yield "attn_kv.weight", (hidden, a.head_dim), "attention"
    yield "attn_kv_a_norm.weight", (a.head_dim,), "norm"
    yield "attn_output_a.weight", (group_inputs, a.o_groups * a.o_rank), "attention"
    yield "attn_output_b.weight", (a.o_groups * a.o_rank, hidden), "attention"
    if a.ratio:  # overlapping compression of two streams goes with the indexer
        yield from _compressor("attn_compressor", a.ratio, a.head_dim, 2 if a.n_index_heads else 1, hidden)
    if a.n_index_heads:
        yield from _compressor("indexer_compressor", a.ratio, a.index_dim, 2, hidden)
        yield "indexer.attn_q_b.weight", (a.q_rank, a.n_index_heads * a.index_dim), "attention"
        yield "indexer.proj.weight", (hidden, a.n_index_heads), "attention"


def _compressor(name: str, ratio: int, width: int, streams: int, hidden: int) -> Named:
    yield f"{name}_ape.weight", (streams * width, ratio), "attention"
    yield f"{name}_kv.weight", (hidden, streams * width), "attention"
    yield f"{name}_gate.weight", (hidden, streams * width), "attention"
    yield f"{name}_norm.weight", (width,), "norm"


def _mamba1(m: StateSpace, hidden: int) -> Named:
    yield "ssm_in.weight", (hidden, 2 * m.inner), "linear"
    yield "ssm_conv1d.weight", (m.conv_kernel, m.inner), "linear"
    yield "ssm_conv1d.bias", (m.inner,), "linear"
    yield "ssm_x.weight", (m.inner, m.dt_rank + 2 * m.state), "linear"
    yield "ssm_dt.weight", (m.dt_rank, m.inner), "linear"
    yield "ssm_dt.bias", (m.inner,), "linear"
    yield "ssm_a", (m.state, m.inner), "linear"
    yield "ssm_d", (m.inner,), "linear"
    if m.inner_norms:
        for name, width in (("dt", m.dt_rank), ("b", m.state), ("c", m.state)):
            yield f"ssm_{name}_norm.weight", (width,), "norm"
    yield "ssm_out.weight", (m.inner, hidden), "linear"


def _mamba2(m: StateSpace, hidden: int) -> Named:
    channels = m.inner + 2 * m.n_groups * m.state
    yield "ssm_in.weight", (hidden, m.inner + channels + m.n_heads), "linear"
    yield "ssm_conv1d.weight", (m.conv_kernel, channels), "linear"
    yield "ssm_conv1d.bias", (channels,), "linear"
    yield "ssm_dt.bias", (m.n_heads,), "linear"
    yield "ssm_a", (1, m.n_heads), "linear"
    yield "ssm_d", (1, m.n_heads), "linear"
    if m.normed:
        yield "ssm_norm.weight", (m.inner // m.n_groups, m.n_groups), "norm"
    yield "ssm_out.weight", (m.inner, hidden), "linear"


def _deltanet(m: LinearAttention, hidden: int) -> Named:
    keys, values = m.n_k_heads * m.k_dim, m.n_v_heads * m.v_dim
    yield "attn_qkv.weight", (hidden, 2 * keys + values), "linear"
    yield "attn_gate.weight", (hidden, values), "linear"
    yield "ssm_beta.weight", (hidden, m.n_v_heads), "linear"
    yield "ssm_alpha.weight", (hidden, m.n_v_heads), "linear"
    yield "ssm_conv1d.weight", (m.conv_kernel, 2 * keys + values), "linear"
    yield "ssm_dt.bias", (m.n_v_heads,), "linear"
    yield "ssm_a", (m.n_v_heads,), "linear"
    yield "ssm_norm.weight", (m.v_dim,), "norm"
    yield "ssm_out.weight", (values, hidden), "linear"


def _kda(m: LinearAttention, hidden: int) -> Named:
    width = m.n_k_heads * m.k_dim
    for x in "qkv":
        yield f"ssm_conv1d_{x}.weight", (m.conv_kernel, 1, width), "linear"
        yield f"attn_{x}.weight", (hidden, width), "linear"
    for gate in "fg":
        if m.full_gates:
            yield f"ssm_{gate}_a.weight", (hidden, width), "linear"
        else:
            yield f"ssm_{gate}_a.weight", (hidden, m.k_dim), "linear"
            yield f"ssm_{gate}_b.weight", (m.k_dim, width), "linear"
    yield "ssm_beta.weight", (hidden, m.n_k_heads), "linear"
    yield "ssm_a", (1, m.n_k_heads), "linear"
    yield "ssm_dt.bias", (width,), "linear"
    yield "ssm_norm.weight", (m.v_dim,), "norm"
    yield "attn_output.weight", (width, hidden), "linear"


def _lightning(m: LinearAttention, hidden: int) -> Named:
    width = m.n_k_heads * m.k_dim
    yield "attn_qkv.weight", (hidden, 3 * width), "linear"
    yield "attn_gate.weight", (hidden, width), "linear"
    yield "attn_output.weight", (width, hidden), "linear"
    yield "attn_norm_2.weight", (width,), "norm"


def _convolution(m: Convolution, hidden: int) -> Named:
    yield "shortconv.conv.weight", (m.conv_kernel, hidden), "linear"
    yield "shortconv.in_proj.weight", (hidden, 3 * hidden), "linear"
    yield "shortconv.out_proj.weight", (hidden, hidden), "linear"


def _cross(a: CrossAttention, hidden: int) -> Named:
    q, kv = a.n_heads * a.head_dim, a.n_kv_heads * a.head_dim
    for name, inputs, outputs in (
        ("q", hidden, q),
        ("k", hidden, kv),
        ("v", hidden, kv),
        ("output", q, hidden),
    ):
        yield f"cross_attn_{name}.weight", (inputs, outputs), "attention"
        if a.bias and name != "k":
            yield f"cross_attn_{name}.bias", (outputs,), "attention"
    if a.gated:
        for name in ("q", "k"):
            yield f"cross_attn_{name}_norm.weight", (a.head_dim,), "norm"
        yield "cross_attn_gate", (2,), "other"


def feed_forward_tensors(ffn: FeedForward, hidden: int) -> Named:
    """The tensors of one feed-forward in a model of `hidden` channels."""
    return _dense(ffn, hidden) if isinstance(ffn, Dense) else _experts(ffn, hidden)


def _dense(d: Dense, hidden: int) -> Named:
    for name in ("gate", "up")[-(d.n_matrices - 1) :]:
        yield f"ffn_{name}.weight", (hidden, d.inner), "dense"
        if d.bias:
            yield f"ffn_{name}.bias", (d.inner,), "dense"
    yield "ffn_down.weight", (d.inner, hidden), "dense"
    if d.bias:
        yield "ffn_down.bias", (hidden,), "dense"


def _experts(e: Experts, hidden: int) -> Named:
    names, width = ("gate", "up")[-(e.n_matrices - 1) :], e.latent or hidden
    yield "ffn_gate_inp.weight", (hidden, e.n_experts + e.n_zero_experts), "router"
    if e.router_bias:
        yield "ffn_gate_inp.bias", (e.n_experts,), "router"
    if e.score_bias:
        yield "exp_probs_b.bias", (e.n_experts,), "router"
    if e.latent:
        yield "ffn_latent_down.weight", (hidden, e.latent), "shared_experts"
        yield "ffn_latent_up.weight", (e.latent, hidden), "shared_experts"
    for name in names:
        yield f"ffn_{name}_exps.weight", (width, e.inner, e.n_experts), "experts"
        if e.bias:
            yield f"ffn_{name}_exps.bias", (e.inner, e.n_experts), "experts"
    yield "ffn_down_exps.weight", (e.inner, width, e.n_experts), "experts"
    if e.bias:
        yield "ffn_down_exps.bias", (hidden, e.n_experts), "experts"
    if e.shared_inner:
        for name in names:
            yield f"ffn_{name}_shexp.weight", (hidden, e.shared_inner), "shared_experts"
        yield "ffn_down_shexp.weight", (e.shared_inner, hidden), "shared_experts"
        if e.shared_gate:
            yield "ffn_gate_inp_shexp.weight", (hidden,), "shared_experts"
