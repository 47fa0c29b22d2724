"""Tiny models whose layers differ in the number or the width of their heads."""

from __future__ import annotations

from typing import Any

import numpy as np
from tiny_parts import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    INNER,
    KV_HEADS,
    LAYERS,
    QUANTIZED,
    VOCAB,
    Tiny,
    attention,
    common,
    dense,
    experts,
    head_sizes,
    mixture,
    norms,
)  # fmt: skip

FAR, NEAR = 96, 64  # widths of heads


PER_LAYER = 256  # numbers of a layer's own embedding


def _gemma4(t: Tiny, mixed: bool = False) -> None:
    _gemma4_keys(t, [2, 2, 1], [True, True, False])
    if mixed:
        mixture(t, 8, 2, 256)
    for i in range(LAYERS):
        p, far = f"blk.{i}.", i == LAYERS - 1
        _gemma4_attention(t, p, FAR if far else NEAR, 1 if far else 2, "k" if far else "kv")
        dense(t, p)
        if mixed:
            norms(t, p, "post_ffw_norm_1", "pre_ffw_norm_2", "post_ffw_norm_2")
            experts(t, p, 8, 256)
            t.vector(p + "ffn_gate_inp.scale", HIDDEN, 16.0)
            t.vector(p + "ffn_down_exps.scale", 8, 1.0, 0.3)


