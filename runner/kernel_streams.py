"""Operations on streams of the residual (AltUp, arXiv 2301.13310) and on sparse gates, of Gemma 3n."""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,no-untyped-def"

from __future__ import annotations

import math

import numpy as np

from runner.ir import as_float, f32_at, i64_at
from runner.kernel_ops import ONE, ZERO
from runner.kernel_tools import TOKENS, helper, next_piece, operation
from runner.per_layer import STREAMS

PIECE = 512  # numbers of a stream that a thread takes at a time


@helper
def squares(x, width):
    total = 0.0
    for i in range(width):
        total += x[i] * x[i]
    return total


@operation
def match_lengths(args: int, state: int, thread: int) -> None:
    """Rows as long as another: a[1] x, a[2] x stride, a[3] the other, a[4] its stride, a[5] width, a[6] rows per
    token. A row of zeros stays."""
    a = i64_at(args)
    width, rows = a[5], a[6]
    while True:
        piece = next_piece(args)
        t, row = piece // rows, piece % rows
        if t >= i64_at(state)[TOKENS]:
            break
        x, wanted = f32_at(a[1] + (t * a[2] + row * width) * 4), squares(f32_at(a[3] + t * a[4] * 4), width)
        own = squares(x, width)
        factor = np.float32(math.sqrt(wanted / own)) if own > 0.0 else ONE
        for i in range(width):
            x[i] *= factor


@operation
def coefficients(args: int, state: int, thread: int) -> None:
    """out = W tanh(x * factor): a[1] x [token][n], a[2] n, a[3] factor, a[4] W [rows][n], a[5] rows, a[6] out."""
    a = i64_at(args)
    n, rows, factor, w = a[2], a[5], as_float(a[3]), f32_at(a[4])
    while True:
        t = next_piece(args)
        if t >= i64_at(state)[TOKENS]:
            break
        x, out = f32_at(a[1] + t * n * 4), f32_at(a[6] + t * rows * 4)
        for r in range(rows):
            out[r] = ZERO
        for i in range(n):
            y = np.float32(math.tanh(x[i] * factor))
            for r in range(rows):
                out[r] += w[r * n + i] * y


@helper
def streams_of(address, width):
    """The streams of a token, which lie one after another."""
    row = width * 4
    return f32_at(address), f32_at(address + row), f32_at(address + 2 * row), f32_at(address + 3 * row)


@operation
def predict(args: int, state: int, thread: int) -> None:
    """x[s] += sum over streams r of c[4 s + r] x[r]: a[1] x [token][stream][width], a[2] width, a[3] c [token][16]."""
    a = i64_at(args)
    width = a[2]
    pieces = (width + PIECE - 1) // PIECE
    while True:
        piece = next_piece(args)
        t, first = piece // pieces, piece % pieces * PIECE
        if t >= i64_at(state)[TOKENS]:
            break
        c = f32_at(a[3] + t * 64)
        x0, x1, x2, x3 = streams_of(a[1] + t * STREAMS * width * 4, width)
        for i in range(first, min(first + PIECE, width)):
            p, q, r, s = x0[i], x1[i], x2[i], x3[i]
            x0[i] = p + c[0] * p + c[1] * q + c[2] * r + c[3] * s
            x1[i] = q + c[4] * p + c[5] * q + c[6] * r + c[7] * s
            x2[i] = r + c[8] * p + c[9] * q + c[10] * r + c[11] * s
            x3[i] = s + c[12] * p + c[13] * q + c[14] * r + c[15] * s


@operation
def correct(args: int, state: int, thread: int) -> None:
    """x[s] += (1 + c[s]) (found - x[0]): a[1] x [token][stream][width], a[2] width, a[3] found [token][width], a[4] c
    [token][4]."""
    a = i64_at(args)
    width = a[2]
    pieces = (width + PIECE - 1) // PIECE
    while True:
        piece = next_piece(args)
        t, first = piece // pieces, piece % pieces * PIECE
        if t >= i64_at(state)[TOKENS]:
            break
        c, found = f32_at(a[4] + t * 16), f32_at(a[3] + t * width * 4)
        x0, x1, x2, x3 = streams_of(a[1] + t * STREAMS * width * 4, width)
        for i in range(first, min(first + PIECE, width)):
            new = found[i] - x0[i]
            x0[i] += (ONE + c[0]) * new
            x1[i] += (ONE + c[1]) * new
            x2[i] += (ONE + c[2]) * new
            x3[i] += (ONE + c[3]) * new


@operation
def sparsify(args: int, state: int, thread: int) -> None:
    """x = what exceeds mean + factor * deviation, zero below: a[1] x, a[2] width, a[3] stride, a[4] factor."""
    a = i64_at(args)
    width = a[2]
    while True:
        t = next_piece(args)
        if t >= i64_at(state)[TOKENS]:
            break
        x, total, spread = f32_at(a[1] + t * a[3] * 4), 0.0, 0.0
        for i in range(width):
            total += x[i]
        mean = total / width
        for i in range(width):
            spread += (x[i] - mean) * (x[i] - mean)
        least = np.float32(mean + as_float(a[4]) * math.sqrt(spread / (width - 1)))
        for i in range(width):
            x[i] = max(x[i] - least, ZERO)
