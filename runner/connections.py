"""Hyper-connections (DeepSeek-V4, GLM-5.3-Flash), as operations of a program: the residual is four streams. Each half
of a layer reads a sum of them; what it makes of that goes to all, which are mixed with each other meanwhile, by
coefficients that depend on the token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from modeldb.errors import BrokenFile, UnsupportedModel
from runner import kernel_connections, kernel_rows
from runner.kernel_connections import COEFFICIENTS
from runner.keys import Keys
from runner.per_layer import STREAMS

if TYPE_CHECKING:
    from runner.builder import Builder

Work = Callable[[np.ndarray, np.ndarray], None]
MAX_ROUNDS = 1000  # of Sinkhorn's, far beyond any model


@dataclass(frozen=True, slots=True)
class Connections:
    """Rounds of Sinkhorn's that make the mixing matrix, and what keeps its divisors from zero."""

    rounds: int
    eps: float


def read(keys: Keys) -> Connections | None:
    """From a file's metadata. Raises UnsupportedModel for another number of streams than four, BrokenFile for numbers
    that cannot be."""
    n = keys.count("hyper_connection.count", 0)
    if not n:
        return None
    if n != STREAMS:
        raise UnsupportedModel(f"{keys.name}: {n} streams of the residual are not supported by the runner")
    rounds, eps = keys.count("hyper_connection.sinkhorn_iterations"), keys.number("hyper_connection.epsilon")
    if not 0 < rounds <= MAX_ROUNDS or not 0 <= eps < 1:
        raise BrokenFile(f"{keys.name}: hyper-connections of {rounds} rounds with epsilon {eps}")
    return Connections(rounds, float(eps))


def begin(b: Builder, x: np.ndarray) -> np.ndarray:
    """Streams [token][stream][hidden], all of them the embeddings x."""
    hidden = b.h.hidden
    out = b.floats("streams", STREAMS * hidden)
    b.program.add("repeat", kernel_rows.repeat, x, hidden, hidden, STREAMS, out, hidden)
    return out


def layer(b: Builder, i: int, x: np.ndarray, mix: Work, feed: Work, last: bool) -> None:
    """The streams x after layer i, of which `mix` are the mixers and `feed` the feed-forward. `last`: what follows the
    mixers sees the last token alone."""
    p = f"blk.{i}."
    _half(b, p + "hc_attn", p + "attn_norm", x, mix)
    if last:
        b.last_token((x, STREAMS * b.h.hidden))
    _half(b, p + "hc_ffn", p + "ffn_norm", x, feed)


def _half(b: Builder, name: str, norm: str, x: np.ndarray, work: Work) -> None:
    """Mixers or feed-forward on the streams x: `work` adds what it makes of its second argument, a sum of the streams
    normed with the tensors of `norm`, to its first, which is zero. `name`: of the coefficients' tensors."""
    hidden, own = b.h.hidden, b.h.connections
    assert own is not None
    c = _coefficients(b, name, x, COEFFICIENTS, 3, own.rounds)
    active, found, normed = b.floats("active", hidden), b.floats("found", hidden), b.floats("normed", hidden)
    b.program.add("read", kernel_connections.read, x, hidden, c, COEFFICIENTS, active, found)
    b.norm_by(norm, active, normed)
    work(found, normed)
    b.program.add("write", kernel_connections.write, x, hidden, c, COEFFICIENTS, found)


def end(b: Builder, x: np.ndarray) -> np.ndarray:
    """The sum of the streams that the head reads: by coefficients of its own or, without them, their mean."""
    hidden, out = b.h.hidden, b.floats("x", b.h.hidden)
    if "output_hc_fn.weight" in b.w.tensors:
        c, stride = _coefficients(b, "output_hc", x, STREAMS, 1, 0), STREAMS
    else:
        c, stride = np.full(STREAMS, 1 / STREAMS, np.float32), 0
    b.program.add("read", kernel_connections.read, x, hidden, c, stride, out, None)
    return out


def _coefficients(b: Builder, name: str, x: np.ndarray, n: int, n_scales: int, rounds: int) -> np.ndarray:
    """[token][n]: products with all streams, normed together without weights, made what they are for."""
    own, width = b.h.connections, STREAMS * b.h.hidden
    assert own is not None
    normed, out = b.floats("streams_normed", width), b.floats(f"coefficients_{n}", n)
    b.norm(x, None, normed, width)
    matrix = b.w.get(f"{name}_fn.weight", (width, n))
    b.project(normed, width, [(matrix, out, n, None)])
    scale = b.vector(b.w.get(f"{name}_scale.weight").name, n_scales)
    base = b.vector(b.w.get(f"{name}_base.weight").name, n)
    b.program.add("coefficients", kernel_connections.coefficients, out, n, scale, base, rounds, own.eps)
    return out
