"""Embeddings that layers have of their own (Gemma 3n and 4): looked up and projected before the layers, added behind
each of them through a gate."""

from __future__ import annotations

import numpy as np

from runner import kernel_ops
from runner.builder import Builder

HALVED = 0.5**0.5  # of the sum of what is looked up and what is projected


def prepare(b: Builder, x: np.ndarray) -> np.ndarray | None:
    """Inputs [token][layer][width] of all layers, from the tokens and from their embeddings x; None where the model has
    none."""
    h, own = b.h, b.h.embedded
    if not own.width:
        return None
    n, vocab = own.width * own.n_layers, b.w.get("token_embd.weight").rows
    table = b.w.get("per_layer_token_embd.weight", (n, vocab))
    found, projected = b.floats("layer_inputs", n), b.floats("layer_projected", n)
    looked_up = float(own.width**0.5 * HALVED)
    b.program.add("embed", kernel_ops.embed(table.format), table.address, table.row_bytes, n, b.room.tokens, found,
                  looked_up)  # fmt: skip
    b.touched += table.row_bytes
    matrix = b.w.get("per_layer_model_proj.weight", (h.hidden, n))
    b.project(x, h.hidden, [(matrix, projected, n, None)])
    b.program.add("scale", kernel_ops.add, None, projected, n, 0, n, float(h.hidden**-0.5))
    b.norm(
        projected, b.vector("per_layer_proj_norm.weight", own.width), projected, own.width, own.n_layers, n
    )
    b.program.add("add", kernel_ops.add, projected, found, n, n, n, HALVED)
    return found


def gated(b: Builder, i: int, x: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """What layer i's input adds: chosen by a gate of x, projected and normed."""
    h, width, p = b.h, b.h.embedded.width, f"blk.{i}."
    n = width * h.embedded.n_layers
    gate, out = b.floats("layer_gate", width), b.floats("branch", h.hidden)
    b.project(x, h.hidden, [(b.w.get(p + "inp_gate.weight", (h.hidden, width)), gate, width, None)])
    b.gate(kernel_ops.GELU_TANH, gate, inputs[i * width :], gate, width, (width, n, width))
    b.project(gate, width, [(b.w.get(p + "proj.weight", (width, h.hidden)), out, h.hidden, None)])
    b.norm(out, b.vector(p + "post_norm.weight", h.hidden), out, h.hidden)
    return out
