"""Tiny models of latent attention: DeepSeek-V2's, and those whose indexer chooses what a token sees."""

from __future__ import annotations

import gguf
from tiny_parts import (
    HEADS,
    HIDDEN,
    LAYERS,
    QUANTIZED,
    Tiny,
    common,
    dense,
    experts,
    latent_widths,
    mixture,
    norms,
)

LOW, RANK, ROTARY, NOPE, VALUE = 64, 128, 64, 64, 64
INDEX_HEADS, INDEX_WIDTH, TOP_K = 8, 128, 36  # the prompt has 40 tokens


def _sizes(t: Tiny, gating: gguf.ExpertGatingFuncType, n_layers: int = LAYERS) -> None:
    common(t, heads=HEADS, kv=1, rotary=ROTARY, layers=n_layers)
    w = t.w
    w.add_kv_lora_rank(RANK)
    w.add_q_lora_rank(LOW)
    latent_widths(t, RANK, ROTARY, NOPE, VALUE)
    w.add_leading_dense_block_count(1)
    mixture(t, 8, 2)
    w.add_expert_shared_count(1)
    w.add_expert_feed_forward_length(256)
    w.add_expert_weights_scale(1.0)
    w.add_expert_gating_func(gating)


def _stretched(t: Tiny) -> None:
    t.w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    t.w.add_rope_scaling_factor(40.0)
    t.w.add_rope_scaling_orig_ctx_len(64)
    t.w.add_rope_scaling_yarn_log_mul(0.0707)


def _attention(t: Tiny, p: str) -> None:
    # rows too short for blocks of 256 weights
    small = "" if t.kind in (*QUANTIZED, "IQ4_NL", "MXFP4") else "Q8_0"
    t.matrix(p + "attn_q_a", LOW, HIDDEN)
    t.vector(p + "attn_q_a_norm.weight", LOW)
    t.matrix(p + "attn_q_b", HEADS * (NOPE + ROTARY), LOW, small)
    t.matrix(p + "attn_kv_a_mqa", RANK + ROTARY, HIDDEN)
    t.vector(p + "attn_kv_a_norm.weight", RANK)
    t.matrix(p + "attn_k_b", RANK, NOPE, small, experts=HEADS)
    t.matrix(p + "attn_v_b", VALUE, RANK, small, experts=HEADS)
    t.matrix(p + "attn_output", HIDDEN, HEADS * VALUE)


def _feed_forward(t: Tiny, p: str, dense_first: bool, corrected: bool = False) -> None:
    if dense_first:
        dense(t, p)
        return
    experts(t, p, 8, 256)
    if corrected:
        t.vector(p + "exp_probs_b.bias", 8, 0.0)
    dense(t, p, 256, "_shexp")


def deepseek2(t: Tiny) -> None:
    _sizes(t, gguf.ExpertGatingFuncType.SOFTMAX)
    _stretched(t)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        norms(t, p)
        _attention(t, p)
        _feed_forward(t, p, i == 0)


def _sparse(t: Tiny, own: tuple[bool, ...], listed: bool = False) -> None:
    """Layers that have an indexer of their `own`, or share the last one's choice."""
    _sizes(t, gguf.ExpertGatingFuncType.SIGMOID, len(own))
    w = t.w
    w.add_expert_weights_norm(True)
    w.add_indexer_head_count(INDEX_HEADS)
    w.add_indexer_key_length(INDEX_WIDTH)
    w.add_indexer_top_k(TOP_K)
    if listed:
        w.add_array(f"{w.arch}.attention.indexer.types", list(own))
    t.head()
    for i, indexed in enumerate(own):
        p = f"blk.{i}."
        norms(t, p)
        _attention(t, p)
        if indexed:
            t.matrix(p + "indexer.attn_q_b", INDEX_HEADS * INDEX_WIDTH, LOW)
            t.matrix(p + "indexer.attn_k", INDEX_WIDTH, HIDDEN)
            t.vector(p + "indexer.k_norm.weight", INDEX_WIDTH)
            t.vector(p + "indexer.k_norm.bias", INDEX_WIDTH, 0.0)
            t.matrix(p + "indexer.proj", INDEX_HEADS, HIDDEN)
        _feed_forward(t, p, i == 0, corrected=True)


def deepseek32(t: Tiny) -> None:
    _stretched(t)
    _sparse(t, (True,) * LAYERS)


def glm_dsa(t: Tiny) -> None:
    _sparse(t, (True,) * LAYERS)


def glm_dsa_shared(t: Tiny) -> None:
    _sparse(t, (True, True, False, False), listed=True)


SPARSE = {
    "deepseek32": ("deepseek32", deepseek32), "glm-dsa": ("glm-dsa", glm_dsa),
    "glm-dsa-shared": ("glm-dsa", glm_dsa_shared),
}  # fmt: skip
