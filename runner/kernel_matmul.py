"""Prefill: Y = X W^T for many tokens with W in its quantized form.

A tile of rows is unpacked once, interleaved so that one vector holds the same 4 inputs of `lanes` rows, and then
multiplied by blocks of `block_tokens()` tokens whose activations were packed to match (`kernel_ops.pack`). Formats with
cheap byte products stay integers (int8 activations); float formats, and signed bytes on AVX2, use float32.
"""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def,var-annotated"

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from runner.ir import F32, I32, Emitter, f32_at, i64_at, vec
from runner.kernel_formats import FLOATS, LAYOUTS, load_floats, unpack
from runner.kernel_tools import THREADS, TOKENS, next_piece, operation
from runner.target import target

TILE_WIDTH = 2048  # inputs per tile: 64 rows of them stay in a second-level cache
TILE_VECTORS = 4  # row vectors per tile
# activations of wide layers exceed the caches: a page ahead gave 485 for 368 GFLOP/s at 4096 x 14336 (Zen 5, 2026)
X_AHEAD_BYTES = 4096


def block_tokens() -> int:
    """Tokens per block of packed activations: as many accumulators as the register file holds."""
    return 12 if target().lanes == 16 else 6


def uses_bytes(fmt: str) -> bool:
    """Whether the prefill kernel of this format multiplies int8 activations (else float32)."""
    signed = fmt in ("Q8_0", "IQ4_NL", "IQ4_XS")
    return fmt in LAYOUTS and (target().dot == "vnni" or (target().dot == "avx2" and not signed))


