"""Tiles of a matrix, unpacked once for many tokens: `TILE_VECTORS` vectors of `lanes` rows, a vector holding the same 4
inputs (of bytes) or the same input (of floats) of its rows.

Rows are unpacked in lines that stay in the nearest cache, and lines are transposed into the tile. Formats with cheap
byte products stay integers; float formats, and signed bytes on AVX2, become float32.
"""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def,var-annotated"

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from runner.ir import F32, I32, Emitter, vec
from runner.kernel_formats import FLOATS, LAYOUTS, load_floats, unpack
from runner.kernel_tools import helper
from runner.target import target

TILE_WIDTH = 2048  # inputs per tile: 64 rows of them stay in a second-level cache
TILE_VECTORS = 4  # row vectors per tile
LINE_WIDTH = 512  # inputs of a row that are unpacked at a time
PAD_BYTES = 64  # lines lie so much more apart, so that they do not share sets of a cache


def uses_bytes(fmt: str) -> bool:
    """Whether the prefill kernel of this format multiplies int8 activations (else float32)."""
    signed = fmt in ("Q8_0", "IQ4_NL", "IQ4_XS")
    return fmt in LAYOUTS and (target().dot == "vnni" or (target().dot == "avx2" and not signed))


def has_minimum(fmt: str) -> bool:
    return fmt not in ("Q8_0", "IQ4_NL", "IQ4_XS") or target().dot == "vnni"


