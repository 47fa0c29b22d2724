"""Decode: y = W x with W in its quantized form, one fused dot product per row."""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def,var-annotated"

from __future__ import annotations

from functools import cache
from typing import Any

from runner.ir import f32_at, i64_at
from runner.kernel_dot import PREFETCH_BYTES, dots
from runner.kernel_stream import FOLLOWING, ROW_BYTES, ROWS, WEIGHT, begins, own_rows
from runner.kernel_tools import THREADS, helper, next_piece, operation

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
    """y (+)= W x (+ bias) for some rows. What lies `ahead` bytes from each is asked for."""

    @helper
    def rows_times_token_of(weight, row_bytes, first, end, width, ahead, y, add, bias, x, xq, xd, xs32, xs16):
        for r in range(first, end):
            found = dots(fmt, 1, weight + r * row_bytes, width, ahead, 0, x, xq, xd, xs32, xs16)[0]
            put(y, r, found, add, bias)

    return rows_times_token_of


@cache
def rows_times_tokens(fmt: str, tokens: int) -> Any:
    """Y (+)= X W^T (+ bias) for some rows and n of up to `tokens` tokens."""

    @helper
    def rows_times_tokens_of(
        weight, row_bytes, first, end, width, y, stride, add, bias, n, x, xq, xd, xs32, xs16
    ):
        for r in range(first, end):
            found = dots(
                fmt, tokens, weight + r * row_bytes, width, PREFETCH_BYTES, n - 1, x, xq, xd, xs32, xs16
            )
            for t in range(n):
                put(y + t * stride * 4, r, found[t], add, bias)

    return rows_times_tokens_of


@helper
def rows_per_piece(rows, row_bytes, n_threads):
    """Two pieces a thread, of 64 KiB at least: every thread works, and what is asked for ahead is its own."""
    return min(2048, max(PIECE_BYTES // row_bytes, rows // (2 * n_threads), 1))


@cache
def matvec(fmt: str) -> Any:
    """y (+)= W x (+ bias) for one token. Each thread takes its own rows, then pieces of what is left, and asks for the
    next while it ends the last: more rows, or what the product after this one (FOLLOWING) begins with."""
    product = rows_times_token(fmt)

    @operation
    def matvec_op(args: int, state: int, thread: int) -> None:
        a = i64_at(args)
        rows, row_bytes, n_threads = a[ROWS], a[ROW_BYTES], i64_at(state)[THREADS]
        own = own_rows(rows, n_threads)
        shared = own * n_threads
        piece = max(1, PIECE_BYTES // row_bytes, (rows - shared) // (4 * n_threads))
        first, end, late = thread * own, (thread + 1) * own, PREFETCH_BYTES // row_bytes
        while first < rows:
            middle = max(first, end - late)
            product(a[1], row_bytes, first, middle, a[4], PREFETCH_BYTES, a[5], a[7], a[8], a[9], a[10], a[11], a[12],
                    a[13])  # fmt: skip
            first = shared + next_piece(args) * piece
            following = (
                a[WEIGHT] + first * row_bytes if first < rows else begins(a[FOLLOWING], thread, n_threads)
            )
            jump = following - (a[WEIGHT] + end * row_bytes) if following != 0 else 0
            jump += PREFETCH_BYTES
            product(a[1], row_bytes, middle, end, a[4], jump, a[5], a[7], a[8], a[9], a[10], a[11], a[12],
                    a[13])  # fmt: skip
            end = min(first + piece, rows)

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
                    a[1] + expert * a[7], row_bytes, active * piece_rows, end, width, PREFETCH_BYTES,
                    a[5] + pair * a[6] * 4, 0, bias, a[9] + x * width * 4, a[10] + x * width, a[11] + blocks,
                    a[12] + blocks, a[13] + 2 * blocks,
                )  # fmt: skip

    return expert_op
