"""Tiny models of what llama.cpp has no architecture for: held against Hugging Face's Transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tiny_mla
from tiny_families import Family
from tiny_parts import (
    CONTEXT,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    VOCAB,
    Tiny,
    attention,
    common,
    dense,
    latent_widths,
    mixture,
    norms,
)

SPARE_WORDS, CROSS_LAYER = 8, 1
DOUBLE_LAYERS, N_EXPERTS, N_ZERO, PER_TOKEN, EXPERT_INNER = 2, 8, 4, 3, 256


def _opt(t: Tiny) -> None:
    t.matrix("position_embd", CONTEXT + 2, HIDDEN, "F32", sigma=0.5)


def _mllama(t: Tiny) -> None:
    """Its second layer attends to an image only, and text leaves it out."""
    common(t)
    t.matrix("output", VOCAB - SPARE_WORDS, HIDDEN, sigma=1 / 16)
    for i in range(LAYERS):
        p = f"blk.{i}."
        norms(t, p)
        if i == CROSS_LAYER:
            own, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
            for name, rows, width in (
                ("q", own, HIDDEN),
                ("k", kv, HIDDEN),
                ("v", kv, HIDDEN),
                ("output", HIDDEN, own),
            ):
                t.matrix(f"{p}cross_attn_{name}", rows, width)
            for name in "qk":
                t.vector(f"{p}cross_attn_{name}_norm.weight", HEAD_DIM)
            t.vector(p + "cross_attn_gate", 2, 0.0)
        else:
            attention(t, p)
        dense(t, p)


def _longcat(t: Tiny) -> None:
    """Two double layers as four, the first of each with experts, of which some give back what they read."""
    common(t, kv=1, rotary=tiny_mla.ROTARY, layers=2 * DOUBLE_LAYERS)
    tiny_mla.ranks(t)
    latent_widths(t, tiny_mla.RANK, tiny_mla.ROTARY, tiny_mla.NOPE, tiny_mla.VALUE)
    mixture(t, N_EXPERTS, PER_TOKEN, EXPERT_INNER)
    t.w.add_uint32("longcat-flash.expert_zero_count", N_ZERO)
    t.w.add_expert_weights_scale(6.0)
    t.head()
    for i in range(2 * DOUBLE_LAYERS):
        p = f"blk.{i}."
        norms(t, p)
        tiny_mla.projections(t, p)
        tiny_mla.by_head(t, p)
        dense(t, p)
        if i % 2:
            continue
        t.matrix(p + "ffn_gate_inp", N_EXPERTS + N_ZERO, HIDDEN, "F32", sigma=0.2)
        t.vector(p + "exp_probs_b.bias", N_EXPERTS + N_ZERO, 0.0, 0.02)
        for name, rows, width in (("gate", EXPERT_INNER, HIDDEN), ("up", EXPERT_INNER, HIDDEN),
                                  ("down", HIDDEN, EXPERT_INNER)):  # fmt: skip
            t.matrix(f"{p}ffn_{name}_exps", rows, width, experts=N_EXPERTS)


_BIASED: dict[str, Any] = {
    "norm_bias": True,
    "qkv_bias": True,
    "output_bias": True,
    "ffn": "plain",
    "ffn_bias": True,
    "kv": HEADS,
}

ALONE: dict[str, tuple[str, Callable[[Tiny], None]]] = {
    "opt": ("opt", Family(**_BIASED, keys=_opt)),
    "mllama": ("mllama", _mllama),
    "chatglm1": ("chatglm1", Family(**_BIASED)),
    "longcat": ("longcat-flash", _longcat),
}
