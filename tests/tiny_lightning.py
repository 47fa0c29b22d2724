"""A tiny model of lightning attention (MiniMax-01): states that decay at fixed rates, softmax attention between."""

from __future__ import annotations

from tiny_parts import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    Tiny,
    attention,
    common,
    experts,
    head_sizes,
    mixture,
    norms,
)

N_LAYERS, INTERVAL, INNER = 4, 3, 256


def minimax_01(t: Tiny) -> None:
    """Every third layer attends to all, half of each head rotated."""
    common(t, layers=N_LAYERS, rotary=HEAD_DIM // 2, inner=INNER)
    head_sizes(t)
    mixture(t, 8, 2)
    t.w.add_residual_scale((2 * N_LAYERS) ** 0.25)
    t.w.add_full_attention_interval(INTERVAL)
    t.head()
    width = HEADS * HEAD_DIM
    for i in range(N_LAYERS):
        p = f"blk.{i}."
        norms(t, p)
        if (i + 1) % INTERVAL == 0:
            attention(t, p)
        else:
            t.matrix(p + "attn_qkv", 3 * width, HIDDEN)
            t.matrix(p + "attn_gate", width, HIDDEN)
            t.vector(p + "attn_norm_2.weight", width)
            t.matrix(p + "attn_output", HIDDEN, width)
        experts(t, p, 8, INNER)


LIGHTNING = {"minimax-01": ("minimax-01", minimax_01)}
