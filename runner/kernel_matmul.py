"""Prefill: Y = X W^T for many tokens with W in its quantized form.

Few tokens take one row after another, as one token does; several, where activations stay float32, a few rows with a few
tokens at a time. For more, tiles of rows are unpacked once and multiplied by
blocks of tokens; the last block by as many thirds of it as there are tokens for.
"""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def,var-annotated"

from __future__ import annotations

from functools import cache
from typing import Any

from runner.ir import f32_at, i64_at
from runner.kernel_attention_step import HEADS, TILE, score_rows
from runner.kernel_formats import LAYOUTS
from runner.kernel_matvec import PIECE_BYTES, put, rows_per_piece, rows_times_tokens
from runner.kernel_multiply import block_tokens, multiply_bytes, multiply_floats
from runner.kernel_tile import (
    TILE_VECTORS,
    TILE_WIDTH,
    block_of,
    fill_bytes,
    fill_floats,
    tile_bytes,
    unpack_row,
    uses_bytes,
)
from runner.kernel_tools import FEW, THREADS, TOKENS, helper, next_piece, operation, stays_in_order
from runner.target import target


def scratch_bytes() -> int:
    """Scratch memory per thread for one tile and one result block."""
    return tile_bytes() + 2 * block_tokens() * TILE_VECTORS * target().lanes * 4 + 256


@cache
def matmul(fmt: str) -> Any:
    """Y (+)= X W^T (+ bias) for `state[TOKENS]` tokens, with activations packed for `uses_bytes(fmt)`; as int8 for
    up to `FEW` tokens of any quantized format."""
    few, many = _few(fmt), _many_bytes(fmt) if uses_bytes(fmt) else _floats(fmt)

    @operation
    def matmul_op(args: int, state: int, thread: int) -> None:
        if i64_at(state)[TOKENS] <= FEW:
            few(args, state)
        else:
            many(args, state, thread)

    return matmul_op


def _floats(fmt: str) -> Any:
    several, many = _several(fmt), _many_floats(fmt)

    @helper
    def matmul_of_floats(args, state, thread):
        if stays_in_order(i64_at(state)[TOKENS], i64_at(args)[4]):
            several(args, state, thread)
        else:
            many(args, state, thread)

    return matmul_of_floats


