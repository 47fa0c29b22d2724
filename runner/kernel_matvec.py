"""Decode: y = W x with W in its quantized form, one fused dot product per row."""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def,var-annotated"

from __future__ import annotations

from functools import cache
from typing import Any

from runner.ir import f32_at, i64_at
from runner.kernel_dot import dots
from runner.kernel_tools import THREADS, helper, next_piece, operation

# argument slots of matrix products
(
    COUNTER,
    WEIGHT,
    ROW_BYTES,
    ROWS,
    WIDTH,
    OUT,
    OUT_STRIDE,
    ADD,
    BIAS,
    X,
    XQ,
    XD,
    XS32,
    XS16,
    SCRATCH,
    FACTOR,
) = range(16)


PIECE_BYTES = 65536


@helper
def put(y, row, value, add, bias):
    """y[row] (+)= value (+ bias[row])."""
    out = f32_at(y)
    if bias != 0:
        value += f32_at(bias)[row]
    if add != 0:
        value += out[row]
    out[row] = value


@cache
def rows_times_token(fmt: str) -> Any:
    """y (+)= W x (+ bias) for some rows."""

    @helper
    def rows_times_token_of(weight, row_bytes, first, end, width, y, add, bias, x, xq, xd, xs32, xs16):
        for r in range(first, end):
            put(y, r, dots(fmt, 1, weight + r * row_bytes, width, 0, x, xq, xd, xs32, xs16)[0], add, bias)

    return rows_times_token_of


@cache
def rows_times_tokens(fmt: str, tokens: int) -> Any:
    """Y (+)= X W^T (+ bias) for some rows and n of up to `tokens` tokens."""

    @helper
    def rows_times_tokens_of(
        weight, row_bytes, first, end, width, y, stride, add, bias, n, x, xq, xd, xs32, xs16
    ):
        for r in range(first, end):
            found = dots(fmt, tokens, weight + r * row_bytes, width, n - 1, x, xq, xd, xs32, xs16)
            for t in range(n):
                put(y + t * stride * 4, r, found[t], add, bias)

    return rows_times_tokens_of


@helper
def rows_per_piece(rows, row_bytes, n_threads):
    """Two pieces a thread, of 64 KiB at least: every thread works, and what is asked for ahead is its own."""
    return min(2048, max(PIECE_BYTES // row_bytes, rows // (2 * n_threads), 1))


@cache
def matvec(fmt: str) -> Any:
    """y (+)= W x (+ bias) for one token."""
    product = rows_times_token(fmt)

    @operation
    def matvec_op(args: int, state: int, thread: int) -> None:
        a = i64_at(args)
        rows = a[3]
        piece = rows_per_piece(rows, a[2], i64_at(state)[THREADS])
        while True:
            first = next_piece(args) * piece
            if first >= rows:
                break
            product(a[1], a[2], first, min(first + piece, rows), a[4], a[5], a[7], a[8], a[9], a[10], a[11], a[12],
                    a[13])  # fmt: skip

    return matvec_op


@cache
def expert_matvec(fmt: str) -> Any:
    """Rows of chosen experts times their tokens' activations (never interleaved).

    Slots as above, and: OUT [pair][OUT_STRIDE], 7 bytes per expert, BIAS [expert][rows], 14 pairs by expert
    (int64),
    15 first pair of each expert, 16 number of experts, 17 pairs per row of x, 18 tokens from which an expert is left
    to `runner.kernel_experts`.
    """

    product = rows_times_token(fmt)

    @operation
    def expert_op(args: int, state: int, thread: int) -> None:
        a = i64_at(args)
        row_bytes, rows, width = a[2], a[3], a[4]
        pairs, first = i64_at(a[14]), i64_at(a[15])
        piece_rows = max(8, min(131072 // row_bytes, rows // 4))
        chunks = (rows + piece_rows - 1) // piece_rows
        active, expert, start = 0, -1, 0
        while True:
            piece = next_piece(args)
            # experts without tokens, or with many, take no pieces: walk to the one that this piece belongs to
            while expert < 0 or piece >= start + chunks:
                if expert >= 0:
                    start += chunks
                expert += 1
                while expert < a[16] and not 0 < first[expert + 1] - first[expert] < a[18]:
                    expert += 1
                if expert >= a[16]:
                    return
            active = piece - start
            end = min((active + 1) * piece_rows, rows)
            bias = a[8] + expert * rows * 4 if a[8] != 0 else 0
            for p in range(first[expert], first[expert + 1]):
                pair = pairs[p]
                x = pair // a[17]
                blocks = x * (width // 32) * 4
                product(
                    a[1] + expert * a[7], row_bytes, active * piece_rows, end, width, a[5] + pair * a[6] * 4, 0, bias,
                    a[9] + x * width * 4, a[10] + x * width, a[11] + blocks, a[12] + blocks, a[13] + 2 * blocks,
                )  # fmt: skip

    return expert_op
