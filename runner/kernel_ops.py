"""Operations on activations: embedding, norms, rotary embedding, gates.

Arguments are int64 slots; `a[0]` is the work counter, addresses are of float32 unless said, strides are in
elements.
Float parameters travel as the bits of a float64.
"""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def,var-annotated"

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from runner.ir import as_float, exp, f32_at, i64_at
from runner.kernel_tile import unpack_row
from runner.kernel_tools import POSITION, TOKENS, helper, next_piece, operation

# a Python float would turn float32 loops into float64 ones
ZERO, HALF, ONE, TWO = (np.float32(v) for v in (0.0, 0.5, 1.0, 2.0))
TANH_A, TANH_B, ALPHA = np.float32(0.7978845608028654), np.float32(0.044715), np.float32(1.702)
SILU, GELU_TANH, SWIGLU_OAI, GELU_ERF, RELU_SQUARED, LINEAR, LOGISTIC, CLAMP, SILU_LIMITED, RELU = range(10)
SILU_OF_LIMITED = 10


@cache
def embed(fmt: str) -> Any:
    """Rows of a table: a[1] table, a[2] row bytes, a[3] width, a[4] token ids (int64), a[5] out, a[6] factor."""

    @operation
    def embed_op(args: int, state: int, thread: int) -> None:
        a = i64_at(args)
        factor, width = np.float32(as_float(a[6])), a[3]
        while True:
            t = next_piece(args)
            if t >= i64_at(state)[TOKENS]:
                break
            out = f32_at(a[5] + t * width * 4)
            unpack_row(fmt, a[1] + i64_at(a[4])[t] * a[2], width, a[5] + t * width * 4)
            if factor != ONE:
                for i in range(width):
                    out[i] *= factor

    return embed_op


@helper
def mean_and_factor(x, width, eps, centre):
    """What a norm subtracts (0 for RMSNorm, without `centre`) and multiplies by."""
    mean = 0.0
    if centre != 0:
        for i in range(width):
            mean += x[i]
        mean /= width
    squares = 0.0
    for i in range(width):
        squares += (x[i] - mean) * (x[i] - mean)
    return mean, 1.0 / math.sqrt(squares / width + eps)


@helper
def norm_part(x, out, weight, bias, first, last, mean, factor, add):
    """Numbers first..last of a normed row; into `out`, or added to it."""
    for i in range(first, last):
        y = (x[i] - mean) * factor
        if weight != 0:
            y *= f32_at(weight)[i]
        if bias != 0:
            y += f32_at(bias)[i]
        out[i] = out[i] + y if add != 0 else y


@operation
def norm(args: int, state: int, thread: int) -> None:
    """a[1] x, a[2] weight, a[3] bias, a[4] out, a[5] width, a[6] eps, a[7] heads per token, a[8] x stride per token,
    a[9] out stride, a[10] centre, a[11] weight stride per head, a[12] add to out."""
    a = i64_at(args)
    width, heads = a[5], a[7]
    while True:
        piece = next_piece(args)
        t, h = piece // heads, piece % heads
        if t >= i64_at(state)[TOKENS]:
            break
        x, out = f32_at(a[1] + (t * a[8] + h * width) * 4), f32_at(a[4] + (t * a[9] + h * width) * 4)
        weight = a[2] + h * a[11] * 4 if a[2] != 0 else 0
        mean, factor = mean_and_factor(x, width, as_float(a[6]), a[10])
        norm_part(x, out, weight, a[3], 0, width, mean, factor, a[12])


@operation
def rope_angles(args: int, state: int, thread: int) -> None:
    """cos and sin of position x frequency: a[1] frequencies (n of them), a[2] n, a[3] out [token][n][2],
    a[4] magnitude."""
    a = i64_at(args)
    while True:
        t = next_piece(args)
        if t >= i64_at(state)[TOKENS]:
            break
        position = i64_at(state)[POSITION] + t
        out, frequency = f32_at(a[3] + t * a[2] * 8), f32_at(a[1])
        for i in range(a[2]):
            angle = position * float(frequency[i])
            out[2 * i] = math.cos(angle) * as_float(a[4])
            out[2 * i + 1] = math.sin(angle) * as_float(a[4])


