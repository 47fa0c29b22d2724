"""Recurrences that forget each number of a state at its own rate: Mamba-1's selective scan and Kimi's delta rule.

States and pieces of work are as in `runner.kernel_recurrent`. Mamba-1 has a row of numbers for each channel.
"""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def,var-annotated"

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import types

from runner.ir import F32, Emitter, as_float, exp, f32_at, i64_at, kernel, vec
from runner.kernel_ops import ONE, TWO, ZERO
from runner.kernel_recurrent import LANES, ROWS, rows_of_piece
from runner.kernel_tools import TOKENS, helper, next_piece, operation, reducer

PIECE = 64  # channels of Mamba-1, or numbers, that a thread takes at once
# of the series of artanh: ln(1 + u) = 2 artanh(u / (2 + u)), below 2e-7 for 0 <= u <= 1
C3, C5, C7, C9, C11 = (np.float32(1 / n) for n in (3, 5, 7, 9, 11))


@helper
def softplus(x):
    """ln(1 + e^x), as arithmetic that loops can vectorize."""
    u = exp(-abs(x))
    w = u / (TWO + u)
    v = w * w
    return max(x, ZERO) + TWO * w * (ONE + v * (C3 + v * (C5 + v * (C7 + v * (C9 + v * C11)))))


@operation
def soften(args: int, state: int, thread: int) -> None:
    """x = softplus(x), and e^(rate * that) where there are rates: a[1] x, a[2] numbers per token, a[3] rates (or 0)."""
    a = i64_at(args)
    width, rates = a[2], f32_at(a[3])
    pieces = (width + PIECE - 1) // PIECE
    while True:
        piece = next_piece(args)
        t, first = piece // pieces, piece % pieces * PIECE
        if t >= i64_at(state)[TOKENS]:
            break
        x = f32_at(a[1] + t * width * 4)
        last = min(first + PIECE, width)
        for i in range(first, last):
            x[i] = softplus(x[i])
        if a[3] != 0:
            for i in range(first, last):
                x[i] = exp(rates[i] * x[i])


@operation
def bounded(args: int, state: int, thread: int) -> None:
    """x = e^(bound / (1 + e^(-rate * x))), decays with a least one: a[1] x, a[2] numbers per token, a[3] rates, a[4]
    the bound, below 0."""
    a = i64_at(args)
    width, rates, bound = a[2], f32_at(a[3]), np.float32(as_float(a[4]))
    pieces = (width + PIECE - 1) // PIECE
    while True:
        piece = next_piece(args)
        t, first = piece // pieces, piece % pieces * PIECE
        if t >= i64_at(state)[TOKENS]:
            break
        x = f32_at(a[1] + t * width * 4)
        for i in range(first, min(first + PIECE, width)):
            x[i] = exp(bound / (ONE + exp(-rates[i] * x[i])))


@reducer
def selective_row(state, rates, b, c, n, step, x):
    """A channel's row: s = e^(step * A) * s + step * x * B; s . C (Mamba, arXiv 2312.00752)."""
    s, a, from_, onto = f32_at(state), f32_at(rates), f32_at(b), f32_at(c)
    add, total = step * x, ZERO
    for i in range(n):
        v = s[i] * exp(step * a[i]) + add * from_[i]
        s[i] = v
        total += v * onto[i]
    return total


@operation
def selective(args: int, state: int, thread: int) -> None:
    """Mamba-1 over tokens: a[1] x [token][channel], a[2] steps likewise, a[3] B, a[4] C, both with token stride a[5],
    a[6] channels, a[7] numbers of a row, a[8] rates [channel][number], a[9] skip [channel], a[10] state, a[11] out
    [token][channel]."""
    a = i64_at(args)
    channels, n = a[6], a[7]
    skip = f32_at(a[9])
    while True:
        first = next_piece(args) * PIECE
        if first >= channels:
            break
        for t in range(i64_at(state)[TOKENS]):
            row = t * channels * 4
            x, step, out = f32_at(a[1] + row), f32_at(a[2] + row), f32_at(a[11] + row)
            for c in range(first, min(first + PIECE, channels)):
                at = c * n * 4
                out[c] = skip[c] * x[c] + selective_row(
                    a[10] + at, a[8] + at, a[3] + t * a[5] * 4, a[4] + t * a[5] * 4, n, step[c], x[c]
                )


