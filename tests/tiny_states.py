"""Tiny models whose states forget each number at its own rate (Mamba, Jamba, Kimi-Linear), and Mamba-2 alone."""

from __future__ import annotations

import gguf
from tiny_hybrids import mamba2, sizes
from tiny_parts import (
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    Tiny,
    attention,
    common,
    dense,
    experts,
    latent_widths,
    mixture,
    norms,
)

RANK, STATE, KERNEL = 48, 16, 4


def _mamba(t: Tiny, p: str, normed: bool = False) -> None:
    inner = 2 * HIDDEN
    t.matrix(p + "ssm_in", 2 * inner, HIDDEN)
    t.vector(p + "ssm_conv1d.weight", (inner, KERNEL), 0.0, 0.5)
    t.vector(p + "ssm_conv1d.bias", inner, 0.0)
    t.matrix(p + "ssm_x", RANK + 2 * STATE, inner)
    t.matrix(p + "ssm_dt", inner, RANK, "F16")
    t.vector(p + "ssm_dt.bias", inner, -1.0, 1.0)
    t.vector(p + "ssm_a", (inner, STATE), -1.0, 0.1)  # below zero: states do not grow
    t.vector(p + "ssm_d", inner)
    if normed:
        for name, width in (("dt", RANK), ("b", STATE), ("c", STATE)):
            t.vector(f"{p}ssm_{name}_norm.weight", width)
    t.matrix(p + "ssm_out", HIDDEN, inner)


def _mamba_sizes(t: Tiny) -> None:
    t.w.add_ssm_conv_kernel(KERNEL)
    t.w.add_ssm_inner_size(2 * HIDDEN)
    t.w.add_ssm_state_size(STATE)
    t.w.add_ssm_time_step_rank(RANK)


def mamba(t: Tiny, without_weights: bool = False) -> None:
    common(t, heads=0, kv=0, rotary=0, inner=0)
    _mamba_sizes(t)
    if without_weights:
        t.w.add_ssm_dt_b_c_rms(True)
    t.head()
    for i in range(LAYERS):
        norms(t, f"blk.{i}.", "attn_norm")
        _mamba(t, f"blk.{i}.")


def falcon_mamba(t: Tiny) -> None:
    mamba(t, without_weights=True)


def mamba2_alone(t: Tiny) -> None:
    common(t, heads=0, kv=0, rotary=0, inner=0)
    sizes(t, 8, 2 * HIDDEN, 64, 2)
    t.head()
    for i in range(LAYERS):
        norms(t, f"blk.{i}.", "attn_norm")
        mamba2(t, f"blk.{i}.", 8, 2 * HIDDEN, 64, 2)


def jamba(t: Tiny) -> None:
    common(t, kv=[0, KV_HEADS, 0])
    _mamba_sizes(t)
    mixture(t, 8, 2)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        norms(t, p)
        if i == 1:
            attention(t, p)
            dense(t, p)
        else:
            _mamba(t, p, normed=True)
            experts(t, p, 8, 512)


def kimi_linear(t: Tiny) -> None:
    """Kimi delta attention, latent attention without rotation, and again the former."""
    rank, rotary, nope, value, dim = 128, 64, 64, 64, 64
    common(t, kv=[0, 1, 0], rotary=rotary)
    w = t.w
    w.add_kv_lora_rank(rank)
    latent_widths(t, rank, rotary, nope, value)
    w.add_ssm_conv_kernel(KERNEL)
    w.add_kda_head_dim(dim)
    w.add_leading_dense_block_count(1)
    mixture(t, 8, 2, 256)
    w.add_expert_shared_count(1)
    w.add_expert_weights_scale(2.446)
    w.add_expert_weights_norm(True)
    w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        norms(t, p)
        if i == 1:
            t.matrix(p + "attn_q", HEADS * (nope + rotary), HIDDEN)
            t.matrix(p + "attn_kv_a_mqa", rank + rotary, HIDDEN)
            t.vector(p + "attn_kv_a_norm.weight", rank)
            t.matrix(p + "attn_k_b", rank, nope, experts=HEADS)
            t.matrix(p + "attn_v_b", value, rank, experts=HEADS)
            t.matrix(p + "attn_output", HIDDEN, HEADS * value)
        else:
            kda(t, p, dim)
        if i == 0:
            dense(t, p)
        else:
            experts(t, p, 8, 256)
            t.vector(p + "exp_probs_b.bias", 8, 0.0)
            dense(t, p, 256, "_shexp")


def kda(t: Tiny, p: str, dim: int, flat: bool = False) -> None:
    """`flat`: rates of heads are a vector."""
    width = HEADS * dim
    for x in "qkv":
        t.matrix(f"{p}attn_{x}", width, HIDDEN)
        t.vector(f"{p}ssm_conv1d_{x}.weight", (width, 1, KERNEL), 0.0, 0.5)
    for gate in "fg":
        t.matrix(f"{p}ssm_{gate}_a", dim, HIDDEN)
        t.matrix(f"{p}ssm_{gate}_b", width, dim)
    t.matrix(p + "ssm_beta", HEADS, HIDDEN)
    t.vector(p + "ssm_a", HEADS if flat else (HEADS, 1), -1.0, 0.3)
    t.vector(p + "ssm_dt.bias", width, -1.0, 1.0)
    t.vector(p + "ssm_norm.weight", dim)
    t.matrix(p + "attn_output", HIDDEN, width)


STATES = {
    "mamba": ("mamba", mamba), "falcon-mamba": ("mamba", falcon_mamba), "mamba2": ("mamba2", mamba2_alone),
    "jamba": ("jamba", jamba), "kimi-linear": ("kimi-linear", kimi_linear),
}  # fmt: skip
