"""The indexer of sparse attention (DeepSeek-V3.2's technical report, section 2): scores of all cached tokens, the
choice of the best, and their rows of the cache side by side.

An index key may stand for several tokens that follow each other; those that are too few for another key are always
chosen. Arguments are int64 slots; `a[0]` is the work counter, addresses are of float32 unless said.
"""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def"

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from runner.ir import as_float, f32_at, i32_at, i64_at, u8_at, u16_at
from runner.kernel_attention_step import HEADS, TILE, score_rows
from runner.kernel_ops import ZERO
from runner.kernel_tools import POSITION, TOKENS, helper, next_piece, operation

ROWS = 32  # of a cache, that a thread copies at a time


def scratch_bytes(heads: int) -> int:
    """Scratch memory per thread."""
    return (heads * TILE + 64) * 4


@helper
def transform(x, width):
    """x times the Walsh-Hadamard matrix over the root of its width, a power of two."""
    half, factor = 1, np.float32(1.0 / math.sqrt(width))
    while half < width:
        for first in range(0, width, 2 * half):
            for i in range(first, first + half):
                u, v = x[i], x[i + half]
                x[i], x[i + half] = u + v, u - v
        half *= 2
    for i in range(width):
        x[i] *= factor


@operation
def hadamard(args: int, state: int, thread: int) -> None:
    """Heads times the Walsh-Hadamard matrix over the root of its width, in place: a[1] x, a[2] heads, a[3] width (a
    power of two), a[4] stride per token. Products of two such heads are those of the heads; cached, they round better.
    """
    a = i64_at(args)
    while True:
        piece = next_piece(args)
        t, head = piece // a[2], piece % a[2]
        if t >= i64_at(state)[TOKENS]:
            break
        transform(f32_at(a[1] + (t * a[4] + head * a[3]) * 4), a[3])


