"""Operations of recurrent layers: the causal convolution over channels, the scan of Mamba-2 and the gated delta rule.

A state is [head][row][number]; its rows do not depend on each other, so a piece of work is some rows of a head over
all tokens, and what it updates stays in the nearest cache. Tokens are taken one after another: a prompt in one piece
gives the bits that a prompt in chunks gives.
"""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def,var-annotated"

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import types

from runner.ir import F32, Emitter, as_float, exp, f32_at, i64_at, kernel, vec
from runner.kernel_ops import ONE, ZERO
from runner.kernel_tools import TOKENS, helper, next_piece, operation

LANES = 16  # numbers of a state row per vector step
ROWS = 4  # state rows that share loads
PIECE_ROWS = 16
STEP_BYTES = 65536  # of states, that a thread takes at once in a step: asking costs more than 16 rows
PIECE_CHANNELS = 128


@operation
def convolve(args: int, state: int, thread: int) -> None:
    """Causal convolution of each channel over tokens: a[1] x, a[2] x stride, a[3] channels, a[4] taps, a[5] weights
    [tap][channel], a[6] bias (or 0), a[7] tail [taps - 1][channel] of the tokens before, a[8] out, a[9] out stride,
    a[10] SiLU after it."""
    a = i64_at(args)
    channels, taps, n = a[3], a[4], i64_at(state)[TOKENS]
    while True:
        first = next_piece(args) * PIECE_CHANNELS
        if first >= channels:
            break
        width = min(PIECE_CHANNELS, channels - first)
        for t in range(n):
            out = f32_at(a[8] + (t * a[9] + first) * 4)
            if a[6] != 0:
                bias = f32_at(a[6] + first * 4)
                for c in range(width):
                    out[c] = bias[c]
            else:
                for c in range(width):
                    out[c] = ZERO
            for tap in range(taps):
                before = t - (taps - 1) + tap
                row = a[1] + before * a[2] * 4 if before >= 0 else a[7] + (taps - 1 + before) * channels * 4
                x, weight = f32_at(row + first * 4), f32_at(a[5] + (tap * channels + first) * 4)
                for c in range(width):
                    out[c] += weight[c] * x[c]
            if a[10] != 0:
                for c in range(width):
                    out[c] = out[c] / (ONE + exp(-out[c]))
        for r in range(taps - 1):  # later rows are read before they are written
            before = n - (taps - 1) + r
            row = a[1] + before * a[2] * 4 if before >= 0 else a[7] + (r + n) * channels * 4
            x, tail = f32_at(row + first * 4), f32_at(a[7] + (r * channels + first) * 4)
            for c in range(width):
                tail[c] = x[c]


@operation
def steps(args: int, state: int, thread: int) -> None:
    """Step size and decay of each head: step = softplus(x + bias), decay = exp(step * A): a[1] x, a[2] x stride,
    a[3] heads, a[4] bias, a[5] A, a[6] steps out [token][head], a[7] decays out [token][head]."""
    a = i64_at(args)
    heads, bias, rate = a[3], f32_at(a[4]), f32_at(a[5])
    while True:
        t = next_piece(args)
        if t >= i64_at(state)[TOKENS]:
            break
        x = f32_at(a[1] + t * a[2] * 4)
        step, decay = f32_at(a[6] + t * heads * 4), f32_at(a[7] + t * heads * 4)
        for h in range(heads):
            z = float(x[h] + bias[h])
            step[h] = z if z > 20.0 else math.log1p(math.exp(z))
            decay[h] = math.exp(step[h] * rate[h])


def _each_row(e: Emitter, n: ir.Value) -> list[ir.Value]:
    """Offsets of ROWS rows of n numbers."""
    row_bytes = e.b.mul(n, e.i64(4))
    return [e.b.mul(row_bytes, e.i64(r)) for r in range(ROWS)]


def _update(e: Emitter, state, n, decay, inputs: list, from_: ir.Value, onto: ir.Value) -> list[ir.Value]:
    """Rows s = decay * s + input * from; the sums of s * onto."""
    kind, offsets = vec(F32, LANES), _each_row(e, n)
    factor = e.splat(decay, LANES)
    wide = [e.splat(v, LANES) for v in inputs]

    def body(i: ir.Value, sums: list) -> list:
        at = e.b.mul(i, e.i64(4 * LANES))
        a, b = e.load(e.b.add(from_, at), kind, align=4), e.load(e.b.add(onto, at), kind, align=4)
        out = []
        for offset, value, total in zip(offsets, wide, sums, strict=True):
            place = e.b.add(e.b.add(state, offset), at)
            s = e.fma(e.load(place, kind, align=4), factor, e.b.fmul(a, value))
            e.store(s, place, align=4)
            out.append(e.fma(s, b, total))
        return out

    zero = ir.Constant(kind, None)
    return [e.sum(v) for v in e.loop(e.b.udiv(n, e.i64(LANES)), [zero] * ROWS, body)]


@kernel(types.void, *[types.intp] * 4, *[types.float32] * 3, types.intp, types.intp)
def scan_rows(e: Emitter, state, n, b, c, step, decay, skip, x, out) -> None:
    """ROWS rows of a head: s = decay * s + step * x * B; out = s . C + skip * x (Mamba-2, arXiv 2405.21060)."""
    xs = [e.load(x, F32, 4 * r, align=4) for r in range(ROWS)]
    sums = _update(e, state, n, decay, [e.b.fmul(v, step) for v in xs], b, c)
    for r, (value, total) in enumerate(zip(xs, sums, strict=True)):
        e.store(e.fma(value, skip, total), out, 4 * r, align=4)


