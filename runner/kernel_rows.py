"""Operations that make or scale rows of activations: learned positions, temperatures of queries, weights of experts."""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,no-untyped-def"

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from runner.ir import as_float, f32_at, i64_at
from runner.kernel_matmul import unpack_row
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