@operation
def rope(args: int, state: int, thread: int) -> None:
    """Rotate in place: a[1] x, a[2] heads, a[3] head stride, a[4] token stride, a[5] angles, a[6] pairs, a[7] whether
    pair i is (i, i + pairs) rather than (2i, 2i + 1)."""
    a = i64_at(args)
    heads, pairs = a[2], a[6]
    while True:
        t = next_piece(args)
        if t >= i64_at(state)[TOKENS]:
            break
        angles = f32_at(a[5] + t * pairs * 8)
        for h in range(heads):
            x = f32_at(a[1] + (t * a[4] + h * a[3]) * 4)
            for i in range(pairs):
                first, second = (i, i + pairs) if a[7] != 0 else (2 * i, 2 * i + 1)
                c, s = angles[2 * i], angles[2 * i + 1]
                u, v = x[first], x[second]
                x[first] = u * c - v * s
                x[second] = u * s + v * c


@helper
def activate(g, u, kind, limit):
    """gate g and value u -> the gated value."""
    if kind == SILU:
        return g / (ONE + exp(-g)) * u
    if kind == GELU_TANH:
        z = TANH_A * g * (ONE + TANH_B * g * g)
        return g * (ONE - ONE / (ONE + exp(TWO * z))) * u
    if kind == SWIGLU_OAI:
        g, u = min(g, limit), max(min(u, limit), -limit)
        return g / (ONE + exp(-ALPHA * g)) * (u + ONE)
    if kind == RELU_SQUARED:
        return max(g, ZERO) * max(g, ZERO) * u
    if kind == LINEAR:
        return g * u
    if kind == LOGISTIC:
        return u / (ONE + exp(-g))
    if kind == CLAMP:
        return max(min(g, limit), -limit) * u
    if kind == RELU:
        return max(g, ZERO) * u
    if kind == SILU_LIMITED:
        return min(g / (ONE + exp(-g)), limit) * max(min(u, limit), -limit)
    if kind == SILU_OF_LIMITED:
        g = min(g, limit)
        return g / (ONE + exp(-g)) * max(min(u, limit), -limit)
    return np.float32(0.5 * g * (1.0 + math.erf(g * 0.7071067811865476))) * u


@helper
def gate_part(g, up, out, first, last, kind, limit):
    """Numbers first..last of a gated row; `up` an address (0: none)."""
    u = f32_at(up)
    if up == 0:
        for i in range(first, last):
            out[i] = activate(g[i], ONE, kind, limit)
    elif kind == SILU:
        for i in range(first, last):
            out[i] = activate(g[i], u[i], SILU, limit)
    elif kind == GELU_TANH:
        for i in range(first, last):
            out[i] = activate(g[i], u[i], GELU_TANH, limit)
    elif kind == LINEAR:
        for i in range(first, last):
            out[i] = g[i] * u[i]
    else:
        for i in range(first, last):
            out[i] = activate(g[i], u[i], kind, limit)


@operation
def gate(args: int, state: int, thread: int) -> None:
    """out = activation(gate) * up: a[1] gate, a[2] up (0: none), a[3] out, a[4] width, a[5] gate stride,
    a[6] up stride,
    a[7] out stride, a[8] activation, a[9] rows per token, a[10] limit."""
    a = i64_at(args)
    width, kind, limit = a[4], a[8], np.float32(as_float(a[10]))
    n, per_piece = i64_at(state)[TOKENS] * a[9], 1024
    pieces = (width + per_piece - 1) // per_piece
    while True:
        piece = next_piece(args)
        row = piece // pieces
        if row >= n:
            break
        g, out = f32_at(a[1] + row * a[5] * 4), f32_at(a[3] + row * a[7] * 4)
        first = piece % pieces * per_piece
        up = a[2] + row * a[6] * 4 if a[2] != 0 else 0
        gate_part(g, up, out, first, min(first + per_piece, width), kind, limit)


