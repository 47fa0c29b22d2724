"""Prefill of experts: tokens are grouped by the expert that they chose, and each group is multiplied as in
`runner.kernel_matmul`. Groups of fewer than `FEW` are left to `runner.kernel_matvec.expert_matvec`.
"""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def,var-annotated"

from __future__ import annotations

from functools import cache
from typing import Any

from runner.ir import f32_at, i64_at
from runner.kernel_formats import LAYOUTS
from runner.kernel_matmul import times_block
from runner.kernel_multiply import block_tokens
from runner.kernel_pack import pack_groups
from runner.kernel_tile import TILE_VECTORS, TILE_WIDTH, block_of, fill_bytes, fill_floats, uses_bytes
from runner.kernel_tools import helper, next_piece, operation
from runner.target import target

FEW = 4  # tokens of an expert below which unpacking a tile does not pay (measured on Zen 5, 2026)
BLOCK = block_tokens()


@helper
def n_blocks(count):
    """Blocks of an expert's tokens."""
    return (count + BLOCK - 1) // BLOCK if count >= FEW else 0


@operation
def pack_by_expert(args: int, state: int, thread: int) -> None:
    """Activations in blocks of tokens that share an expert. a[1] x, a[2] width, a[3] x stride, a[4] float blocks
    (or 0), a[5] int8 blocks (or 0), a[6] scales, a[7] sums per 32, a[8] sums per 16, a[9] pairs by expert (int64),
    a[10] first pair of each expert, a[11] number of experts, a[12] pairs per row of x."""
    a = i64_at(args)
    width, pairs, first, n = a[2], i64_at(a[9]), i64_at(a[10]), a[11]
    groups = width // 32
    expert, block = 0, 0
    while True:
        piece = next_piece(args)
        while expert < n and piece >= block + n_blocks(first[expert + 1] - first[expert]):
            block += n_blocks(first[expert + 1] - first[expert])
            expert += 1
        if expert >= n:
            return
        at = first[expert] + (piece - block) * BLOCK
        for lane in range(min(BLOCK, first[expert + 1] - at)):
            x = a[1] + pairs[at + lane] // a[12] * a[3] * 4
            if a[4] != 0:
                source, floats = f32_at(x), f32_at(a[4] + piece * width * BLOCK * 4)
                for i in range(width):
                    floats[i * BLOCK + lane] = source[i]
            if a[5] != 0:
                pack_groups(x, 0, groups, BLOCK, lane, a[5] + piece * width * BLOCK, a[6] + piece * groups * BLOCK * 4,
                            a[7] + piece * groups * BLOCK * 4, a[8] + piece * groups * BLOCK * 8)  # fmt: skip


@helper
def put_pairs(result, row_length, out, stride, pairs, n_tokens, n_rows, keep, bias):
    """Copy (or add, where `keep`) a result block [token][row_length] to the rows `pairs` of Y [pair][stride]."""
    for t in range(n_tokens):
        source, y = f32_at(result + t * row_length * 4), f32_at(out + i64_at(pairs)[t] * stride * 4)
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


@cache
def expert_matmul(fmt: str) -> Any:
    """`runner.kernel_matvec.expert_matvec` for experts of many tokens. Slots as there, but: 18 x in blocks by
    expert (int8, or float32 for formats without byte products), 19 its scales, 20 its sums, 21 scratch, 22 its bytes
    per thread."""
    return _experts_bytes(fmt) if uses_bytes(fmt) else _experts_floats(fmt)


def sums_per(fmt: str) -> int:
    """Whether the kernel of this format wants sums per 32 or per 16 inputs."""
    return 16 if fmt in LAYOUTS and LAYOUTS[fmt][2] == 2 else 32


