"""Tiny models of what llama.cpp has no architecture for: held against Hugging Face's Transformers."""

from __future__ import annotations

from collections.abc import Callable

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
    norms,
)

SPARE_WORDS, CROSS_LAYER = 8, 1


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


ALONE: dict[str, tuple[str, Callable[[Tiny], None]]] = {
    "opt": (
        "opt",
        Family(
            norm_bias=True, qkv_bias=True, output_bias=True, ffn="plain", ffn_bias=True, kv=HEADS, keys=_opt
        ),
    ),
    "mllama": ("mllama", _mllama),
}
