"""Tiny models of Ling 3.0: Kimi's delta attention with bounded decays and full gates, latent attention with a gate for
each head, and a layer that drafts."""

from __future__ import annotations

import gguf
from tiny_parts import HEADS, HIDDEN, Tiny, common, dense, experts, mixture, norms

RANK, ROTARY, NOPE, VALUE, DIM, KERNEL = 128, 64, 64, 32, 64, 4
N_LAYERS = 4  # recurrent and latent in turn; the fifth drafts


def _sizes(t: Tiny, low: int) -> None:
    common(t, layers=N_LAYERS + 1, kv=[0, 1, 0, 1, 1], rotary=ROTARY)
    w = t.w
    w.add_kv_lora_rank(RANK)
    if low:
        w.add_q_lora_rank(low)
    w.add_key_length(RANK + ROTARY)
    w.add_value_length(DIM)  # as its converter leaves it
    w.add_key_length_mla(NOPE + ROTARY)
    w.add_value_length_mla(VALUE)
    w.add_ssm_conv_kernel(KERNEL)
    w.add_kda_head_dim(DIM)
    w.add_bool("bailingmoe3.kda.safe_gate", True)
    w.add_float32("bailingmoe3.kda.gate_lower_bound", -5.0)
    w.add_leading_dense_block_count(1)
    mixture(t, 8, 2, 256, 128)
    w.add_expert_shared_count(1)
    w.add_expert_weights_scale(2.5)
    w.add_expert_weights_norm(True)
    w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    w.add_expert_group_count(4)
    w.add_expert_group_used_count(2)
    w.add_array("bailingmoe3.swiglu_clamp_exp", [0.0, 0.5, 0.0, 0.0, 0.0])
    w.add_array("bailingmoe3.swiglu_clamp_shexp", [0.0, 0.0, 0.5, 0.0, 0.0])
    w.add_nextn_predict_layers(1)


def _latent(t: Tiny, p: str, low: int) -> None:
    queries = HEADS * (NOPE + ROTARY)
    if low:
        t.matrix(p + "attn_q_a", low, HIDDEN)
        t.vector(p + "attn_q_a_norm.weight", low)
        t.matrix(p + "attn_q_b", queries, low)
    else:
        t.matrix(p + "attn_q", queries, HIDDEN)
    t.matrix(p + "attn_kv_a_mqa", RANK + ROTARY, HIDDEN)
    t.vector(p + "attn_kv_a_norm.weight", RANK)
    t.matrix(p + "attn_k_b", RANK, NOPE, experts=HEADS)
    t.matrix(p + "attn_v_b", VALUE, RANK, experts=HEADS)
    t.matrix(p + "attn_output", HIDDEN, HEADS * VALUE)
    t.matrix(p + "attn_gate", HEADS, HIDDEN)


def _recurrent(t: Tiny, p: str) -> None:
    width = HEADS * DIM
    for x in "qkv":
        t.matrix(f"{p}attn_{x}", width, HIDDEN)
        t.vector(f"{p}ssm_conv1d_{x}.weight", (width, 1, KERNEL), 0.0, 0.5)
    for gate in "fg":
        t.matrix(f"{p}ssm_{gate}_a", width, HIDDEN)
    t.matrix(p + "ssm_beta", HEADS, HIDDEN)
    t.vector(p + "ssm_a", (HEADS, 1), 2.0, 0.3)
    t.vector(p + "ssm_dt.bias", width, -1.0, 1.0)
    t.vector(p + "ssm_norm.weight", DIM)
    t.matrix(p + "attn_output", HIDDEN, width)


def ling3(t: Tiny, low: int = 0) -> None:
    _sizes(t, low)
    t.head()
    for i in range(N_LAYERS + 1):
        p = f"blk.{i}."
        norms(t, p)
        if i % 2 or i == N_LAYERS:
            _latent(t, p, low)
        else:
            _recurrent(t, p)
        if i == 0:
            dense(t, p)
        else:
            experts(t, p, 8, 256)
            t.vector(p + "exp_probs_b.bias", 8, 0.0)
            dense(t, p, 128, "_shexp")
    p = f"blk.{N_LAYERS}."
    t.matrix(p + "nextn.eh_proj", HIDDEN, 2 * HIDDEN)
    norms(t, p, "nextn.enorm", "nextn.hnorm", "layer_output_norm")


def ling3_vl(t: Tiny) -> None:
    """The text of one that sees: rotation in sections, of halves; compressed queries."""
    t.w.add_rope_dimension_sections([8, 12, 12, 0])
    ling3(t, low=64)


BOUNDED = {"ling3": ("bailingmoe3", ling3), "ling3-vl": ("bailingmoe3", ling3_vl)}
