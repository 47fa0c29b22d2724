"""Operations on streams of the residual that every half of a layer reads and writes (hyper-connections, arXiv
2409.19606; the matrix that mixes them made doubly stochastic: arXiv 2512.24880).

Coefficients of a token: 4 by which the streams are read, 4 by which they take what was made of that, and [from][to] 16
by which they take each other.
"""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,no-untyped-def"

from __future__ import annotations

import math

import numpy as np

from runner.ir import as_float, f32_at, i64_at
from runner.kernel_ops import ZERO
from runner.kernel_streams import PIECE, streams_of
from runner.kernel_tools import TOKENS, helper, next_piece, operation
from runner.per_layer import STREAMS

COEFFICIENTS = (2 + STREAMS) * STREAMS


@helper
def sigmoid(x):
    return np.float32(1.0 / (1.0 + math.exp(-x)))


@helper
def balance(c, eps, by):
    """Rows (`by` 0) or columns (1) of a matrix [4][4] over their sums."""
    step, along = (STREAMS, 1) if by == 0 else (1, STREAMS)
    for i in range(STREAMS):
        total = eps
        for j in range(STREAMS):
            total += c[i * step + j * along]
        for j in range(STREAMS):
            c[i * step + j * along] /= total


@operation
def coefficients(args: int, state: int, thread: int) -> None:
    """Products -> coefficients, in place: a[1] x [token][a[2]], a[3] scales of the three parts, a[4] base, a[5] rounds
    of Sinkhorn's (0: there is only the first part), a[6] eps."""
    a = i64_at(args)
    scale, base, eps = f32_at(a[3]), f32_at(a[4]), np.float32(as_float(a[6]))
    while True:
        t = next_piece(args)
        if t >= i64_at(state)[TOKENS]:
            break
        x = f32_at(a[1] + t * a[2] * 4)
        for i in range(STREAMS):
            x[i] = sigmoid(x[i] * scale[0] + base[i]) + eps
        if a[5] == 0:
            continue
        for i in range(STREAMS, 2 * STREAMS):
            x[i] = np.float32(2.0) * sigmoid(x[i] * scale[1] + base[i])
        for i in range(2 * STREAMS, COEFFICIENTS):
            x[i] = x[i] * scale[2] + base[i]
        mixed = f32_at(a[1] + (t * a[2] + 2 * STREAMS) * 4)
        for row in range(0, STREAMS * STREAMS, STREAMS):
            top, total = mixed[row], ZERO
            for i in range(row, row + STREAMS):
                top = max(top, mixed[i])
            for i in range(row, row + STREAMS):
                mixed[i] = np.float32(math.exp(mixed[i] - top))
                total += mixed[i]
            for i in range(row, row + STREAMS):
                mixed[i] = mixed[i] / total + eps
        balance(mixed, eps, 1)
        for _ in range(1, a[5]):
            balance(mixed, eps, 0)
            balance(mixed, eps, 1)


@operation
def read(args: int, state: int, thread: int) -> None:
    """out = sum over streams s of c[s] x[s]: a[1] x [token][stream][width], a[2] width, a[3] c [token][a[4]], a[5] out,
    a[6] a buffer like out that becomes zero (or 0)."""
    a = i64_at(args)
    width = a[2]
    pieces = (width + PIECE - 1) // PIECE
    while True:
        piece = next_piece(args)
        t, first = piece // pieces, piece % pieces * PIECE
        if t >= i64_at(state)[TOKENS]:
            break
        c, out = f32_at(a[3] + t * a[4] * 4), f32_at(a[5] + t * width * 4)
        x0, x1, x2, x3 = streams_of(a[1] + t * STREAMS * width * 4, width)
        last = min(first + PIECE, width)
        for i in range(first, last):
            out[i] = c[0] * x0[i] + c[1] * x1[i] + c[2] * x2[i] + c[3] * x3[i]
        if a[6] != 0:
            empty = f32_at(a[6] + t * width * 4)
            for i in range(first, last):
                empty[i] = ZERO


@operation
def write(args: int, state: int, thread: int) -> None:
    """x[s] = c[4 + s] found + sum over streams r of c[8 + 4 r + s] x[r]: a[1] x [token][stream][width], a[2] width,
    a[3] c [token][a[4]], a[5] found [token][width]."""
    a = i64_at(args)
    width = a[2]
    pieces = (width + PIECE - 1) // PIECE
    while True:
        piece = next_piece(args)
        t, first = piece // pieces, piece % pieces * PIECE
        if t >= i64_at(state)[TOKENS]:
            break
        post, c = f32_at(a[3] + (t * a[4] + STREAMS) * 4), f32_at(a[3] + (t * a[4] + 2 * STREAMS) * 4)
        found = f32_at(a[5] + t * width * 4)
        x0, x1, x2, x3 = streams_of(a[1] + t * STREAMS * width * 4, width)
        for i in range(first, min(first + PIECE, width)):
            p, q, r, s, new = x0[i], x1[i], x2[i], x3[i], found[i]
            x0[i] = post[0] * new + c[0] * p + c[4] * q + c[8] * r + c[12] * s
            x1[i] = post[1] * new + c[1] * p + c[5] * q + c[9] * r + c[13] * s
            x2[i] = post[2] * new + c[2] * p + c[6] * q + c[10] * r + c[14] * s
            x3[i] = post[3] * new + c[3] * p + c[7] * q + c[11] * r + c[15] * s