def scratch_bytes() -> int:
    """Scratch memory per thread for one tile and one result block."""
    rows = TILE_VECTORS * target().lanes
    return rows * TILE_WIDTH * 4 + 2 * rows * (TILE_WIDTH // 16) * 4 + block_tokens() * rows * 4 + 256


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


@intrinsic(prefer_literal=True)
def interleave_floats(typingctx, fmt, w, width, out, stride):
    """`width` weights at `w` -> float32 at `out`, `stride` bytes apart."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        e = Emitter(builder)
        _, w, width, out, stride = args

        def put(k: ir.Value, values: ir.Value) -> None:
            at = e.b.add(out, e.b.mul(k, stride))
            for i in range(values.type.count):
                e.store(e.b.extract_element(values, ir.Constant(I32, i)), at, align=4)
                at = e.b.add(at, stride)

        _dequantized(e, fmt.literal_value, w, width, put)
        return context.get_dummy_value()

    return types.void(fmt, *[types.intp] * 4), codegen


def _transposed(e: Emitter, rows: list[ir.Value]) -> list[ir.Value]:
    """n vectors of n numbers -> their columns, in log2(n) rounds of exchanges."""
    n, step = len(rows), 1
    while step < n:
        low = [k if not k & step else n + k - step for k in range(n)]
        high = [k + step if not k & step else n + k for k in range(n)]
        new = list(rows)
        for i in range(n):
            if not i & step:
                a, b = rows[i], rows[i + step]
                new[i], new[i + step] = e.shuffle(a, low, b), e.shuffle(a, high, b)
        rows, step = new, 2 * step
    return rows


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
def interleave_bytes(typingctx, fmt, w, width, quants, scales, minimums):
    """One row -> its lane of the tile: 4 inputs per 32-bit element, with scales and negated minimums."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        e, name = Emitter(builder), fmt.literal_value
        _, w, width, q_out, s_out, m_out = args
        lanes, per_group = target().lanes, LAYOUTS[name][2]

        def body(first: ir.Value, groups: Any) -> None:
            at = e.b.add(q_out, e.b.mul(first, e.i64(lanes)))
            word = 0
            for quants in groups.quants:
                words = e.b.bitcast(quants, vec(I32, quants.type.count // 4))
                for i in range(words.type.count):
                    e.store(e.b.extract_element(words, ir.Constant(I32, i)), at, 4 * lanes * word, align=4)
                    word += 1
            offset = e.b.mul(e.b.lshr(first, e.i64(5)), e.i64(4 * lanes * per_group))
            pairs = [(groups.scales, s_out)]
            if (minimums := groups.subtracted(e)) is not None:
                pairs.append((e.b.fneg(minimums), m_out))
            for values, out in pairs:
                for i in range(values.type.count):
                    one = e.b.extract_element(values, ir.Constant(I32, i))
                    e.store(one, e.b.add(out, offset), 4 * lanes * i, align=4)

        _row_steps(e, name, w, width, body)
        return context.get_dummy_value()

    return types.void(fmt, *[types.intp] * 5), codegen


def has_minimum(fmt: str) -> bool:
    return fmt not in ("Q8_0", "IQ4_NL", "IQ4_XS") or target().dot == "vnni"


@intrinsic(prefer_literal=True)
def multiply_bytes(typingctx, fmt, quants, scales, minimums, n_groups, xq, xd, xs, out):
    """A tile of `lanes` rows times a block of tokens -> float32 [token][lane] at `out` (overwritten)."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        e, name = Emitter(builder), fmt.literal_value
        _, quants, scales, minimums, n_groups, xq, xd, xs, out = args
        lanes, tokens, per_group = target().lanes, block_tokens(), LAYOUTS[name][2]
        words = 8 // per_group

        def group(i: ir.Value, acc: list) -> list:
            acc = list(acc)
            at = lambda base, size: e.b.add(base, e.b.mul(i, e.i64(size)))  # noqa: E731
            q, s, m = (
                at(quants, 32 * lanes),
                at(scales, 4 * lanes * per_group),
                at(minimums, 4 * lanes * per_group),
            )
            x, d, sums = at(xq, 32 * tokens), at(xd, 4 * tokens), at(xs, 4 * tokens * per_group)
            for part in range(per_group):
                whole = [ir.Constant(vec(I32, lanes), None)] * tokens
                for k in range(words * part, words * (part + 1)):
                    w = e.load(q, vec(ir.IntType(8), 4 * lanes), 4 * lanes * k, align=4)
                    for t in range(tokens):
                        four = e.splat(e.load(x, I32, 4 * (tokens * k + t), align=4), lanes)
                        four = e.b.bitcast(four, vec(ir.IntType(8), 4 * lanes))
                        whole[t] = e.dot_bytes(whole[t], w, four, False)
                scale = e.load(s, vec(F32, lanes), 4 * lanes * part, align=4)
                for t in range(tokens):
                    factor = e.b.fmul(scale, e.splat(e.load(d, F32, 4 * t, align=4), lanes))
                    acc[t] = e.fma(e.b.sitofp(whole[t], vec(F32, lanes)), factor, acc[t])
                if has_minimum(name):
                    least = e.load(m, vec(F32, lanes), 4 * lanes * part, align=4)
                    for t in range(tokens):
                        total = e.splat(e.load(sums, F32, 4 * (tokens * part + t), align=4), lanes)
                        acc[t] = e.fma(least, total, acc[t])
            return acc

        acc = e.loop(n_groups, [ir.Constant(vec(F32, lanes), None)] * tokens, group)
        for t in range(tokens):
            e.store(acc[t], out, 4 * lanes * t, align=4)
        return context.get_dummy_value()

    return types.void(fmt, *[types.intp] * 8), codegen


@intrinsic
def multiply_floats(typingctx, tile, width, x, out):
    """A float32 tile [input][2 * lanes rows] times a block of tokens [input][token] -> [token][2 * lanes]
    at `out`."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        e = Emitter(builder)
        tile, width, x, out = args
        lanes, tokens = target().lanes, block_tokens()

        def step(k: ir.Value, acc: list) -> list:
            row = e.b.add(tile, e.b.mul(k, e.i64(8 * lanes)))
            inputs = e.b.add(x, e.b.mul(k, e.i64(4 * tokens)))
            e.prefetch(inputs, X_AHEAD_BYTES)
            w = [e.load(row, vec(F32, lanes), 4 * lanes * j, align=4) for j in range(2)]
            new = []
            for t in range(tokens):
                one = e.splat(e.load(inputs, F32, 4 * t, align=4), lanes)
                new += [e.fma(w[j], one, acc[2 * t + j]) for j in range(2)]
            return new

        acc = e.loop(width, [ir.Constant(vec(F32, lanes), None)] * (2 * tokens), step)
        for i, value in enumerate(acc):
            e.store(value, out, 4 * lanes * i, align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), codegen


@cache
def matmul(fmt: str) -> Any:
    """Y (+)= X W^T (+ bias) for `state[TOKENS]` tokens, with activations packed for `uses_bytes(fmt)`."""
    return _matmul_bytes(fmt) if uses_bytes(fmt) else _matmul_floats(fmt)


def _block_bytes(fmt: str) -> tuple[int, int]:
    return (1, FLOATS[fmt]) if fmt in FLOATS else LAYOUTS[fmt][:2]


def _matmul_bytes(fmt: str) -> Any:
    lanes, tokens, per_group = target().lanes, block_tokens(), LAYOUTS[fmt][2]
    block, block_size = _block_bytes(fmt)
    tile_rows = TILE_VECTORS * lanes

    @operation
    def matmul_bytes(args: int, state: int, thread: int) -> None:
        a = i64_at(args)
        weight, row_bytes, rows, width, stride, add, bias = a[1], a[2], a[3], a[4], a[6], a[7], a[8]
        xq, xd, xs = a[10], a[11], a[12] if per_group == 1 else a[13]
        n = i64_at(state)[TOKENS]
        quants = a[14] + thread * a[15]
        scales = quants + tile_rows * TILE_WIDTH
        minimums = scales + tile_rows * (TILE_WIDTH // 16) * 4
        result = minimums + tile_rows * (TILE_WIDTH // 16) * 4
        while True:
            first = next_piece(args) * tile_rows
            if first >= rows:
                break
            for start in range(0, width, TILE_WIDTH):
                part = min(TILE_WIDTH, width - start)
                keep = add != 0 or start > 0
                for r in range(tile_rows):
                    at = weight + min(first + r, rows - 1) * row_bytes + start // block * block_size
                    v, lane = r // lanes, r % lanes
                    scale_at = v * (TILE_WIDTH // 16) * lanes * 4 + lane * 4
                    interleave_bytes(
                        fmt,
                        at,
                        part,
                        quants + v * TILE_WIDTH * lanes + lane * 4,
                        scales + scale_at,
                        minimums + scale_at,
                    )
                for t in range(0, n, tokens):
                    x_at = xq + t * width + start * tokens
                    d_at = xd + (t * (width // 32) + start // 32 * tokens) * 4
                    s_at = xs + (t * (width // 32) + start // 32 * tokens) * 4 * per_group
                    for v in range(min(TILE_VECTORS, (rows - first + lanes - 1) // lanes)):
                        scale_at = v * (TILE_WIDTH // 16) * lanes * 4
                        multiply_bytes(
                            fmt, quants + v * TILE_WIDTH * lanes, scales + scale_at, minimums + scale_at, part // 32,
                            x_at, d_at, s_at, result,
                        )  # fmt: skip
                        row = first + v * lanes
                        put_block(
                            result, lanes, a[5] + (t * stride + row) * 4, stride, min(tokens, n - t),
                            min(lanes, rows - row), keep, bias + row * 4 if bias != 0 and start == 0 else 0,
                        )  # fmt: skip

    return matmul_bytes


def _matmul_floats(fmt: str) -> Any:
    lanes, tokens = target().lanes, block_tokens()
    block, block_size = _block_bytes(fmt)
    tile_rows, tile_width = TILE_VECTORS * lanes, TILE_WIDTH // 2
    whole_squares = fmt in FLOATS
    float_fmt = fmt if whole_squares else "F32"  # quantized formats never take that branch

    @operation
    def matmul_floats(args: int, state: int, thread: int) -> None:
        a = i64_at(args)
        weight, row_bytes, rows, width, stride, add, bias, x = a[1], a[2], a[3], a[4], a[6], a[7], a[8], a[9]
        n = i64_at(state)[TOKENS]
        tile = a[14] + thread * a[15]
        result = tile + tile_rows * tile_width * 4
        while True:
            first = next_piece(args) * tile_rows
            if first >= rows:
                break
            for start in range(0, width, tile_width):
                part = min(tile_width, width - start)
                keep = add != 0 or start > 0
                for v in range(TILE_VECTORS):
                    row = first + v * lanes
                    at = weight + row * row_bytes + start // block * block_size
                    out = tile + (v // 2 * tile_width * 2 + v % 2) * lanes * 4
                    if whole_squares and row + lanes <= rows and part % lanes == 0:
                        transpose_floats(float_fmt, at, row_bytes, part, out, 2 * lanes * 4)
                        continue
                    for r in range(lanes):
                        at = weight + min(row + r, rows - 1) * row_bytes + start // block * block_size
                        interleave_floats(fmt, at, part, out + r * 4, 2 * lanes * 4)
                for t in range(0, n, tokens):
                    x_at = x + (t * width + start * tokens) * 4
                    for v in range(0, TILE_VECTORS, 2):
                        row = first + v * lanes
                        if row >= rows:
                            break
                        multiply_floats(tile + v * tile_width * lanes * 4, part, x_at, result)
                        put_block(
                            result, 2 * lanes, a[5] + (t * stride + row) * 4, stride, min(tokens, n - t),
                            min(2 * lanes, rows - row), keep, bias + row * 4 if bias != 0 and start == 0 else 0,
                        )  # fmt: skip

    return matmul_floats


from runner.kernel_tools import helper  # noqa: E402


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


__all__ = ["THREADS", "block_tokens", "matmul", "scratch_bytes", "unpack_row", "uses_bytes"]