@operation
def add(args: int, state: int, thread: int) -> None:
    """out += x * factor, or out *= factor without x: a[1] x (0: none), a[2] out, a[3] width, a[4] x stride, a[5] out
    stride, a[6] factor."""
    a = i64_at(args)
    while True:
        t = next_piece(args)
        if t >= i64_at(state)[TOKENS]:
            break
        out, factor = f32_at(a[2] + t * a[5] * 4), np.float32(as_float(a[6]))
        if a[1] != 0:
            x = f32_at(a[1] + t * a[4] * 4)
            for i in range(a[3]):
                out[i] += x[i] * factor
        else:
            for i in range(a[3]):
                out[i] *= factor


@operation
def soft_cap(args: int, state: int, thread: int) -> None:
    """x = cap * tanh(x / cap): a[1] x, a[2] count, a[3] cap; for the first token's row."""
    a = i64_at(args)
    x, cap, per_piece = f32_at(a[1]), np.float32(as_float(a[3])), 4096
    while True:
        first = next_piece(args) * per_piece
        if first >= a[2]:
            break
        for i in range(first, min(first + per_piece, a[2])):
            x[i] = cap * (ONE - TWO / (ONE + exp(TWO * x[i] / cap)))


@operation
def copy_last(args: int, state: int, thread: int) -> None:
    """The last token's row becomes the first: a[1] x, a[2] width, a[3] out. Ends the many-token part of a step."""
    a = i64_at(args)
    if next_piece(args) == 0:
        x, out = f32_at(a[1] + (i64_at(state)[TOKENS] - 1) * a[2] * 4), f32_at(a[3])
        for i in range(a[2]):
            out[i] = x[i]


@operation
def single_token(args: int, state: int, thread: int) -> None:
    """Operations after this one see one token."""
    if next_piece(args) == 0:
        i64_at(state)[TOKENS] = 1


@operation
def combine(args: int, state: int, thread: int) -> None:
    """out[token] += sum over slots of weight * row: a[1] rows [token * k][width], a[2] weights, a[3] k, a[4] width,
    a[5] out, a[6] overwrite."""
    a = i64_at(args)
    k, width, weights = a[3], a[4], f32_at(a[2])
    while True:
        t = next_piece(args)
        if t >= i64_at(state)[TOKENS]:
            break
        out = f32_at(a[5] + t * width * 4)
        if a[6] != 0:
            for i in range(width):
                out[i] = 0.0
        for j in range(k):
            row, w = f32_at(a[1] + (t * k + j) * width * 4), weights[t * k + j]
            for i in range(width):
                out[i] += w * row[i]


@operation
def scale_by_gate(args: int, state: int, thread: int) -> None:
    """x *= sigmoid(gate of the row): a[1] x [row][width], a[2] width, a[3] gates [row], a[4] rows per token."""
    a = i64_at(args)
    while True:
        t = next_piece(args)
        if t >= i64_at(state)[TOKENS] * a[4]:
            break
        x, g = f32_at(a[1] + t * a[2] * 4), 1.0 / (1.0 + math.exp(-f32_at(a[3])[t]))
        for i in range(a[2]):
            x[i] *= g


@operation
def slice_heads(args: int, state: int, thread: int) -> None:
    """Copy part of each head: a[1] x [row][x stride], a[2] x stride, a[3] out, a[4] out stride, a[5] width, a[6] rows
    per token."""
    a = i64_at(args)
    while True:
        row = next_piece(args)
        if row >= i64_at(state)[TOKENS] * a[6]:
            break
        x, out = f32_at(a[1] + row * a[2] * 4), f32_at(a[3] + row * a[4] * 4)
        for i in range(a[5]):
            out[i] = x[i]


@operation
def pairs_by_head(args: int, state: int, thread: int) -> None:
    """Rows token * heads + head, grouped by head: a[1] rows out (int64), a[2] first row of each head, a[3] heads."""
    if next_piece(args) != 0:
        return
    a = i64_at(args)
    n, heads = i64_at(state)[TOKENS], a[3]
    for h in range(heads):
        i64_at(a[2])[h] = h * n
        for t in range(n):
            i64_at(a[1])[h * n + t] = t * heads + h
    i64_at(a[2])[heads] = heads * n
