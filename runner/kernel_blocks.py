"""The choice of blocks of keys (MiniMax-M3): scores of blocks by head, the best of them, their rows of the cache side
by side.

Arguments are int64 slots; `a[0]` is the work counter, addresses are of float32 unless said.
"""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def"

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from runner.ir import f32_at, i32_at, i64_at, u8_at, u16_at
from runner.kernel_attention_step import HEADS, TILE, score_rows
from runner.kernel_index import threshold
from runner.kernel_tools import POSITION, TOKENS, helper, next_piece, operation

NEVER, ALWAYS = np.float32(-1e30), np.float32(1e30)


@cache
def _block_score(key_fmt: str) -> Any:
    @helper
    def block_score(a, token, end, block, out, scratch):
        """out[head][block] = the largest product of the head's query with a key of the block, of `end` tokens."""
        heads, width, size = a[2], a[3], a[6]
        o, queries = f32_at(out + block * 4), a[1] + token * heads * width * 4
        known = (end - 1) // size - block < a[7]
        for h in range(heads):
            o[h * a[10]] = ALWAYS if known else NEVER
        if known:
            return
        for start in range(block * size, (block + 1) * size, TILE):
            n = min(TILE, (block + 1) * size - start)
            keys = a[4] + start * a[5]
            for h in range(0, heads // HEADS * HEADS, HEADS):
                score_rows(key_fmt, HEADS, keys, a[5], n, width, queries + h * width * 4, scratch + h * TILE * 4, keys,
                           a[5])  # fmt: skip
            for h in range(heads // HEADS * HEADS, heads):
                score_rows(key_fmt, 1, keys, a[5], n, width, queries + h * width * 4, scratch + h * TILE * 4, keys,
                           a[5])  # fmt: skip
            for h in range(heads):
                s, top = f32_at(scratch + h * TILE * 4), o[h * a[10]]
                for p in range(n):
                    top = max(top, s[p])
                o[h * a[10]] = top

    return block_score


@cache
def scores(key_fmt: str) -> Any:
    """Of one token: a[1] queries [head][width], a[2] heads, a[3] width, a[4] keys, a[5] key row bytes, a[6] tokens of a
    block, a[7] last blocks that are always chosen, a[8] how many are chosen, a[9] out [head][a[10]], a[11] scratch,
    a[12] scratch bytes per thread. Nothing where all blocks are chosen."""
    block_score = _block_score(key_fmt)

    @operation
    def block_scores_op(args: int, state: int, thread: int) -> None:
        a = i64_at(args)
        end = i64_at(state)[POSITION] + 1
        n = (end + a[6] - 1) // a[6]
        while n > a[8]:
            block = next_piece(args)
            if block >= n:
                break
            block_score(a, 0, end, block, a[9], a[11] + thread * a[12])

    return block_scores_op


@cache
def choices(key_fmt: str) -> Any:
    """Of many tokens, which blocks each head sees: arguments as of `scores`, but a[9] scratch [thread][head][a[10]],
    a[13] out: bytes [token][head][a[10]], 1 where chosen."""
    block_score = _block_score(key_fmt)

    @operation
    def block_choices_op(args: int, state: int, thread: int) -> None:
        a = i64_at(args)
        heads, most = a[2], a[10]
        row = a[9] + thread * heads * most * 4
        while True:
            t = next_piece(args)
            if t >= i64_at(state)[TOKENS]:
                break
            end = i64_at(state)[POSITION] + t + 1
            n = (end + a[6] - 1) // a[6]
            if n > a[8]:
                for block in range(n):
                    block_score(a, t, end, block, row, a[11] + thread * a[12])
            for h in range(heads):
                chosen = u8_at(a[13] + (t * heads + h) * most)
                least, ties = threshold(row + h * most * 4, n, a[8]) if n > a[8] else (0, 0)
                ordered = i32_at(row + h * most * 4)
                for block in range(n):
                    tied = n > a[8] and ordered[block] == least and ties > 0
                    ties -= 1 if tied else 0
                    chosen[block] = 1 if n <= a[8] or ordered[block] > least or tied else 0

    return block_choices_op


@operation
def listed(args: int, state: int, thread: int) -> None:
    """Of one token: a[1] scores [head][a[3]], a[2] heads, a[3] blocks at most, a[4] how many are chosen, a[5] tokens of
    a block, a[6] out: blocks [head][a[4]] (int64) in order, a[7] out: how many tokens these have (int64)."""
    a = i64_at(args)
    end = i64_at(state)[POSITION] + 1
    n, k = (end + a[5] - 1) // a[5], a[4]
    while True:
        h = next_piece(args)
        if h >= a[2]:
            break
        found, m = i64_at(a[6] + h * k * 8), 0
        least, ties = threshold(a[1] + h * a[3] * 4, n, k) if n > k else (0, 0)
        ordered = i32_at(a[1] + h * a[3] * 4)
        for block in range(n):
            tied = n > k and ordered[block] == least and ties > 0
            ties -= 1 if tied else 0
            if n <= k or ordered[block] > least or tied:
                found[m] = block
                m += 1
        if h == 0:
            i64_at(a[7])[0] = end if n <= k else (k - 1) * a[5] + (end - 1) % a[5] + 1


@operation
def gather(args: int, state: int, thread: int) -> None:
    """Rows of blocks side by side: a[1] blocks [head][a[3]] (int64), a[2] heads, a[3] how many at most, a[4] tokens of
    a block, a[5] rows, a[6] row bytes of a head (even), a[7] bytes of a head, a[8] out, a[9] bytes of a head there."""
    a = i64_at(args)
    end, size = i64_at(state)[POSITION] + 1, a[4]
    n = min((end + size - 1) // size, a[3])
    while True:
        piece = next_piece(args)
        h, i = piece // n, piece % n
        if h >= a[2]:
            break
        first = i64_at(a[1] + h * a[3] * 8)[i] * size
        source = u16_at(a[5] + h * a[7] + first * a[6])
        out = u16_at(a[8] + h * a[9] + i * size * a[6])
        for j in range(min(size, end - first) * a[6] // 2):
            out[j] = source[j]
