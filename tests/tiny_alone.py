"""Tiny models of what llama.cpp has no architecture for: held against Hugging Face's Transformers."""

from __future__ import annotations

from tiny_families import Family
from tiny_parts import CONTEXT, HEADS, HIDDEN, Tiny


def _opt(t: Tiny) -> None:
    t.matrix("position_embd", CONTEXT + 2, HIDDEN, "F32", sigma=0.5)


ALONE: dict[str, tuple[str, Family]] = {
    "opt": (
        "opt",
        Family(
            norm_bias=True, qkv_bias=True, output_bias=True, ffn="plain", ffn_bias=True, kv=HEADS, keys=_opt
        ),
    ),
}