@kernel(types.void, *[types.intp] * 5, *[types.float32] * 2, types.intp, types.intp)
def kimi_rows(e: Emitter, state, n, k, q, decays, beta, scale, v, out) -> None:
    """ROWS rows of a head: s = decay * s, number by number; s += beta * (v - s . k) * k; out = scale * s . q (Kimi
    delta attention, arXiv 2510.26692)."""
    kind, row_bytes = vec(F32, LANES), e.b.mul(n, e.i64(4))
    offsets = [e.b.mul(row_bytes, e.i64(r)) for r in range(ROWS)]
    zero, steps = ir.Constant(kind, None), e.b.udiv(n, e.i64(LANES))
    load = lambda base, at: e.load(e.b.add(base, at), kind, align=4)  # noqa: E731

    def forget(i: ir.Value, sums: list) -> list:
        at = e.b.mul(i, e.i64(4 * LANES))
        key, decay, out = load(k, at), load(decays, at), []
        for offset, total in zip(offsets, sums, strict=True):
            place = e.b.add(state, offset)
            s = e.b.fmul(load(place, at), decay)
            e.store(s, e.b.add(place, at), align=4)
            out.append(e.fma(s, key, total))
        return out

    found = [e.sum(s) for s in e.loop(steps, [zero] * ROWS, forget)]
    errors = [e.b.fsub(e.load(v, F32, 4 * r, align=4), dot) for r, dot in enumerate(found)]
    deltas = [e.splat(e.b.fmul(error, beta), LANES) for error in errors]

    def learn(i: ir.Value, sums: list) -> list:
        at = e.b.mul(i, e.i64(4 * LANES))
        key, query, out = load(k, at), load(q, at), []
        for offset, delta, total in zip(offsets, deltas, sums, strict=True):
            place = e.b.add(state, offset)
            s = e.fma(delta, key, load(place, at))
            e.store(s, e.b.add(place, at), align=4)
            out.append(e.fma(s, query, total))
        return out

    for r, total in enumerate(e.loop(steps, [zero] * ROWS, learn)):
        e.store(e.b.fmul(e.sum(total), scale), out, 4 * r, align=4)


@operation
def kimi(args: int, state: int, thread: int) -> None:
    """Kimi delta attention over tokens: a[1] values, a[2] keys, a[3] queries, all with token stride a[4], a[5] heads,
    a[6] rows of a head, a[7] numbers of a row, a[8] betas [token][head], a[9] decays [token][head * number], a[10]
    state, a[11] out [token][head * rows]. Keys and queries have length 1."""
    a = i64_at(args)
    heads, rows, n = a[5], a[6], a[7]
    piece_rows = rows_of_piece(rows, n, i64_at(state)[TOKENS])
    pieces = (rows + piece_rows - 1) // piece_rows
    scale = np.float32(1.0 / math.sqrt(n))
    while True:
        piece = next_piece(args)
        h = piece // pieces
        if h >= heads:
            break
        first = piece % pieces * piece_rows
        for t in range(i64_at(state)[TOKENS]):
            at, own = t * a[4] * 4, h * n * 4
            for r in range(first, min(first + piece_rows, rows), ROWS):
                row = h * rows + r
                kimi_rows(a[10] + row * n * 4, n, a[2] + at + own, a[3] + at + own, a[9] + t * heads * n * 4 + own,
                          f32_at(a[8])[t * heads + h], scale, a[1] + at + row * 4,
                          a[11] + (t * heads * rows + row) * 4)  # fmt: skip
