"""The first ChatGLM, for which neither llama.cpp nor Transformers has code: the runner against a forward pass in NumPy,
after modeling_chatglm.py of https://huggingface.co/zai-org/chatglm-6b."""

# mypy: disable-error-code=no-untyped-def
from __future__ import annotations

import numpy as np
import pytest
import runner_tiny
from numpy_forward import attend, gelu_tanh, layer_norm, tensors_of
from tiny_parts import HEAD_DIM, HEADS, LAYERS

pytest.importorskip("numba")

from runner import meter
from runner.engine import load


def turned(x, positions):
    """Each number of the first half of x [token][head][number] with the one half of it further."""
    n = x.shape[-1] // 2
    angle = positions[:, None] * 10000.0 ** (-np.arange(n) / n)
    c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
    return np.concatenate([x[..., :n] * c - x[..., n:] * s, x[..., n:] * c + x[..., :n] * s], axis=-1)


def forward(t, tokens, n_prompt: int) -> np.ndarray:
    """Logits of every token, in float64, the last of the prompt being the one that begins the answer (`<sop>`)."""
    x, n, context = t["token_embd.weight"][tokens], len(tokens), n_prompt - 1
    seen = np.tril(np.ones((n, n), bool))  # get_masks
    seen[:, :context] = True
    place = np.minimum(np.arange(n), context - 1)  # get_position_ids: [gMASK] is the context's last token
    behind = np.maximum(np.arange(n) - context + 1, 0)
    alpha, half = (2 * LAYERS) ** 0.5, HEAD_DIM // 2
    for i in range(LAYERS):
        p = f"blk.{i}."
        norm = lambda x, name, p=p: layer_norm(x, t[f"{p}{name}.weight"], t[f"{p}{name}.bias"])  # noqa: E731
        linear = lambda x, name, p=p: x @ t[f"{p}{name}.weight"].T + t[f"{p}{name}.bias"]  # noqa: E731
        normed = norm(x, "attn_norm")
        q, k, v = (linear(normed, f"attn_{m}").reshape(n, HEADS, HEAD_DIM) for m in "qkv")
        q, k = (
            np.concatenate([turned(y[..., :half], place), turned(y[..., half:], behind)], axis=-1)
            for y in (q, k)
        )
        x = normed * alpha + linear(attend(q, k, v, seen), "attn_output")
        normed = norm(x, "ffn_norm")
        x = normed * alpha + linear(gelu_tanh(linear(normed, "ffn_up")), "ffn_down")
    return layer_norm(x, t["output_norm.weight"], t["output_norm.bias"]) @ t["output.weight"].T


@pytest.mark.parametrize(("kind", "error"), [("F16", 4e-3), ("Q8_0", 0.1)])
def test_logits_and_greedy_tokens_are_those_of_a_plain_forward_pass(
    tmp_path, kind: str, error: float
) -> None:
    path = runner_tiny.write(tmp_path / "m.gguf", "chatglm1", kind)
    t, tokens = tensors_of(path), runner_tiny.prompt()
    expected = forward(t, tokens, len(tokens))
    engine = load(path, n_threads=2)
    try:
        logits = engine.prefill(tokens, all_logits=True)
        assert np.abs(logits - expected).max() <= error * expected.std()
        greedy, last = [], logits[-1]
        for _ in range(64):
            greedy.append(int(last.argmax()))
            last = engine.decode(greedy[-1])
        engine.rewind(0)
        last = engine.prefill(tokens)
        assert np.abs(last - expected[-1]).max() <= error * expected.std()
    finally:
        engine.close()
    every = forward(t, tokens + greedy, len(tokens))
    assert greedy == every[len(tokens) - 1 : -1].argmax(-1).tolist()


def test_the_first_token_of_a_prompt_sees_its_last_but_one_and_not_its_last(tmp_path) -> None:
    engine = load(runner_tiny.write(tmp_path / "m.gguf", "chatglm1", "F16"), n_threads=1)
    first = []
    for tokens in ([5, 6, 7, 8, 9], [5, 6, 7, 8, 10], [5, 6, 7, 11, 9]):
        engine.rewind(0)
        first.append(engine.prefill(tokens, all_logits=True)[0])
    engine.close()
    assert np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], first[2])


def test_a_prompt_runs_in_one_piece_and_each_of_its_tokens_sees_all(tmp_path) -> None:
    engine = load(runner_tiny.write(tmp_path / "m.gguf", "chatglm1", "F16"), n_threads=1, n_batch=16)
    assert engine.n_batch == engine.n_context == runner_tiny.CONTEXT
    per_pair = 4.0 * HEADS * HEAD_DIM * LAYERS
    other = load(runner_tiny.write(tmp_path / "n.gguf", "opt", "F16"), n_threads=1)
    both = [meter.prefill_flops(e, 50) for e in (engine, other)]
    matrices = [50 * e.meter.token_flops for e in (engine, other)]
    # of the last layer and the head
    last = 2.0 * 49 * (2 * runner_tiny.INNER + runner_tiny.VOCAB) * runner_tiny.HIDDEN
    assert both[0] == matrices[0] - last + per_pair * 50 * 50
    assert both[1] == matrices[1] - last + per_pair * 50 * 51 / 2
    engine.close()
    other.close()
