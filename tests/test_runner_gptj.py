"""GPT-J, for which llama.cpp has a name and no graph: the runner against a forward pass in NumPy, after
modeling_gptj.py of Hugging Face's Transformers."""

# mypy: disable-error-code=no-untyped-def
from __future__ import annotations

import numpy as np
import pytest
import runner_tiny
from numpy_forward import attend, gelu_tanh, layer_norm, tensors_of
from tiny_parts import HEAD_DIM, HEADS, LAYERS

pytest.importorskip("numba")

from runner.engine import load

ROTARY = 32


def turned(x, positions):
    """Neighbouring numbers of the first ROTARY of each head are pairs: [token][head][number]."""
    angle = positions[:, None] * 10000.0 ** (-np.arange(0, ROTARY, 2) / ROTARY)
    c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
    out = x.copy()
    out[..., 0:ROTARY:2] = x[..., 0:ROTARY:2] * c - x[..., 1:ROTARY:2] * s
    out[..., 1:ROTARY:2] = x[..., 1:ROTARY:2] * c + x[..., 0:ROTARY:2] * s
    return out


def forward(t, tokens) -> np.ndarray:
    """Logits of every token, in float64."""
    x, n = t["token_embd.weight"][tokens], len(tokens)
    seen = np.tril(np.ones((n, n), bool))
    for i in range(LAYERS):
        p = f"blk.{i}."
        normed = layer_norm(x, t[p + "attn_norm.weight"], t[p + "attn_norm.bias"])
        q, k, v = ((normed @ t[f"{p}attn_{m}.weight"].T).reshape(n, HEADS, HEAD_DIM) for m in "qkv")
        q, k = turned(q, np.arange(n)), turned(k, np.arange(n))
        mixed = attend(q, k, v, seen)
        inner = normed @ t[p + "ffn_up.weight"].T + t[p + "ffn_up.bias"]
        inner = gelu_tanh(inner)
        x = x + mixed @ t[p + "attn_output.weight"].T
        x = x + inner @ t[p + "ffn_down.weight"].T + t[p + "ffn_down.bias"]
    normed = layer_norm(x, t["output_norm.weight"], t["output_norm.bias"])
    return normed @ t["output.weight"].T + t["output.bias"]


@pytest.mark.parametrize(("kind", "error"), [("F16", 2e-3), ("Q8_0", 0.1)])
def test_logits_and_greedy_tokens_are_those_of_a_plain_forward_pass(
    tmp_path, kind: str, error: float
) -> None:
    path = runner_tiny.write(tmp_path / "gptj.gguf", "gptj", kind)
    t, tokens = tensors_of(path), runner_tiny.prompt()
    expected = forward(t, tokens)
    engine = load(path, n_threads=2)
    try:
        logits = engine.prefill(tokens, all_logits=True)
        assert np.abs(logits - expected).max() <= error * expected.std()
        greedy, last = [], logits[-1]
        for _ in range(64):
            greedy.append(int(last.argmax()))
            last = engine.decode(greedy[-1])
    finally:
        engine.close()
    every = forward(t, tokens + greedy)
    assert greedy == every[len(tokens) - 1 : -1].argmax(-1).tolist()