@cache
def _score_tile(key_fmt: str) -> Any:
    @helper
    def score_tile(a, token, start, n, out, scratch):
        """out[p] = sum over heads of weight * max(0, query times key) for `n` positions from `start`."""
        heads, width = a[2], a[3]
        keys, queries = a[4] + start * a[5], a[1] + token * heads * width * 4
        for h in range(0, heads // HEADS * HEADS, HEADS):
            score_rows(
                key_fmt,
                HEADS,
                keys,
                a[5],
                n,
                width,
                queries + h * width * 4,
                scratch + h * TILE * 4,
                keys,
                a[5],
            )
        for h in range(heads // HEADS * HEADS, heads):
            score_rows(
                key_fmt, 1, keys, a[5], n, width, queries + h * width * 4, scratch + h * TILE * 4, keys, a[5]
            )
        o, weights, factor = (
            f32_at(out + start * 4),
            f32_at(a[6] + token * heads * 4),
            np.float32(as_float(a[7])),
        )
        for p in range(n):
            o[p] = ZERO
        for h in range(heads):
            s, weight = f32_at(scratch + h * TILE * 4), weights[h] * factor
            for p in range(n):
                o[p] += max(s[p], ZERO) * weight

    return score_tile


@cache
def scores(key_fmt: str) -> Any:
    """Of one token: a[1] queries [head][width], a[2] heads, a[3] width, a[4] keys, a[5] key row bytes, a[6] weights of
    heads, a[7] factor, a[8] out [key], a[9] scratch, a[10] scratch bytes per thread, a[11] tokens of a key."""
    score_tile = _score_tile(key_fmt)

    @operation
    def scores_op(args: int, state: int, thread: int) -> None:
        a = i64_at(args)
        end = (i64_at(state)[POSITION] + 1) // a[11]
        while True:
            start = next_piece(args) * TILE
            if start >= end:
                break
            score_tile(a, 0, start, min(TILE, end - start), a[8], a[9] + thread * a[10])

    return scores_op


@cache
def choices(key_fmt: str) -> Any:
    """Of many tokens, which positions each sees: arguments as of `scores`, but a[8] scratch [thread][a[14]], a[12] how
    many keys are chosen, a[13] out: bytes [token][a[14]], 1 where chosen, a[15] whether these are keys, which have rows
    of their own, rather than positions."""
    score_tile = _score_tile(key_fmt)

    @operation
    def choices_op(args: int, state: int, thread: int) -> None:
        a = i64_at(args)
        row, each = a[8] + thread * a[14] * 4, a[11]
        while True:
            t = next_piece(args)
            if t >= i64_at(state)[TOKENS]:
                break
            end = i64_at(state)[POSITION] + t + 1
            n = end // each
            if a[15] != 0:
                end = n
            wide = 1 if a[15] != 0 else each
            chosen = u8_at(a[13] + t * a[14])
            if n <= a[12]:
                for p in range(end):
                    chosen[p] = 1
                continue
            for start in range(0, n, TILE):
                score_tile(a, t, start, min(TILE, n - start), row, a[9] + thread * a[10])
            least, ties = threshold(row, n, a[12])
            ordered = i32_at(row)
            for p in range(n):
                tied = ordered[p] == least and ties > 0
                ties -= 1 if tied else 0
                for i in range(p * wide, p * wide + wide):
                    chosen[i] = 1 if ordered[p] > least or tied else 0
            for p in range(n * wide, end):
                chosen[p] = 1

    return choices_op


@operation
def positions(args: int, state: int, thread: int) -> None:
    """Of one token: a[1] scores [key], a[2] how many keys are chosen, a[3] out: positions (int64), in order, a[4] out:
    how many these are (int64), a[5] tokens of a key, a[6] whether out gets keys, which have rows of their own, rather
    than positions."""
    if next_piece(args) != 0:
        return
    a = i64_at(args)
    end, k, found, each = i64_at(state)[POSITION] + 1, a[2], i64_at(a[3]), a[5]
    n, m = end // each, 0
    if a[6] != 0:
        end = n
    wide = 1 if a[6] != 0 else each
    least, ties = threshold(a[1], n, k) if n > k else (0, 0)
    ordered = i32_at(a[1])
    for p in range(n):
        tied = n > k and ordered[p] == least and ties > 0
        ties -= 1 if tied else 0
        if n <= k or ordered[p] > least or tied:
            for i in range(p * wide, p * wide + wide):
                found[m] = i
                m += 1
    for p in range(n * wide, end):
        found[m] = p
        m += 1
    i64_at(a[4])[0] = m


@helper
def threshold(x, n, k):
    """(the k-th largest of n numbers as an integer of the same order, how many equal to it are among the k). The
    numbers become such integers."""
    v = i32_at(x)
    for p in range(n):
        v[p] = v[p] ^ ((v[p] >> 31) & 0x7FFFFFFF)
    low, high = -(1 << 31), (1 << 31) - 1
    while low < high:
        middle = (low + high + 1) >> 1
        if _at_least(x, n, middle) >= k:
            low = middle
        else:
            high = middle - 1
    above = _at_least(x, n, low + 1) if low < (1 << 31) - 1 else 0
    return low, k - above


@helper
def _at_least(x, n, least):
    v, count = i32_at(x), 0
    bound = np.int32(least)
    for p in range(n):
        if v[p] >= bound:
            count += 1
    return count


@operation
def gather(args: int, state: int, thread: int) -> None:
    """Rows side by side: a[1] positions (int64), a[2] how many (the address of an int64), a[3] rows, a[4] row bytes
    (even), a[5] out."""
    a = i64_at(args)
    n, halves = i64_at(a[2])[0], a[4] // 2
    while True:
        first = next_piece(args) * ROWS
        if first >= n:
            break
        for i in range(first, min(first + ROWS, n)):
            source, out = u16_at(a[3] + i64_at(a[1])[i] * a[4]), u16_at(a[5] + i * a[4])
            for j in range(halves):
                out[j] = source[j]