def _several(fmt: str) -> Any:
    @helper
    def matmul_several(args, state, thread):
        a = i64_at(args)
        weight, row_bytes, rows, width, n = a[1], a[2], a[3], a[4], i64_at(state)[TOKENS]
        found = a[14] + thread * a[15]  # [token][TILE]
        piece = rows_per_piece(rows, row_bytes, i64_at(state)[THREADS])
        # rows that stay in a near cache
        run = max(HEADS, min(TILE, PIECE_BYTES // row_bytes) // HEADS * HEADS)
        while True:
            start = next_piece(args) * piece
            if start >= rows:
                break
            end = min(start + piece, rows)
            for first in range(start, end, run):
                m, at, done = min(run, end - first), weight + first * row_bytes, 0
                while done < n:
                    t = min(done, n - HEADS)
                    score_rows(
                        fmt, HEADS, at, row_bytes, m, width, a[9] + t * width * 4, found, at, row_bytes
                    )
                    for k in range(done, t + HEADS):
                        for r in range(m):
                            put(
                                a[5] + k * a[6] * 4,
                                first + r,
                                f32_at(found + (k - t) * TILE * 4)[r],
                                a[7],
                                a[8],
                            )
                    done = t + HEADS

    return matmul_several


def _few(fmt: str) -> Any:
    two, four = rows_times_tokens(fmt, 2), rows_times_tokens(fmt, FEW)

    @helper
    def matmul_few(args, state):
        a = i64_at(args)
        n, rows, width = i64_at(state)[TOKENS], a[3], a[4]
        piece = rows_per_piece(rows, a[2], i64_at(state)[THREADS])
        while True:
            first = next_piece(args) * piece
            if first >= rows:
                break
            end = min(first + piece, rows)
            if n <= 2:
                two(
                    a[1], a[2], first, end, width, a[5], a[6], a[7], a[8], n, a[9], a[10], a[11], a[12], a[13]
                )
            else:
                four(
                    a[1], a[2], first, end, width, a[5], a[6], a[7], a[8], n, a[9], a[10], a[11], a[12], a[13]
                )

    return matmul_few


@cache
def times_block(fmt: str) -> Any:
    """The rows of a vector of the tile times the first n tokens of a block."""
    third, two_thirds, whole = (block_tokens() // 3 * k for k in (1, 2, 3))
    if not uses_bytes(fmt):

        @helper
        def times_block_floats(n, tile, width, x, result):
            if n <= third:
                multiply_floats(third, tile, width, x, result)
            elif n <= two_thirds:
                multiply_floats(two_thirds, tile, width, x, result)
            else:
                multiply_floats(whole, tile, width, x, result)

        return times_block_floats

    @helper
    def times_block_bytes(n, quants, scales, minimums, groups, xq, xd, xs, result):
        if n <= third:
            multiply_bytes(fmt, third, quants, scales, minimums, groups, xq, xd, xs, result)
        elif n <= two_thirds:
            multiply_bytes(fmt, two_thirds, quants, scales, minimums, groups, xq, xd, xs, result)
        else:
            multiply_bytes(fmt, whole, quants, scales, minimums, groups, xq, xd, xs, result)

    return times_block_bytes


def _many_bytes(fmt: str) -> Any:
    lanes, tokens, per_group = target().lanes, block_tokens(), LAYOUTS[fmt][2]
    block, block_size = block_of(fmt)
    tile_rows = TILE_VECTORS * lanes
    fill, multiply = fill_bytes(fmt), times_block(fmt)

    @helper
    def matmul_bytes(args, state, thread):
        a = i64_at(args)
        weight, row_bytes, rows, width, stride, add, bias = a[1], a[2], a[3], a[4], a[6], a[7], a[8]
        xq, xd, xs = a[10], a[11], a[12] if per_group == 1 else a[13]
        n = i64_at(state)[TOKENS]
        quants = a[14] + thread * a[15]
        scales = quants + tile_rows * TILE_WIDTH
        minimums = scales + tile_rows * (TILE_WIDTH // 16) * 4
        result = minimums + tile_rows * (TILE_WIDTH // 16) * 4
        lines = result + tokens * tile_rows * 4
        while True:
            first = next_piece(args) * tile_rows
            if first >= rows:
                break
            for start in range(0, width, TILE_WIDTH):
                part = min(TILE_WIDTH, width - start)
                keep = add != 0 or start > 0
                at = weight + first * row_bytes + start // block * block_size
                fill(at, row_bytes, rows - first, part, quants, scales, minimums, lines)
                for t in range(0, n, tokens):
                    x_at = xq + t * width + start * tokens
                    d_at = xd + (t * (width // 32) + start // 32 * tokens) * 4
                    s_at = xs + (t * (width // 32) + start // 32 * tokens) * 4 * per_group
                    for v in range(min(TILE_VECTORS, (rows - first + lanes - 1) // lanes)):
                        scale_at = v * (TILE_WIDTH // 16) * lanes * 4
                        multiply(
                            n - t, quants + v * TILE_WIDTH * lanes, scales + scale_at, minimums + scale_at, part // 32,
                            x_at, d_at, s_at, result,
                        )  # fmt: skip
                        row = first + v * lanes
                        put_block(
                            result, lanes, a[5] + (t * stride + row) * 4, stride, min(tokens, n - t),
                            min(lanes, rows - row), keep, bias + row * 4 if bias != 0 and start == 0 else 0,
                        )  # fmt: skip

    return matmul_bytes


def _many_floats(fmt: str) -> Any:
    lanes, tokens = target().lanes, block_tokens()
    block, block_size = block_of(fmt)
    tile_rows, tile_width = TILE_VECTORS * lanes, TILE_WIDTH // 2
    fill, multiply = fill_floats(fmt), times_block(fmt)

    @helper
    def matmul_floats(args, state, thread):
        a = i64_at(args)
        weight, row_bytes, rows, width, stride, add, bias, x = a[1], a[2], a[3], a[4], a[6], a[7], a[8], a[9]
        n = i64_at(state)[TOKENS]
        tile = a[14] + thread * a[15]
        result = tile + tile_rows * tile_width * 4
        lines = result + tokens * tile_rows * 4
        while True:
            first = next_piece(args) * tile_rows
            if first >= rows:
                break
            for start in range(0, width, tile_width):
                part = min(tile_width, width - start)
                keep = add != 0 or start > 0
                at = weight + first * row_bytes + start // block * block_size
                fill(at, row_bytes, rows - first, part, tile, lines)
                for t in range(0, n, tokens):
                    x_at = x + (t * width + start * tokens) * 4
                    for v in range(0, TILE_VECTORS, 2):
                        row = first + v * lanes
                        if row >= rows:
                            break
                        multiply(n - t, tile + v * tile_width * lanes * 4, part, x_at, result)
                        put_block(
                            result, 2 * lanes, a[5] + (t * stride + row) * 4, stride, min(tokens, n - t),
                            min(2 * lanes, rows - row), keep, bias + row * 4 if bias != 0 and start == 0 else 0,
                        )  # fmt: skip

    return matmul_floats


@helper
def put_block(result, row_length, out, stride, n_tokens, n_rows, keep, bias):
    """Copy (or add, where `keep`) a result block [token][row_length] to Y [token][stride]."""
    for t in range(n_tokens):
        source, y = f32_at(result + t * row_length * 4), f32_at(out + t * stride * 4)
        if keep:
            for r in range(n_rows):
                y[r] += source[r]
        else:
            for r in range(n_rows):
                y[r] = source[r]
        if bias != 0:
            b = f32_at(bias)
            for r in range(n_rows):
                y[r] += b[r]


__all__ = ["block_tokens", "matmul", "scratch_bytes", "times_block", "unpack_row", "uses_bytes"]
