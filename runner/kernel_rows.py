"""Operations on rows of activations: learned positions, temperatures of queries, weights of experts, sums, xIELU."""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,no-untyped-def"

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from runner.ir import as_float, exp, f32_at, i64_at
from runner.kernel_matmul import unpack_row
from runner.kernel_ops import ONE, ZERO
from runner.kernel_tools import POSITION, TOKENS, next_piece, operation


@cache
def positions(fmt: str) -> Any:
    """Rows of a table of positions: a[1] table, a[2] row bytes, a[3] width, a[4] out."""

    @operation
    def positions_op(args: int, state: int, thread: int) -> None:
        a = i64_at(args)
        while True:
            t = next_piece(args)
            if t >= i64_at(state)[TOKENS]:
                break
            unpack_row(fmt, a[1] + (i64_at(state)[POSITION] + t) * a[2], a[3], a[4] + t * a[3] * 4)

    return positions_op


@operation
def temper(args: int, state: int, thread: int) -> None:
    """x *= 1 + scale * ln(1 + floor((position + offset) / step)): a[1] x, a[2] width, a[3] x stride, a[4] scale, a[5]
    step, a[6] offset."""
    a = i64_at(args)
    while True:
        t = next_piece(args)
        if t >= i64_at(state)[TOKENS]:
            break
        steps = (i64_at(state)[POSITION] + t + a[6]) // a[5]
        factor = np.float32(1.0 + as_float(a[4]) * math.log(1.0 + steps))
        x = f32_at(a[1] + t * a[3] * 4)
        for i in range(a[2]):
            x[i] *= factor


@operation
def widen(args: int, state: int, thread: int) -> None:
    """Heads with zeros behind each: a[1] x, a[2] x stride, a[3] heads, a[4] width, a[5] out, a[6] out width."""
    a = i64_at(args)
    while True:
        piece = next_piece(args)
        t, h = piece // a[3], piece % a[3]
        if t >= i64_at(state)[TOKENS]:
            break
        x, out = f32_at(a[1] + (t * a[2] + h * a[4]) * 4), f32_at(a[5] + piece * a[6] * 4)
        for i in range(a[4]):
            out[i] = x[i]
        for i in range(a[4], a[6]):
            out[i] = ZERO


@operation
def repeat(args: int, state: int, thread: int) -> None:
    """Each head gets its token's row: a[1] x, a[2] x stride, a[3] width, a[4] heads, a[5] out, a[6] stride per row."""
    a = i64_at(args)
    while True:
        row = next_piece(args)
        if row >= i64_at(state)[TOKENS] * a[4]:
            break
        x, out = f32_at(a[1] + row // a[4] * a[2] * 4), f32_at(a[5] + row * a[6] * 4)
        for i in range(a[3]):
            out[i] = x[i]


@operation
def weigh(args: int, state: int, thread: int) -> None:
    """out = x * weight of the row: a[1] x, a[2] width, a[3] weights [token], a[4] out."""
    a = i64_at(args)
    while True:
        t = next_piece(args)
        if t >= i64_at(state)[TOKENS]:
            break
        x, out, weight = f32_at(a[1] + t * a[2] * 4), f32_at(a[4] + t * a[2] * 4), f32_at(a[3])[t]
        for i in range(a[2]):
            out[i] = x[i] * weight


@operation
def factor_by_expert(args: int, state: int, thread: int) -> None:
    """weights *= their expert's factor: a[1] weights [token * k], a[2] k, a[3] chosen experts (int64), a[4] factors."""
    if next_piece(args) != 0:
        return
    a = i64_at(args)
    weights, chosen, factors = f32_at(a[1]), i64_at(a[3]), f32_at(a[4])
    for row in range(i64_at(state)[TOKENS] * a[2]):
        weights[row] *= factors[chosen[row]]


@operation
def xielu(args: int, state: int, thread: int) -> None:
    """xIELU (arXiv 2411.13010): a x^2 + c x above zero, b (e^min(x, eps) - 1 - x) + c x below: a[1] x, a[2] width, a[3]
    out, a[4] a, a[5] b, a[6] c, a[7] eps."""
    a = i64_at(args)
    width, per_piece = a[2], 1024
    above, below, slope, eps = (np.float32(as_float(a[4])), np.float32(as_float(a[5])), np.float32(as_float(a[6])),
                                np.float32(as_float(a[7])))  # fmt: skip
    pieces = (width + per_piece - 1) // per_piece
    while True:
        piece = next_piece(args)
        t, first = piece // pieces, piece % pieces * per_piece
        if t >= i64_at(state)[TOKENS]:
            break
        x, out = f32_at(a[1] + t * width * 4), f32_at(a[3] + t * width * 4)
        for i in range(first, min(first + per_piece, width)):
            v = x[i]
            low = below * (exp(min(v, eps)) - ONE - v)
            out[i] = (above * v * v if v > ZERO else low) + slope * v


@operation
def carry(args: int, state: int, thread: int) -> None:
    """out = x * factor + y: a[1] x, a[2] y, a[3] out, a[4] width, a[5] factor."""
    a = i64_at(args)
    while True:
        t = next_piece(args)
        if t >= i64_at(state)[TOKENS]:
            break
        at, factor = t * a[4] * 4, np.float32(as_float(a[5]))
        x, y, out = f32_at(a[1] + at), f32_at(a[2] + at), f32_at(a[3] + at)
        for i in range(a[4]):
            out[i] = x[i] * factor + y[i]