@kernel(types.void, *[types.intp] * 4, *[types.float32] * 3, types.intp, types.intp)
def delta_rows(e: Emitter, state, n, k, q, decay, beta, scale, v, out) -> None:
    """ROWS rows of a head: s = decay * s + beta * (v - decay * s . k) * k; out = scale * s . q (gated delta rule,
    arXiv 2412.06464)."""
    kind, offsets = vec(F32, LANES), _each_row(e, n)

    def body(i: ir.Value, sums: list) -> list:
        at = e.b.mul(i, e.i64(4 * LANES))
        key = e.load(e.b.add(k, at), kind, align=4)
        rows = [e.load(e.b.add(e.b.add(state, o), at), kind, align=4) for o in offsets]
        return [e.fma(row, key, total) for row, total in zip(rows, sums, strict=True)]

    zero = ir.Constant(kind, None)
    found = [e.sum(s) for s in e.loop(e.b.udiv(n, e.i64(LANES)), [zero] * ROWS, body)]
    deltas = []
    for r, dot in enumerate(found):
        error = e.b.fsub(e.load(v, F32, 4 * r, align=4), e.b.fmul(decay, dot))
        deltas.append(e.b.fmul(error, beta))
    for r, total in enumerate(_update(e, state, n, decay, deltas, k, q)):
        e.store(e.b.fmul(total, scale), out, 4 * r, align=4)


@helper
def rows_of_piece(rows, n, n_tokens):
    """State rows of a piece of work: in a step many, for then each takes a hundred times less."""
    if n_tokens > 1:
        return min(PIECE_ROWS, rows)
    return min(rows, max(PIECE_ROWS, STEP_BYTES // (4 * n) // PIECE_ROWS * PIECE_ROWS))


@operation
def scan(args: int, state: int, thread: int) -> None:
    """Mamba-2 over tokens: a[1] x, a[2] B, a[3] C, all with token stride a[4], a[5] heads, a[6] rows of a head, a[7]
    numbers of a row, a[8] groups of heads that share B and C, a[9] steps [token][head], a[10] decays, a[11] skip
    [head], a[12] state, a[13] out [token][head * rows]; numbers from one to the next: a[14] head's x, a[15] group's B
    and C, a[16] token's steps and decays (0: all tokens have the same)."""
    a = i64_at(args)
    heads, rows, n, groups = a[5], a[6], a[7], a[8]
    piece_rows = rows_of_piece(rows, n, i64_at(state)[TOKENS])
    pieces = (rows + piece_rows - 1) // piece_rows
    while True:
        piece = next_piece(args)
        h = piece // pieces
        if h >= heads:
            break
        first = piece % pieces * piece_rows
        last = min(first + piece_rows, rows)
        group = h // (heads // groups) * a[15] * 4
        skip = f32_at(a[11])[h]
        for t in range(i64_at(state)[TOKENS]):
            at = t * a[4] * 4
            step, decay = f32_at(a[9])[t * a[16] + h], f32_at(a[10])[t * a[16] + h]
            for r in range(first, last, ROWS):
                row = h * rows + r
                scan_rows(a[12] + row * n * 4, n, a[2] + at + group, a[3] + at + group, step, decay, skip,
                          a[1] + at + (h * a[14] + r) * 4, a[13] + (t * heads * rows + row) * 4)  # fmt: skip


@operation
def delta(args: int, state: int, thread: int) -> None:
    """Gated delta rule over tokens: a[1] values, a[2] keys, a[3] queries, all with token stride a[4], a[5] value
    heads, a[6] rows of a head, a[7] numbers of a row, a[8] key heads, a[9] betas [token][head], a[10] decays, a[11]
    whether neighbouring value heads share a key head (else those that are `key heads` apart), a[12] state, a[13] out
    [token][head * rows]. Keys and queries have length 1."""
    a = i64_at(args)
    heads, rows, n, key_heads = a[5], a[6], a[7], a[8]
    piece_rows = rows_of_piece(rows, n, i64_at(state)[TOKENS])
    pieces = (rows + piece_rows - 1) // piece_rows
    scale = np.float32(1.0 / math.sqrt(n))
    while True:
        piece = next_piece(args)
        h = piece // pieces
        if h >= heads:
            break
        first = piece % pieces * piece_rows
        last = min(first + piece_rows, rows)
        key_head = h // (heads // key_heads) if a[11] != 0 else h % key_heads
        for t in range(i64_at(state)[TOKENS]):
            at = t * a[4] * 4
            beta, decay = f32_at(a[9])[t * heads + h], f32_at(a[10])[t * heads + h]
            for r in range(first, last, ROWS):
                row = h * rows + r
                delta_rows(a[12] + row * n * 4, n, a[2] + at + key_head * n * 4, a[3] + at + key_head * n * 4, decay,
                           beta, scale, a[1] + at + row * 4, a[13] + (t * heads * rows + row) * 4)  # fmt: skip


@operation
def unit_length(args: int, state: int, thread: int) -> None:
    """Heads divided by their length, in place: a[1] x, a[2] x stride, a[3] heads per token, a[4] width, a[5] epsilon
    that is added to the squared length."""
    a = i64_at(args)
    heads, width = a[3], a[4]
    while True:
        piece = next_piece(args)
        t, h = piece // heads, piece % heads
        if t >= i64_at(state)[TOKENS]:
            break
        x = f32_at(a[1] + (t * a[2] + h * width) * 4)
        squares = 0.0
        for i in range(width):
            squares += x[i] * x[i]
        factor = np.float32(1.0 / math.sqrt(squares + as_float(a[5])))
        for i in range(width):
            x[i] *= factor
