"""Gemma 3n's layers: four streams of the residual, of which a layer predicts each from all, works on the first, and
corrects all by what came of it (AltUp, arXiv 2301.13310); beside its attention, a branch of low rank (Laurel)."""

from __future__ import annotations

import numpy as np

from runner import attention, feed_forward, kernel_ops, kernel_streams, layer_inputs
from runner.builder import Builder
from runner.per_layer import STREAMS
from runner.weights import Weight

OTHERS = STREAMS - 1


def begin(b: Builder, x: np.ndarray) -> np.ndarray:
    """Streams [token][stream][hidden]: the embeddings x, and what three matrices make of them, as long as they are."""
    hidden, n = b.h.hidden, STREAMS * b.h.hidden
    out = b.floats("streams", n)
    stacked = b.w.get("altup_proj.weight", (hidden, hidden, OTHERS))
    matrix = Weight(stacked.name, stacked.format, (hidden, OTHERS * hidden), stacked.data)
    b.program.add("slice", kernel_ops.slice_heads, x, hidden, out, n, hidden, 1)
    b.project(x, hidden, [(matrix, out[hidden:], n, None)])
    b.program.add("match", kernel_streams.match_lengths, out[hidden:], n, out, n, hidden, OTHERS)
    return out


def layer(
    b: Builder, i: int, x: np.ndarray, angles: np.ndarray | None, inputs: np.ndarray, last: bool
) -> None:
    """The streams x after layer i. `last`: what follows attention sees the last token alone."""
    h, p, hidden, n = b.h, f"blk.{i}.", b.h.hidden, STREAMS * b.h.hidden
    router = _Router(b, p)
    predicted = router.coefficients(x, n, "predict", STREAMS * STREAMS)
    b.program.add("streams", kernel_streams.predict, x, hidden, predicted)
    active, normed = b.floats("active", hidden), b.floats("normed", hidden)
    b.program.add("slice", kernel_ops.slice_heads, x, n, active, hidden, hidden, 1)
    b.norm_by(p + "attn_norm", active, normed)
    beside = _laurel(b, p, normed)
    attention.plain(b, i, active, normed, angles)
    if last:
        width = h.embedded.width * h.embedded.n_layers
        b.last_token((x, n), (active, hidden), (beside, hidden), (inputs, width))
    b.program.add("add", kernel_ops.add, beside, active, hidden, hidden, hidden, 1.0)
    b.program.add("scale", kernel_ops.add, None, active, hidden, 0, hidden, layer_inputs.HALVED)
    feed_forward.add(b, i, active)
    corrected = router.coefficients(active, hidden, "correct", STREAMS)
    b.program.add("streams", kernel_streams.correct, x, hidden, active, corrected)
    scale = b.vector(p + "altup_correct_scale.weight", hidden)
    b.gate(kernel_ops.LINEAR, x, scale, active, hidden, (n, 0, hidden))
    out = layer_inputs.gated(b, i, active, inputs)
    for s in range(1, STREAMS):
        b.program.add("add", kernel_ops.add, out, x[s * hidden :], hidden, hidden, n, 1.0, wait=s == OTHERS)


def end(b: Builder, x: np.ndarray) -> np.ndarray:
    """The mean of the streams, the others through matrices of their own and as long as the first."""
    hidden, n = b.h.hidden, STREAMS * b.h.hidden
    out, others = b.floats("x", hidden), b.floats("other_streams", OTHERS * hidden)
    stacked = b.w.get("altup_unembd_proj.weight", (hidden, hidden, OTHERS))
    size = hidden * stacked.row_bytes
    b.program.add("slice", kernel_ops.slice_heads, x, n, out, hidden, hidden, 1)
    for s in range(OTHERS):
        part = Weight(stacked.name, stacked.format, (hidden, hidden), stacked.data[s * size : (s + 1) * size])
        b.project(x[(s + 1) * hidden :], n, [(part, others[s * hidden :], OTHERS * hidden, None)])
    b.program.add("match", kernel_streams.match_lengths, others, OTHERS * hidden, x, n, hidden, OTHERS)
    for s in range(OTHERS):
        b.program.add("add", kernel_ops.add, others[s * hidden :], out, hidden, OTHERS * hidden, hidden, 1.0)
    b.program.add("scale", kernel_ops.add, None, out, hidden, 0, hidden, 1 / STREAMS)
    return out


class _Router:
    """A layer's router, which is asked twice: before it works, and for what came of it."""

    def __init__(self, b: Builder, p: str) -> None:
        self.b, self.p = b, p
        self.norm = b.vector(p + "altup_router_norm.weight", b.h.hidden)
        self.matrix = b.w.get(p + "altup_router.weight", (b.h.hidden, STREAMS))
        self.asked = False

    def coefficients(self, x: np.ndarray, stride: int, what: str, n: int) -> np.ndarray:
        """n numbers per token from the router's answer to x."""
        b, hidden = self.b, self.b.h.hidden
        normed, answer, out = (
            b.floats("router_in", hidden),
            b.floats("router_out", STREAMS),
            b.floats(what, n),
        )
        b.norm(x, self.norm, normed, hidden, stride=stride, out_stride=hidden)
        before = b.touched
        b.project(normed, hidden, [(self.matrix, answer, STREAMS, None)])
        if self.asked:  # its bytes are at hand
            b.touched = before
        self.asked = True
        matrix = b.vector(f"{self.p}altup_{what}_coef.weight", n * STREAMS)
        b.flops += 2 * n * STREAMS
        b.program.add(
            "coefficients", kernel_streams.coefficients, answer, STREAMS, 1 / hidden, matrix, n, out
        )
        return out


def _laurel(b: Builder, p: str, normed: np.ndarray) -> np.ndarray:
    """What the layer reads, and beside it a product of low rank of it, normed."""
    hidden = b.h.hidden
    down = b.w.get(p + "laurel_l.weight")
    up = b.w.get(p + "laurel_r.weight", (down.rows, hidden))
    b.w.get(down.name, (hidden, down.rows))
    low, product, out = b.floats("laurel", down.rows), b.floats("branch", hidden), b.floats("beside", hidden)
    b.project(normed, hidden, [(down, low, down.rows, None)])
    b.project(low, down.rows, [(up, product, hidden, None)])
    b.program.add("slice", kernel_ops.slice_heads, normed, hidden, out, hidden, hidden, 1)
    b.norm(product, b.vector(p + "laurel_post_norm.weight", hidden), out, hidden, add=True)
    return out
