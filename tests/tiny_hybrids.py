"""Tiny models with recurrent layers: Mamba-2, short convolutions, the gated delta rule."""

from __future__ import annotations

import gguf
from tiny_parts import (
    HEADS,
    HIDDEN,
    INNER,
    KV_HEADS,
    LAYERS,
    Tiny,
    attention,
    common,
    dense,
    experts,
    head_sizes,
    mixture,
    norms,
    scaled,
)  # fmt: skip


def sizes(t: Tiny, heads: int, inner: int, state: int, groups: int, kernel: int = 4) -> None:
    w = t.w
    w.add_ssm_conv_kernel(kernel)
    w.add_ssm_inner_size(inner)
    w.add_ssm_state_size(state)
    w.add_ssm_time_step_rank(heads)
    w.add_ssm_group_count(groups)


def mamba2(t: Tiny, p: str, heads: int, inner: int, state: int, groups: int, normed: bool = True) -> None:
    channels = inner + 2 * groups * state
    t.matrix(p + "ssm_in", inner + channels + heads, HIDDEN)
    t.vector(p + "ssm_conv1d.weight", (channels, 4), 0.0, 0.5)
    t.vector(p + "ssm_conv1d.bias", channels, 0.0)
    t.vector(p + "ssm_dt.bias", heads, -1.0, 1.0)
    t.vector(p + "ssm_a", (heads, 1), -1.0, 0.3)
    t.vector(p + "ssm_d", (heads, 1))
    if normed:
        t.vector(p + "ssm_norm.weight", (groups, inner // groups))
    t.matrix(p + "ssm_out", HIDDEN, inner)


def falcon_h1(t: Tiny) -> None:
    common(t)
    head_sizes(t)
    sizes(t, 8, 512, 64, 2)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        norms(t, p, "attn_norm")
        t.vector(p + "ffn_norm", HIDDEN)
        mamba2(t, p, 8, 512, 64, 2, normed=i > 0)
        attention(t, p)
        dense(t, p)


def granite_hybrid(t: Tiny, mixed: bool = False) -> None:
    common(t, kv=[0, KV_HEADS, 0])
    scaled(t)
    t.w.add_bool("granitehybrid.rope.scaling.finetuned", mixed)
    sizes(t, 8, 2 * HIDDEN, 128, 1)
    if mixed:
        mixture(t, 8, 2)
        t.w.add_expert_shared_feed_forward_length(256)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        norms(t, p)
        if i == 1:
            attention(t, p)
        else:
            mamba2(t, p, 8, 2 * HIDDEN, 128, 1)
        if mixed:
            experts(t, p, 8, INNER)
            dense(t, p, 256, "_shexp")
        else:
            dense(t, p)


def granite_hybrid_moe(t: Tiny) -> None:
    granite_hybrid(t, mixed=True)


def _nemotron_sizes(t: Tiny, n_groups: int) -> None:
    t.w.add_layer_norm_eps(1e-5)
    common(t, kv=[0, KV_HEADS, 0], inner=[0, 0, INNER])
    head_sizes(t)
    sizes(t, 8, 512, 64, n_groups)


def _nemotron_layers(t: Tiny, n_groups: int) -> str:
    """All tensors but the last layer's feed-forward; the prefix of its names."""
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        norms(t, p, "attn_norm")
        if i == 0:
            mamba2(t, p, 8, 512, 64, n_groups)
        elif i == 1:
            attention(t, p)
    return p


def nemotron_h(t: Tiny) -> None:
    _nemotron_sizes(t, 4)
    p = _nemotron_layers(t, 4)
    t.matrix(p + "ffn_up", INNER, HIDDEN)
    t.matrix(p + "ffn_down", HIDDEN, INNER)


def nemotron_h_moe(t: Tiny, latent: int = 128) -> None:
    """Mamba-2, attention, and experts of squared ReLU in a latent width."""
    w = t.w
    _nemotron_sizes(t, 2)
    mixture(t, 8, 3)
    w.add_expert_shared_count(1)
    w.add_expert_feed_forward_length(256)
    w.add_expert_shared_feed_forward_length(INNER)
    w.add_expert_weights_norm(True)
    w.add_expert_weights_scale(2.5)
    w.add_uint32("nemotron_h_moe.moe_latent_size", latent)
    p = _nemotron_layers(t, 2)
    t.matrix(p + "ffn_gate_inp", 8, HIDDEN, "F32")
    t.vector(p + "exp_probs_b.bias", 8, 0.0)
    t.matrix(p + "ffn_latent_down", latent, HIDDEN)
    t.matrix(p + "ffn_latent_up", HIDDEN, latent)
    t.matrix(p + "ffn_up_exps", 256, latent, experts=8)
    t.matrix(p + "ffn_down_exps", latent, 256, experts=8)
    t.matrix(p + "ffn_up_shexp", INNER, HIDDEN)
    t.matrix(p + "ffn_down_shexp", HIDDEN, INNER)


def lfm2(t: Tiny, mixed: bool = False) -> None:
    common(t, kv=[0, KV_HEADS, 0])
    t.w.add_shortconv_l_cache(3)
    if not mixed:
        t.w.add_sliding_window(16)
        t.w.add_array("lfm2.attention.sliding_window_pattern", [True] * LAYERS)
    else:
        t.w.add_leading_dense_block_count(1)
        mixture(t, 8, 2, 256)
        t.w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        norms(t, p)
        if i == 1:
            attention(t, p, head_norms=True)
        else:
            t.vector(p + "shortconv.conv.weight", (HIDDEN, 3), 0.0, 0.5)
            t.matrix(p + "shortconv.in_proj", 3 * HIDDEN, HIDDEN)
            t.matrix(p + "shortconv.out_proj", HIDDEN, HIDDEN)
        if mixed and i > 0:
            experts(t, p, 8, 256)
            t.vector(p + "exp_probs_b.bias", 8, 0.0)
        else:
            dense(t, p)


def lfm2moe(t: Tiny) -> None:
    lfm2(t, mixed=True)


def qwen35(t: Tiny, mixed: bool = False, joined: bool = False) -> None:
    """Two layers of the gated delta rule (2 key heads, 4 value heads), then gated attention."""
    dim, state, k_heads, v_heads = 64, 64, 2, 4
    inner, channels = v_heads * state, (v_heads + 2 * k_heads) * state
    common(t, rotary=32)
    w = t.w
    head_sizes(t)
    w.add_array(f"{w.arch}.attention.recurrent_layers", [True, True, False])
    if not joined:
        w.add_rope_dimension_sections([6, 5, 5, 0])
    sizes(t, v_heads, inner, state, k_heads)
    if mixed:
        mixture(t, 8, 3, 256, INNER)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        norms(t, p, "attn_norm", "post_attention_norm")
        if i == 2:
            t.matrix(p + "attn_q", 2 * HEADS * dim, HIDDEN)
            t.matrix(p + "attn_k", KV_HEADS * dim, HIDDEN)
            t.matrix(p + "attn_v", KV_HEADS * dim, HIDDEN)
            t.matrix(p + "attn_output", HIDDEN, HEADS * dim)
            t.vector(p + "attn_q_norm.weight", dim)
            t.vector(p + "attn_k_norm.weight", dim)
        else:
            t.matrix(p + "attn_qkv", channels, HIDDEN)
            t.matrix(p + "attn_gate", inner, HIDDEN)
            for name, rows in (("ba", 2 * v_heads),) if joined else (("beta", v_heads), ("alpha", v_heads)):
                t.matrix(f"{p}ssm_{name}", rows, HIDDEN)
            t.vector(p + "ssm_conv1d.weight", (channels, 4), 0.0, 0.5)
            t.vector(p + "ssm_dt.bias", v_heads, -1.0, 1.0)
            t.vector(p + "ssm_a", v_heads, -1.0, 0.3)
            t.vector(p + "ssm_norm.weight", state)
            t.matrix(p + "ssm_out", HIDDEN, inner)
        if mixed:
            experts(t, p, 8, 256)
            t.vector(p + "ffn_gate_inp_shexp.weight", HIDDEN, 0.0)
            dense(t, p, INNER, "_shexp")
        else:
            dense(t, p)


def qwen35moe(t: Tiny) -> None:
    qwen35(t, mixed=True)


def qwen3next(t: Tiny) -> None:
    qwen35(t, mixed=True, joined=True)
