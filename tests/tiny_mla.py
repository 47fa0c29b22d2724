"""Tiny models of latent attention beside DeepSeek-V2's: a cache of decompressed heads, and Mistral 4."""

from __future__ import annotations

import gguf
from tiny_parts import HEADS, HIDDEN, LAYERS, QUANTIZED, Tiny, common, dense, latent_widths, mixture, norms

RANK, LOW, ROTARY, NOPE, VALUE = 128, 64, 32, 64, 64


def _minicpm3(t: Tiny) -> None:
    common(t, kv=HEADS, rotary=ROTARY)
    ranks(t)
    t.w.add_key_length(NOPE + ROTARY)
    for name, centre in (("long", 4.0), ("short", 1.2)):
        t.vector(f"rope_factors_{name}.weight", ROTARY // 2, centre, 0.1)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        norms(t, p)
        _joined(t, p)
        dense(t, p)


def _deepseek2_joined(t: Tiny) -> None:
    """As llama.cpp wrote files before it absorbed what keys are made with."""
    common(t, kv=HEADS, rotary=ROTARY, layers=1)
    ranks(t)
    t.w.add_key_length(NOPE + ROTARY)
    t.w.add_value_length(VALUE)
    t.w.add_leading_dense_block_count(1)
    mixture(t, 8, 2, 256)
    t.w.add_expert_shared_count(1)
    t.w.add_expert_weights_scale(1.0)
    t.head()
    norms(t, "blk.0.")
    _joined(t, "blk.0.")
    dense(t, "blk.0.")


def _mistral4(t: Tiny) -> None:
    """Experts' gates and ups in one matrix, YaRN, and queries that grow after 16 tokens."""
    common(t, kv=1, rotary=ROTARY)
    w = t.w
    ranks(t)
    latent_widths(t, RANK, ROTARY, NOPE, VALUE)
    w.add_leading_dense_block_count(0)
    mixture(t, 8, 2, 256)
    w.add_expert_shared_count(1)
    w.add_expert_weights_scale(1.0)
    w.add_expert_weights_norm(True)
    w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    w.add_rope_scaling_factor(8.0)
    w.add_rope_scaling_orig_ctx_len(64)
    w.add_rope_scaling_yarn_log_mul(0.07)
    w.add_attn_temperature_scale(0.1)
    w.add_attn_temperature_length(16)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        norms(t, p)
        projections(t, p)
        by_head(t, p)
        t.matrix(p + "ffn_gate_inp", 8, HIDDEN, "F32")
        t.matrix(p + "ffn_gate_up_exps", 512, HIDDEN, experts=8)
        t.matrix(p + "ffn_down_exps", HIDDEN, 256, experts=8)
        dense(t, p, 256, "_shexp")


def ranks(t: Tiny) -> None:
    t.w.add_kv_lora_rank(RANK)
    t.w.add_q_lora_rank(LOW)


def projections(t: Tiny, p: str) -> None:
    t.matrix(p + "attn_q_a", LOW, HIDDEN)
    t.vector(p + "attn_q_a_norm.weight", LOW)
    t.matrix(p + "attn_q_b", HEADS * (NOPE + ROTARY), LOW)
    t.matrix(p + "attn_kv_a_mqa", RANK + ROTARY, HIDDEN)
    t.vector(p + "attn_kv_a_norm.weight", RANK)
    t.matrix(p + "attn_output", HIDDEN, HEADS * VALUE)


def by_head(t: Tiny, p: str) -> None:
    small = "" if t.kind in QUANTIZED else "Q8_0"
    t.matrix(p + "attn_k_b", RANK, NOPE, small, experts=HEADS)
    t.matrix(p + "attn_v_b", VALUE, RANK, small, experts=HEADS)


def _joined(t: Tiny, p: str) -> None:
    projections(t, p)
    t.matrix(p + "attn_kv_b", HEADS * (NOPE + VALUE), RANK)


LATENTS = {
    "minicpm3": ("minicpm3", _minicpm3),
    "deepseek2-joined": ("deepseek2", _deepseek2_joined),
    "mistral4": ("mistral4", _mistral4),
}