def tile_bytes() -> int:
    """Memory of a tile, bytes or floats, and of its lines."""
    lanes = target().lanes
    rows = TILE_VECTORS * lanes
    return rows * TILE_WIDTH * 4 + 2 * rows * (TILE_WIDTH // 16) * 4 + lanes * (LINE_WIDTH * 2 + PAD_BYTES)


def block_of(fmt: str) -> tuple[int, int]:
    """Weights and bytes of a block."""
    return (1, FLOATS[fmt]) if fmt in FLOATS else LAYOUTS[fmt][:2]


def _row_steps(e: Emitter, fmt: str, w: ir.Value, width: ir.Value, body: Any) -> None:
    """Call body(first weight, groups) for each 256 weights of a row, then for each 32 of the rest."""
    block, block_bytes, _ = LAYOUTS[fmt]
    n_steps = e.b.lshr(width, e.i64(8))
    step_bytes = block_bytes * (256 // block)

    def whole(i: ir.Value, carried: list) -> list:
        at = e.b.add(w, e.b.mul(i, e.i64(step_bytes)))
        body(e.b.mul(i, e.i64(256)), unpack(e, fmt, at, 8))
        return []

    e.loop(n_steps, [], whole)
    if block == 256:
        return
    done = e.b.shl(n_steps, e.i64(3))

    def single(i: ir.Value, carried: list) -> list:
        k = e.b.add(done, i)
        body(e.b.mul(k, e.i64(32)), unpack(e, fmt, e.b.add(w, e.b.mul(k, e.i64(block_bytes))), 1))
        return []

    e.loop(e.b.sub(e.b.lshr(width, e.i64(5)), done), [], single)


def _dequantized(e: Emitter, fmt: str, w: ir.Value, width: ir.Value, use: Any) -> None:
    """Call use(first weight, float32 vector) along a row of any format. Products round as numpy's do."""
    if fmt in FLOATS:
        for n, count, first in (
            (16, e.b.lshr(width, e.i64(4)), e.i64(0)),
            (1, e.b.and_(width, e.i64(15)), e.b.and_(width, e.i64(-16))),
        ):

            def part(i: ir.Value, carried: list, n: int = n, first: ir.Value = first) -> list:
                k = e.b.add(first, e.b.mul(i, e.i64(n)))
                use(k, load_floats(e, fmt, e.b.add(w, e.b.mul(k, e.i64(FLOATS[fmt]))), n))
                return []

            e.loop(count, [], part)
        return
    per_group = LAYOUTS[fmt][2]

    def body(first: ir.Value, groups: Any) -> None:
        minimums = groups.subtracted(e)
        for i, quants in enumerate(groups.quants):
            for part in range(quants.type.count // 16):
                q = e.shuffle(quants, list(range(16 * part, 16 * part + 16)))
                wide = vec(I32, 16)
                as_int = e.b.sext(q, wide) if groups.signed else e.b.zext(q, wide)
                position = quants.type.count * i + 16 * part
                scale_index = [position * per_group // 32] * 16
                value = e.b.fmul(e.b.sitofp(as_int, vec(F32, 16)), e.shuffle(groups.scales, scale_index))
                if minimums is not None:
                    value = e.b.fsub(value, e.shuffle(minimums, scale_index))
                use(e.b.add(first, e.i64(position)), value)

    _row_steps(e, fmt, w, width, body)


@intrinsic(prefer_literal=True)
def unpack_row(typingctx, fmt, w, width, out):
    """`width` weights at `w` -> float32 at `out`."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        e = Emitter(builder)
        _, w, width, out = args
        put = lambda k, v: e.store(v, e.b.add(out, e.b.mul(k, e.i64(4))), align=4)  # noqa: E731
        _dequantized(e, fmt.literal_value, w, width, put)
        return context.get_dummy_value()

    return types.void(fmt, *[types.intp] * 3), codegen


def _transposed(e: Emitter, rows: list[ir.Value]) -> list[ir.Value]:
    """n vectors of n numbers -> their columns: twice within quarters of 4 numbers, then the quarters among themselves,
    for which processors have the fastest shuffles."""
    n = len(rows)

    def within(order: list[int], step: int) -> list[ir.Value]:
        places = [
            [q + k if k < 4 else n + q + k - 4 for q in range(0, n, 4) for k in order[i : i + 4]]
            for i in (0, 4)
        ]
        low, high = places
        new = list(rows)
        for i in range(n):
            if not i & step:
                a, b = rows[i], rows[i + step]
                new[i], new[i + step] = e.shuffle(a, low, b), e.shuffle(a, high, b)
        return new

    rows = within([0, 4, 1, 5, 2, 6, 3, 7], 1)
    rows = within([0, 1, 4, 5, 2, 3, 6, 7], 2)
    # now row 4 i + k holds, in quarter q, column 4 q + (0, 2, 1, 3)[k] of rows 4 i to 4 i + 3
    columns: list[Any] = [None] * n
    for k in range(4):
        parts = [rows[4 * i + k] for i in range(n // 4)]
        for q, column in enumerate(_quarters_transposed(e, parts)):
            columns[4 * q + (0, 2, 1, 3)[k]] = column
    return columns


def _quarters_transposed(e: Emitter, parts: list[ir.Value]) -> list[ir.Value]:
    """2 vectors of 2 runs of 4 numbers, or 4 of 4 -> their columns of runs."""
    m = len(parts)

    def pick(x: ir.Value, y: ir.Value, runs: list[int]) -> ir.Value:
        return e.shuffle(x, [4 * r + k for r in runs + [m + i for i in runs] for k in range(4)], y)

    if m == 2:
        return [pick(*parts, [q]) for q in range(2)]
    a, b, c, d = parts
    found = []
    for half in ([0, 1], [2, 3]):
        first, last = pick(a, b, half), pick(c, d, half)
        found += [pick(first, last, [0, 2]), pick(first, last, [1, 3])]
    return found


@intrinsic(prefer_literal=True)
def transpose_floats(typingctx, fmt, w, row_bytes, width, out, stride):
    """`lanes` rows of a float format at `w` -> float32 columns at `out`, `stride` bytes apart; `width` a multiple of
    `lanes`."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        e, name = Emitter(builder), fmt.literal_value
        _, w, row_bytes, width, out, stride = args
        lanes = target().lanes

        def square(i: ir.Value, carried: list) -> list:
            k = e.b.mul(i, e.i64(lanes))
            at, rows = e.b.add(w, e.b.mul(k, e.i64(FLOATS[name]))), []
            for _ in range(lanes):
                rows.append(load_floats(e, name, at, lanes))
                at = e.b.add(at, row_bytes)
            place = e.b.add(out, e.b.mul(k, stride))
            for column in _transposed(e, rows):
                e.store(column, place, align=4)
                place = e.b.add(place, stride)
            return []

        e.loop(e.b.udiv(width, e.i64(lanes)), [], square)
        return context.get_dummy_value()

    return types.void(fmt, *[types.intp] * 5), codegen


@intrinsic(prefer_literal=True)
def unpack_line(typingctx, fmt, w, ahead, width, quants, scales, minimums):
    """`width` weights at `w` -> bytes, scales and negated minimums, in order; what lies `ahead` bytes on is asked
    for."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        e, name = Emitter(builder), fmt.literal_value
        _, w, ahead, width, q_out, s_out, m_out = args
        block, block_bytes, per_group = LAYOUTS[name]

        def body(first: ir.Value, groups: Any) -> None:
            at = e.b.add(q_out, first)
            for quants in groups.quants:
                e.store(quants, at)
                at = e.b.add(at, e.i64(quants.type.count))
            offset = e.b.mul(e.b.lshr(first, e.i64(5)), e.i64(4 * per_group))
            e.store(groups.scales, e.b.add(s_out, offset), align=4)
            if (minimums := groups.subtracted(e)) is not None:
                e.store(e.b.fneg(minimums), e.b.add(m_out, offset), align=4)

        def ask(i: ir.Value, carried: list) -> list:
            e.prefetch(e.b.add(e.b.add(w, ahead), e.b.mul(i, e.i64(64))), 0)
            return []

        n_bytes = e.b.mul(e.b.udiv(width, e.i64(block)), e.i64(block_bytes))
        e.loop(e.b.lshr(e.b.add(n_bytes, e.i64(63)), e.i64(6)), [], ask)
        _row_steps(e, name, w, width, body)
        return context.get_dummy_value()

    return types.void(fmt, *[types.intp] * 6), codegen


@cache
def fill_bytes(fmt: str) -> Any:
    """Unpack up to `TILE_VECTORS * lanes` rows, of `part` inputs, as bytes with scales and minimums."""
    lanes, per_group = target().lanes, LAYOUTS[fmt][2]
    block, block_size = block_of(fmt)
    apart = LINE_WIDTH + LINE_WIDTH // 32 * per_group * 8 + PAD_BYTES

    @helper
    def fill_bytes_of(weight, row_bytes, n_rows, part, quants, scales, minimums, lines):
        for first in range(0, min(n_rows, TILE_VECTORS * lanes), lanes):
            for start in range(0, part, LINE_WIDTH):
                width = min(LINE_WIDTH, part - start)
                groups = width // 32 * per_group
                line_scales, line_minimums = (
                    lines + LINE_WIDTH,
                    lines + LINE_WIDTH + LINE_WIDTH // 32 * per_group * 4,
                )
                for r in range(lanes):
                    at = weight + min(first + r, n_rows - 1) * row_bytes + start // block * block_size
                    unpack_line(fmt, at, lanes * row_bytes, width, lines + r * apart, line_scales + r * apart,
                                line_minimums + r * apart)  # fmt: skip
                transpose_floats("F32", lines, apart, (width // 4 + lanes - 1) // lanes * lanes,
                                 quants + (first * TILE_WIDTH + start * lanes), 4 * lanes)  # fmt: skip
                place = (first * (TILE_WIDTH // 16) + start // 32 * per_group * lanes) * 4
                rounded = (groups + lanes - 1) // lanes * lanes
                transpose_floats("F32", line_scales, apart, rounded, scales + place, 4 * lanes)
                transpose_floats("F32", line_minimums, apart, rounded, minimums + place, 4 * lanes)

    return fill_bytes_of


@cache
def fill_floats(fmt: str) -> Any:
    """Unpack up to `TILE_VECTORS * lanes` rows, of `part` inputs, as float32; two vectors of rows lie side by side."""
    lanes, width_of_line = target().lanes, LINE_WIDTH // 4
    block, block_size = block_of(fmt)
    whole_squares = fmt in FLOATS
    float_fmt = fmt if whole_squares else "F32"  # quantized formats never take that branch
    apart = width_of_line * 4 + PAD_BYTES

    @helper
    def fill_floats_of(weight, row_bytes, n_rows, part, tile, lines):
        for first in range(0, min(n_rows, TILE_VECTORS * lanes), lanes):
            v = first // lanes
            out = tile + (v // 2 * (TILE_WIDTH // 2) * 2 + v % 2) * lanes * 4
            whole = 0
            if whole_squares and first + lanes <= n_rows:
                whole = part // lanes * lanes
                transpose_floats(float_fmt, weight + first * row_bytes, row_bytes, whole, out, 2 * lanes * 4)
            for start in range(whole, part, width_of_line):
                width = min(width_of_line, part - start)
                for r in range(lanes):
                    at = weight + min(first + r, n_rows - 1) * row_bytes + start // block * block_size
                    unpack_row(fmt, at, width, lines + r * apart)
                transpose_floats("F32", lines, apart, (width + lanes - 1) // lanes * lanes,
                                 out + start * 2 * lanes * 4, 2 * lanes * 4)  # fmt: skip

    return fill_floats_of