def _experts_bytes(fmt: str) -> Any:
    lanes, per_group = target().lanes, LAYOUTS[fmt][2]
    block, block_size = block_of(fmt)
    tile_rows = TILE_VECTORS * lanes
    fill, multiply = fill_bytes(fmt), times_block(fmt)

    @operation
    def experts_bytes(args: int, state: int, thread: int) -> None:
        a = i64_at(args)
        row_bytes, rows, width, stride = a[2], a[3], a[4], a[6]
        first, n = i64_at(a[15]), a[16]
        quants = a[21] + thread * a[22]
        scales = quants + tile_rows * TILE_WIDTH
        minimums = scales + tile_rows * (TILE_WIDTH // 16) * 4
        result = minimums + tile_rows * (TILE_WIDTH // 16) * 4
        lines = result + BLOCK * tile_rows * 4
        tiles = (rows + tile_rows - 1) // tile_rows
        expert, tile, at_block = 0, 0, 0
        while True:
            piece = next_piece(args)
            while expert < n:
                blocks = n_blocks(first[expert + 1] - first[expert])
                if blocks > 0 and piece < tile + tiles:
                    break
                tile += tiles if blocks > 0 else 0
                at_block += blocks
                expert += 1
            if expert >= n:
                return
            row0 = (piece - tile) * tile_rows
            count, chosen = first[expert + 1] - first[expert], a[14] + first[expert] * 8
            for start in range(0, width, TILE_WIDTH):
                part = min(TILE_WIDTH, width - start)
                at = a[1] + expert * a[7] + row0 * row_bytes + start // block * block_size
                fill(at, row_bytes, rows - row0, part, quants, scales, minimums, lines)
                for t in range(0, count, BLOCK):
                    x = (at_block + t // BLOCK) * BLOCK
                    groups = (x * (width // 32) + start // 32 * BLOCK) * 4
                    for v in range(min(TILE_VECTORS, (rows - row0 + lanes - 1) // lanes)):
                        scale_at = v * (TILE_WIDTH // 16) * lanes * 4
                        multiply(count - t, quants + v * TILE_WIDTH * lanes, scales + scale_at, minimums + scale_at,
                                       part // 32, a[18] + x * width + start * BLOCK, a[19] + groups,
                                       a[20] + groups * per_group, result)  # fmt: skip
                        row = row0 + v * lanes
                        bias = a[8] + (expert * rows + row) * 4 if a[8] != 0 and start == 0 else 0
                        put_pairs(result, lanes, a[5] + row * 4, stride, chosen + t * 8, min(BLOCK, count - t),
                                  min(lanes, rows - row), start > 0, bias)  # fmt: skip

    return experts_bytes


def _experts_floats(fmt: str) -> Any:
    lanes = target().lanes
    block, block_size = block_of(fmt)
    tile_rows, tile_width = TILE_VECTORS * lanes, TILE_WIDTH // 2
    fill, multiply = fill_floats(fmt), times_block(fmt)

    @operation
    def experts_floats(args: int, state: int, thread: int) -> None:
        a = i64_at(args)
        row_bytes, rows, width, stride = a[2], a[3], a[4], a[6]
        first, n = i64_at(a[15]), a[16]
        tile_at = a[21] + thread * a[22]
        result = tile_at + tile_rows * tile_width * 4
        lines = result + BLOCK * tile_rows * 4
        tiles = (rows + tile_rows - 1) // tile_rows
        expert, tile, at_block = 0, 0, 0
        while True:
            piece = next_piece(args)
            while expert < n:
                blocks = n_blocks(first[expert + 1] - first[expert])
                if blocks > 0 and piece < tile + tiles:
                    break
                tile += tiles if blocks > 0 else 0
                at_block += blocks
                expert += 1
            if expert >= n:
                return
            row0 = (piece - tile) * tile_rows
            count, chosen = first[expert + 1] - first[expert], a[14] + first[expert] * 8
            for start in range(0, width, tile_width):
                part = min(tile_width, width - start)
                at = a[1] + expert * a[7] + row0 * row_bytes + start // block * block_size
                fill(at, row_bytes, rows - row0, part, tile_at, lines)
                for t in range(0, count, BLOCK):
                    x = (at_block + t // BLOCK) * BLOCK
                    for v in range(0, TILE_VECTORS, 2):
                        row = row0 + v * lanes
                        if row >= rows:
                            break
                        multiply(count - t, tile_at + v * tile_width * lanes * 4, part,
                                        a[18] + (x * width + start * BLOCK) * 4, result)  # fmt: skip
                        bias = a[8] + (expert * rows + row) * 4 if a[8] != 0 and start == 0 else 0
                        put_pairs(result, 2 * lanes, a[5] + row * 4, stride, chosen + t * 8, min(BLOCK, count - t),
                                  min(2 * lanes, rows - row), start > 0, bias)  # fmt: skip

    return experts_floats


__all__ = ["BLOCK", "FEW", "expert_matmul", "pack_by_expert", "sums_per"]