def _gemma4_keys(t: Tiny, kv: list[int], near: list[bool], shared: int = 0, **more: Any) -> None:
    common(t, kv=kv, rotary=FAR, layers=len(near), **more)
    w = t.w
    w.add_key_length(FAR)
    w.add_value_length(FAR)
    w.add_key_length_swa(NEAR)
    w.add_value_length_swa(NEAR)
    w.add_rope_dimension_count_swa(NEAR)
    w.add_rope_freq_base_swa(5000.0)
    w.add_sliding_window(16)
    w.add_sliding_window_pattern(near)
    w.add_shared_kv_layers(shared)
    w.add_embedding_length_per_layer_input(PER_LAYER if shared else 0)
    w.add_final_logit_softcapping(30.0)
    turning = FAR // 6  # a third of the pairs, as in proportional rotation
    w.add_tensor("rope_freqs.weight", np.array([1.0] * turning + [1e30] * (FAR // 2 - turning), np.float32))
    t.head()


def _gemma4_attention(t: Tiny, p: str, width: int, kv: int, held: str) -> None:
    """Norms, queries, and of keys and values those in `held`."""
    norms(t, p, "attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
    t.matrix(p + "attn_q", HEADS * width, HIDDEN)
    for name in held:
        t.matrix(f"{p}attn_{name}", kv * width, HIDDEN)
    t.matrix(p + "attn_output", HIDDEN, HEADS * width)
    for name in "qk" if held else "q":
        t.vector(f"{p}attn_{name}_norm.weight", width, 0.4)
    t.vector(p + "layer_output_scale.weight", 1, 0.9)


def _per_layer(t: Tiny, n_layers: int) -> None:
    """Embeddings of the layers' own, before them."""
    kind = t.kind if t.kind in QUANTIZED else "Q8_0"
    t.matrix("per_layer_token_embd", VOCAB, PER_LAYER * n_layers, kind, sigma=1 / PER_LAYER**0.5)
    t.matrix("per_layer_model_proj", PER_LAYER * n_layers, HIDDEN, "F16")
    t.vector("per_layer_proj_norm.weight", PER_LAYER)


def _own_input(t: Tiny, p: str) -> None:
    t.matrix(p + "inp_gate", PER_LAYER, HIDDEN)
    t.matrix(p + "proj", HIDDEN, PER_LAYER)
    norms(t, p, "post_norm")


def _gemma4_shared(t: Tiny) -> None:
    """Two of five layers read the caches of others, the first of them with keys and values that nothing reads."""
    near = [True, True, False, True, False]
    inner = [INNER, INNER, INNER, 2 * INNER, 2 * INNER]
    _gemma4_keys(t, [2] * 5, near, shared=2, inner=inner)
    _per_layer(t, 5)
    for i, windowed in enumerate(near):
        p = f"blk.{i}."
        _gemma4_attention(t, p, NEAR if windowed else FAR, 2, "" if i == 4 else "kv")
        dense(t, p, inner[i])
        _own_input(t, p)


STREAMS, RANK = 4, 64


def _gemma3n(t: Tiny) -> None:
    """The last two of 22 layers (llama.cpp lets the first twenty keep caches) read those of others, the first ten have
    sparse gates."""
    near = [i not in (4, 9, 14, 19, 21) for i in range(22)]
    common(t, layers=len(near), inner=HIDDEN)
    head_sizes(t)
    w = t.w
    w.add_rope_freq_base_swa(5000.0)
    w.add_sliding_window(16)
    w.add_sliding_window_pattern(near)
    w.add_shared_kv_layers(2)
    w.add_embedding_length_per_layer_input(PER_LAYER)
    w.add_altup_num_inputs(STREAMS)
    w.add_altup_active_idx(0)
    w.add_activation_sparsity_scale([1.6448533535003662 if i < 10 else -np.inf for i in range(len(near))])
    t.head()
    for name in ("altup_proj", "altup_unembd_proj"):
        t.matrix(name, HIDDEN, HIDDEN, "F16", experts=STREAMS - 1)
    _per_layer(t, len(near))
    for i in range(len(near)):
        p = f"blk.{i}."
        norms(t, p, "attn_norm", "ffn_norm", "laurel_post_norm")
        for name in ("post_attention_norm", "post_ffw_norm"):
            t.vector(f"{p}{name}.weight", HIDDEN, 0.4)
        attention(t, p)
        for name in "qk":
            t.vector(f"{p}attn_{name}_norm.weight", HEAD_DIM, 0.2, 0.02)
        dense(t, p, HIDDEN)
        _own_input(t, p)
        norms(t, p, "altup_router_norm", "altup_correct_scale")
        t.matrix(p + "altup_router", STREAMS, HIDDEN, "F16", sigma=5.0)
        t.matrix(p + "altup_predict_coef", STREAMS * STREAMS, STREAMS, "F32", sigma=0.05)
        t.matrix(p + "altup_correct_coef", STREAMS, STREAMS, "F32", sigma=0.2)
        t.matrix(p + "laurel_l", RANK, HIDDEN, "F16")
        t.matrix(p + "laurel_r", HIDDEN, RANK, "F16")


def _gemma4_mixture(t: Tiny) -> None:
    _gemma4(t, mixed=True)


def _odd(t: Tiny, width: int, rotary: int, heads: int = HEADS, kv: int = KV_HEADS) -> None:
    common(t, heads=heads, kv=kv, rotary=rotary)
    t.w.add_layer_norm_eps(1e-5)
    t.w.add_key_length(width)
    t.w.add_value_length(width)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        norms(t, p)
        for name, n in (("q", heads), ("k", kv), ("v", kv)):
            t.matrix(f"{p}attn_{name}", n * width, HIDDEN)
        t.matrix(p + "attn_output", HIDDEN, heads * width)
        dense(t, p)


def _width_80(t: Tiny) -> None:
    _odd(t, 80, 80, kv=HEADS // 2)


def _width_100(t: Tiny) -> None:
    _odd(t, 100, 100, heads=8, kv=8)


def _deci(t: Tiny) -> None:
    """The second layer has no attention."""
    heads, kv, inner = [HEADS, 0, HEADS], [KV_HEADS, 0, 1], [INNER, 2 * INNER, INNER // 2]
    common(t, heads=heads, kv=kv, inner=inner)
    head_sizes(t)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        if heads[i]:
            norms(t, p, "attn_norm")
            for name, n in (("q", heads[i]), ("k", kv[i]), ("v", kv[i])):
                t.matrix(f"{p}attn_{name}", n * HEAD_DIM, HIDDEN)
            t.matrix(p + "attn_output", HIDDEN, heads[i] * HEAD_DIM)
        norms(t, p, "ffn_norm")
        dense(t, p, inner[i])


def _mimo2(t: Tiny) -> None:
    kv = [1, 2, 2]
    common(t, kv=kv, rotary=NEAR // 2)
    w = t.w
    w.add_key_length(FAR)
    w.add_value_length(NEAR)
    w.add_rope_freq_base_swa(5000.0)
    w.add_sliding_window(16)
    w.add_sliding_window_pattern([False, True, True])
    w.add_float32("mimo2.attention.value_scale", 0.7)
    mixture(t, 8, 2, 256)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        norms(t, p)
        for name, rows in (("q", HEADS * FAR), ("k", kv[i] * FAR), ("v", kv[i] * NEAR)):
            t.matrix(f"{p}attn_{name}", rows, HIDDEN)
        t.matrix(p + "attn_output", HIDDEN, HEADS * NEAR)
        if i == 0:
            dense(t, p)
            continue
        t.vector(p + "attn_sinks.weight", HEADS, 0.0, 1.0)
        experts(t, p, 8, 256)
        t.vector(p + "exp_probs_b.bias", 8, 0.0, 0.3)


def _step35(t: Tiny) -> None:
    """More heads where there is a window, gates by head, and bounds of the last layer's gated units."""
    near = [False, True, True, False]
    heads = [6 if window else HEADS for window in near]
    common(t, layers=len(near), heads=heads, kv=[KV_HEADS] * len(near))
    w = t.w
    head_sizes(t)
    w.add_rope_freq_base_swa(5000.0)
    w.add_sliding_window(16)
    w.add_sliding_window_pattern(near)
    mixture(t, 8, 3, 256, 256)
    w.add_expert_weights_scale(3.0)
    w.add_expert_weights_norm(True)
    w.add_leading_dense_block_count(1)
    w.add_swiglu_clamp_exp([0.0, 0.0, 0.0, 0.1])
    w.add_swiglu_clamp_shexp([0.2, 0.0, 0.0, 0.15])
    t.vector("rope_freqs.weight", NEAR // 2, 4.0, 1.0)
    t.head()
    for i, n in enumerate(heads):
        p = f"blk.{i}."
        norms(t, p)
        for name, k in (("q", n), ("k", KV_HEADS), ("v", KV_HEADS)):
            t.matrix(f"{p}attn_{name}", k * HEAD_DIM, HIDDEN)
        t.matrix(p + "attn_output", HIDDEN, n * HEAD_DIM)
        t.matrix(p + "attn_gate", n, HIDDEN)
        for name in "qk":
            t.vector(f"{p}attn_{name}_norm.weight", HEAD_DIM)
        if i == 0:
            dense(t, p)
            continue
        experts(t, p, 8, 256)
        t.vector(p + "exp_probs_b.bias", 8, 0.0, 0.3)
        dense(t, p, 256, "_shexp")


SHAPES = {
    "deci": ("deci", _deci), "mimo2": ("mimo2", _mimo2), "step35": ("step35", _step35),
    "width-80": ("exaone", _width_80), "width-100": ("llama", _width_100),
    "gemma4": ("gemma4", _gemma4), "gemma4-moe": ("gemma4", _gemma4_mixture),
    "gemma4-shared": ("gemma4", _gemma4_shared), "gemma3n": ("gemma3n", _gemma3n),
}  # fmt: skip
