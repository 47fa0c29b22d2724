"""Rows of a cache that stand for several tokens each (DeepSeek-V4): a sum of what the tokens give, number by number, by
the softmax of their scores over the tokens; normed, and rotated by the first token's position.

A row may reach back over the tokens of the row before it, which then give it other numbers than their own row.
Arguments are int64 slots; `a[0]` is the work counter, addresses are of float32 unless said.
"""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def,var-annotated"

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from runner.ir import as_float, exp, f32_at, i64_at
from runner.kernel_cache import write_row
from runner.kernel_index import transform
from runner.kernel_ops import ZERO, mean_and_factor, norm_part
from runner.kernel_tools import POSITION, TOKENS, helper, next_piece, operation


def scratch_bytes(width: int) -> int:
    """Scratch memory per thread: a row, the largest scores and their sums."""
    return 3 * width * 4


@helper
def place(a, position, before, values, kept):
    """The address of a token's numbers at `position`: among this step's, or among those kept from earlier ones."""
    if position < before:
        return kept + position % (a[4] * a[5]) * a[3] * a[4] * 4
    return values + (position - before) * a[3] * a[4] * 4


@helper
def weighed(a, row, before, out):
    """The sum of row number `row`, in out [width], with 2 * width numbers of scratch behind it."""
    width, reach, each = a[3], a[4], a[5]
    o, top, total = f32_at(out), f32_at(out + width * 4), f32_at(out + 2 * width * 4)
    first = max(0, (row + 1 - reach) * each)
    for i in range(width):
        o[i] = total[i] = ZERO
    for position in range(first, (row + 1) * each):
        part = (reach - 1 - (row - position // each)) * width * 4
        s = f32_at(place(a, position, before, a[2], a[8]) + part)
        added = f32_at(a[6] + position % each * width * reach * 4 + part)
        for i in range(width):
            x = s[i] + added[i]
            top[i] = x if position == first else max(top[i], x)
    for position in range(first, (row + 1) * each):
        part = (reach - 1 - (row - position // each)) * width * 4
        s = f32_at(place(a, position, before, a[2], a[8]) + part)
        x = f32_at(place(a, position, before, a[1], a[7]) + part)
        added = f32_at(a[6] + position % each * width * reach * 4 + part)
        for i in range(width):
            w = exp(s[i] + added[i] - top[i])
            total[i] += w
            o[i] += w * x[i]
    for i in range(width):
        o[i] /= total[i]


@helper
def turn(x, position, frequency, pairs):
    """Rotates neighbouring numbers."""
    for i in range(pairs):
        angle = position * float(frequency[i])
        c, s = np.float32(math.cos(angle)), np.float32(math.sin(angle))
        u, v = x[2 * i], x[2 * i + 1]
        x[2 * i], x[2 * i + 1] = u * c - v * s, u * s + v * c


@cache
def compress(fmt: str) -> Any:
    """Rows that these tokens complete: a[1] values and a[2] scores [token][reach][width], a[3] width, a[4] reach: rows
    that a token gives to, a[5] tokens of a row, a[6] what is added to scores [a[5]][reach][width], a[7] values and a[8]
    scores kept [reach * a[5]][reach][width] of tokens before (`keep`), a[9] rows of the cache, a[10] row bytes, a[11]
    weight of the norm, a[12] its eps, a[13] frequencies, a[14] pairs that rotate, the last ones, a[15] whether rows are
    multiplied by Hadamard's matrix, a[16] scratch, a[17] scratch bytes per thread."""

    @operation
    def compress_op(args: int, state: int, thread: int) -> None:
        a = i64_at(args)
        width, before = a[3], i64_at(state)[POSITION]
        end = (before + i64_at(state)[TOKENS]) // a[5]
        out = a[16] + thread * a[17]
        while True:
            row = before // a[5] + next_piece(args)
            if row >= end:
                break
            weighed(a, row, before, out)
            x = f32_at(out)
            mean, factor = mean_and_factor(x, width, as_float(a[12]), 0)
            norm_part(x, x, a[11], 0, 0, width, mean, factor, 0)
            turn(f32_at(out + (width - 2 * a[14]) * 4), row * a[5], f32_at(a[13]), a[14])
            if a[15] != 0:
                transform(x, width)
            write_row(fmt, out, width, a[9] + row * a[10])

    return compress_op


@operation
def keep(args: int, state: int, thread: int) -> None:
    """Keeps the last tokens for rows to come: a[1] to a[8] as of `compress`."""
    a = i64_at(args)
    before, n = i64_at(state)[POSITION], a[3] * a[4]
    end = before + i64_at(state)[TOKENS]
    first = max(before, end - a[4] * a[5])
    while True:
        position = first + next_piece(args)
        if position >= end:
            break
        source, own = (position - before) * n * 4, position % (a[4] * a[5]) * n * 4
        values, scores = f32_at(a[1] + source), f32_at(a[2] + source)
        kept_values, kept_scores = f32_at(a[7] + own), f32_at(a[8] + own)
        for i in range(n):
            kept_values[i], kept_scores[i] = values[i], scores[i]
