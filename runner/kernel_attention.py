"""Attention over a cache kept in float16, Q8_0 or Q4_0, with windows, chunks, soft caps and sinks.

Rows of work are (token, head) pairs that share one key-value head. Softmax is computed online over tiles of
positions, so memory does not grow with the context. Positions map to cache slots modulo the ring's length.
"""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def,var-annotated"

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from runner.ir import F32, Emitter, as_float, exp, f32_at, i64_at, quantize_group, to_half, u8_at, u16_at, vec
from runner.kernel_formats import FLOATS, LAYOUTS, load_floats
from runner.kernel_matmul import block_tokens, interleave_floats, multiply_floats, unpack_row
from runner.kernel_matvec import dot_row
from runner.kernel_ops import ONE, TWO, ZERO, pack_groups
from runner.kernel_tools import POSITION, TOKENS, helper, next_piece, operation, reducer
from runner.target import target

BLOCK_TOKENS = block_tokens()
COLUMNS = 2 * target().lanes  # positions (or value columns) per product tile
ROW_BLOCKS = 8  # blocks of rows that share an unpacked tile of keys in prefill
NEVER = np.float32(-1e30)  # the score of a masked position; its weight underflows to zero
TILE = 256  # positions per softmax tile in decode


def scratch_bytes(head_dim: int, value_dim: int, group: int) -> int:
    """Scratch memory per thread."""
    rows = ROW_BLOCKS * BLOCK_TOKENS
    widest = max(head_dim, value_dim) + COLUMNS
    prefill = rows * widest * 2 + COLUMNS * widest * 3 + rows * COLUMNS * 2 + rows * 4
    decode = group * (TILE + value_dim + 4 + 3 * head_dim) + value_dim * 2
    return (max(prefill, decode) + 64) * 4


@cache
def store_cache(fmt: str) -> Any:
    """Append keys or values: a[1] x [token][stride], a[2] width, a[3] stride, a[4] cache, a[5] row bytes,
    a[6] ring length."""

    @operation
    def store_op(args: int, state: int, thread: int) -> None:
        a = i64_at(args)
        while True:
            t = next_piece(args)
            if t >= i64_at(state)[TOKENS]:
                break
            slot = (i64_at(state)[POSITION] + t) % a[6]
            write_row(fmt, a[1] + t * a[3] * 4, a[2], a[4] + slot * a[5])

    return store_op


@helper
def write_f16(x, width, out):
    source, halves = f32_at(x), u16_at(out)
    for i in range(width):
        halves[i] = to_half(source[i])


@helper
def write_q8_0(x, width, out):
    """Blocks of a float16 scale and 32 codes. What `quantize_group` tells of sums goes over numbers of x
    that it has
    read already."""
    for b in range(width // 32):
        source, at = x + b * 128, out + b * 34
        quantize_group(source, at + 2, 4, source, source + 4, source + 8, source + 12)
        u16_at(at)[0] = to_half(f32_at(source)[0])


@helper
def write_q4_0(x, width, out):
    for b in range(width // 32):
        source, at = f32_at(x + b * 128), out + b * 18
        top = 0.0
        for i in range(32):
            if abs(source[i]) > abs(top):
                top = source[i]
        scale = top / -8.0
        inverse = 1.0 / scale if scale != 0.0 else 0.0
        u16_at(at)[0] = to_half(scale)
        quants = u8_at(at + 2)
        for i in range(16):
            low = min(15, int(source[i] * inverse + 8.5))
            high = min(15, int(source[i + 16] * inverse + 8.5))
            quants[i] = low | (high << 4)


@helper
def write_row(fmt, x, width, out):
    if fmt == "F16":
        write_f16(x, width, out)
    elif fmt == "Q4_0":
        write_q4_0(x, width, out)
    else:
        write_q8_0(x, width, out)


@intrinsic(prefer_literal=True)
def weighted_rows(typingctx, fmt, rows, row_bytes, n, weights, width, out):
    """out[0..width) += sum over n rows of weights[i] * row i; width a multiple of 32."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        e, name = Emitter(builder), fmt.literal_value
        _, rows, row_bytes, n, weights, width, out = args
        lanes = target().lanes
        n_vectors = 32 // lanes
        block, size = (1, FLOATS[name]) if name in FLOATS else LAYOUTS[name][:2]

        def columns(c: ir.Value, carried: list) -> list:
            first = e.b.mul(c, e.i64(32))
            at = e.b.add(out, e.b.mul(first, e.i64(4)))
            start = e.b.mul(c, e.i64(32 // block * size))

            def row(i: ir.Value, acc: list) -> list:
                w = e.splat(e.load(e.b.add(weights, e.b.mul(i, e.i64(4))), F32, align=4), lanes)
                source = e.b.add(e.b.add(rows, e.b.mul(i, row_bytes)), start)
                return [e.fma(part, w, a) for part, a in zip(row_vectors(source), acc, strict=True)]

            def row_vectors(source: ir.Value) -> list:
                if name in FLOATS:
                    return [
                        load_floats(e, name, e.at(source, size * lanes * j), lanes) for j in range(n_vectors)
                    ]
                from runner.kernel_formats import unpack

                groups = unpack(e, name, source, 1)
                wide = vec(ir.IntType(32), 32)
                q = groups.quants[0]
                value = e.b.sitofp(e.b.sext(q, wide) if groups.signed else e.b.zext(q, wide), vec(F32, 32))
                value = e.b.fmul(value, e.shuffle(groups.scales, [0] * 32))
                if groups.minimums is not None:
                    value = e.b.fsub(value, e.shuffle(groups.minimums, [0] * 32))
                return [e.shuffle(value, list(range(lanes * j, lanes * (j + 1)))) for j in range(n_vectors)]

            acc = [e.load(at, vec(F32, lanes), 4 * lanes * j, align=4) for j in range(n_vectors)]
            for j, value in enumerate(e.loop(n, acc, row)):
                e.store(value, at, 4 * lanes * j, align=4)
            return []

        e.loop(e.b.lshr(width, e.i64(5)), [], columns)
        return context.get_dummy_value()

    return types.void(fmt, *[types.intp] * 6), codegen


@helper
def cap_score(s, cap):
    return cap * (ONE - TWO / (ONE + exp(TWO * s / cap))) if cap > ZERO else s


@helper
def first_visible(position, window, chunked):
    """The first position that a token at `position` may attend to."""
    if window == 0:
        return 0
    return position // window * window if chunked != 0 else max(0, position - window + 1)


# arguments: a[1] queries [token][stride], a[2] query stride, a[3] heads, a[4] key-value heads, a[5] head dim,
# a[6] value
# dim, a[7] keys, a[8] key row bytes, a[9] key head bytes, a[10] values, a[11] value row bytes, a[12] value
# head bytes,
# a[13] ring length, a[14] window (0: none), a[15] chunked, a[16] score factor, a[17] soft cap, a[18] sinks
# (or 0),
# a[19] out [token][heads * value dim], a[20] scratch, a[21] scratch bytes per thread.


@cache
def attention(key_fmt: str, value_fmt: str) -> Any:
    one, many = _decode(key_fmt, value_fmt), _prefill(key_fmt, value_fmt)

    @operation
    def attention_op(args: int, state: int, thread: int) -> None:
        if i64_at(state)[TOKENS] == 1:
            one(args, state, thread)
        else:
            many(args, state, thread)

    return attention_op


def _decode(key_fmt: str, value_fmt: str) -> Any:
    @helper
    def decode_attention(args, state, thread):
        a = i64_at(args)
        n_kv, head_dim, value_dim, ring = a[4], a[5], a[6], a[13]
        group = a[3] // n_kv
        # as many heads per piece as share keys, but at least one piece per thread
        split = group if n_kv >= i64_at(state)[2] else max(1, group * n_kv // i64_at(state)[2])
        per_group = (group + split - 1) // split
        position = i64_at(state)[POSITION]
        low = first_visible(position, a[14], a[15])
        while True:
            piece = next_piece(args)
            kv, part = piece // per_group, piece % per_group
            if kv >= n_kv:
                break
            head = kv * group + part * split
            heads = min(split, group - part * split)
            scores = a[20] + thread * a[21]
            sums = scores + heads * TILE * 4
            out = a[19] + head * value_dim * 4
            packed = sums + heads * 8 + 64
            start_heads(a[18], head, heads, value_dim, sums, out)
            if key_fmt != "F16":
                for h in range(heads):
                    at = packed + h * head_dim * 3
                    pack_groups(a[1] + (head + h) * head_dim * 4, 0, head_dim // 32, 1, 0, at, at + head_dim,
                                at + head_dim + head_dim // 8, at + head_dim + head_dim // 4)  # fmt: skip
            start = low
            while start <= position:
                # tiles end where the ring wraps, so that rows are evenly spaced
                slot = start % ring
                n = min(TILE, min(position + 1 - start, ring - slot))
                keys = a[7] + slot * a[8] + kv * a[9]
                for p in range(n):
                    for h in range(heads):
                        at = packed + h * head_dim * 3
                        f32_at(scores)[h * TILE + p] = dot_row(
                            key_fmt, keys + p * a[8], head_dim, a[1] + (head + h) * head_dim * 4, at, at + head_dim,
                            at + head_dim + head_dim // 8, at + head_dim + head_dim // 4,
                        )  # fmt: skip
                for h in range(heads):
                    weigh(scores + h * TILE * 4, n, np.float32(as_float(a[16])),
                          np.float32(as_float(a[17])), sums + h * 8,
                          out + h * value_dim * 4, value_dim)  # fmt: skip
                    weighted_rows(value_fmt, a[10] + slot * a[11] + kv * a[12], a[11], n, scores + h * TILE * 4,
                                  value_dim, out + h * value_dim * 4)  # fmt: skip
                start += n
            for h in range(heads):
                o, total = f32_at(out + h * value_dim * 4), f32_at(sums + h * 8)[1]
                for i in range(value_dim):
                    o[i] /= total

    return decode_attention


@helper
def start_heads(sinks, head, heads, value_dim, sums, out):
    for h in range(heads):
        running, o = f32_at(sums + h * 8), f32_at(out + h * value_dim * 4)
        running[0] = f32_at(sinks)[head + h] if sinks != 0 else -1e30
        running[1] = 1.0 if sinks != 0 else 0.0
        for i in range(value_dim):
            o[i] = 0.0


@reducer
def weigh(scores, n, factor, cap, running, out, value_dim):
    """Scores -> unnormalized weights; the running maximum and sum and the output so far are rescaled."""
    s, r, o = f32_at(scores), f32_at(running), f32_at(out)
    top = r[0]
    if cap > ZERO:
        for p in range(n):
            s[p] = cap_score(s[p] * factor, cap)
    else:
        for p in range(n):
            s[p] *= factor
    for p in range(n):
        top = max(top, s[p])
    total = ZERO
    for p in range(n):
        w = exp(s[p] - top)
        s[p] = w
        total += w
    rescale = exp(r[0] - top)
    r[1] = r[1] * rescale + total
    if r[0] != top:
        for i in range(value_dim):
            o[i] *= rescale
    r[0] = top


def _prefill(key_fmt: str, value_fmt: str) -> Any:
    columns, tokens = COLUMNS, BLOCK_TOKENS
    rows_max = ROW_BLOCKS * BLOCK_TOKENS

    @helper
    def prefill_attention(args, state, thread):
        a = i64_at(args)
        n_kv, head_dim, value_dim, ring = a[4], a[5], a[6], a[13]
        group = a[3] // n_kv
        n_rows = i64_at(state)[TOKENS] * group
        tiles = (n_rows + rows_max - 1) // rows_max
        position = i64_at(state)[POSITION]
        factor, cap = np.float32(as_float(a[16])), np.float32(as_float(a[17]))
        value_tiles = (value_dim + columns - 1) // columns
        queries = a[20] + thread * a[21]  # [block][head_dim][tokens]
        outputs = queries + rows_max * head_dim * 4  # [block][value tile][tokens][columns]
        keys = outputs + rows_max * value_tiles * columns * 4  # [head_dim][columns]
        values = keys + head_dim * columns * 4  # [value tile][position][columns]
        line = values + value_tiles * columns * columns * 4  # one unpacked row of values
        scores = line + (value_dim + columns) * 4  # [tokens][columns]
        weights = scores + tokens * columns * 4  # [position][tokens]
        running = weights + tokens * columns * 4  # [row] maximum, sum
        while True:
            piece = next_piece(args)
            if piece >= n_kv * tiles:
                break
            # later rows cost more: hand them out first
            kv, first = piece % n_kv, (tiles - 1 - piece // n_kv) * rows_max
            n = min(rows_max, n_rows - first)
            blocks = (n + tokens - 1) // tokens
            for r in range(blocks * tokens):
                q = f32_at(queries + r // tokens * head_dim * tokens * 4)
                row = first + min(r, n - 1)
                head = kv * group + row % group
                x = f32_at(a[1] + (row // group * a[2] + head * head_dim) * 4)
                for i in range(head_dim):
                    q[i * tokens + r % tokens] = x[i] * factor
                state_of = f32_at(running + r * 8)
                state_of[0] = f32_at(a[18])[head] if a[18] != 0 else -1e30
                state_of[1] = 1.0 if a[18] != 0 else 0.0
            o = f32_at(outputs)
            for i in range(blocks * tokens * value_tiles * columns):
                o[i] = 0.0
            # tiles begin at fixed positions, so that results do not depend on how a prompt is cut
            start = first_visible(position + first // group, a[14], a[15]) // columns * columns
            end = position + (first + n - 1) // group + 1
            while start < end:
                m = min(columns, end - start)
                for p in range(columns):
                    slot = (start + min(p, m - 1)) % ring
                    interleave_floats(
                        key_fmt, a[7] + slot * a[8] + kv * a[9], head_dim, keys + p * 4, columns * 4
                    )
                    if p < m:
                        unpack_row(value_fmt, a[10] + slot * a[11] + kv * a[12], value_dim, line)
                        spread_values(line, values, p, value_tiles, columns)
                for b in range(blocks):
                    multiply_floats(keys, head_dim, queries + b * head_dim * tokens * 4, scores)
                    weigh_block(scores, weights, running + b * tokens * 8,
                                outputs + b * tokens * value_tiles * columns * 4,
                                first + b * tokens, group, position, start, m, cap, a[14], a[15],
                                value_tiles)  # fmt: skip
                    for v in range(value_tiles):
                        multiply_floats(values + v * columns * columns * 4, m, weights, scores)
                        add_block(outputs + (b * value_tiles + v) * tokens * columns * 4, scores)
                start += m
            for r in range(n):
                row = first + r
                head = kv * group + row % group
                out = f32_at(a[19] + (row // group * a[3] + head) * value_dim * 4)
                total = f32_at(running + r * 8)[1]
                for i in range(value_dim):
                    at = (
                        (r // tokens * value_tiles + i // columns) * tokens + r % tokens
                    ) * columns + i % columns
                    out[i] = o[at] / total

    return prefill_attention


@helper
def spread_values(line, values, p, value_tiles, columns):
    for v in range(value_tiles):
        source, out = f32_at(line + v * columns * 4), f32_at(values + (v * columns + p) * columns * 4)
        for i in range(columns):
            out[i] = source[i]


@helper
def add_block(out, block):
    o, x = f32_at(out), f32_at(block)
    for i in range(BLOCK_TOKENS * COLUMNS):
        o[i] += x[i]


@reducer
def weigh_block(
    scores, weights, running, out, row, group, position, start, m, cap, window, chunked, value_tiles
):
    """One block of rows: mask, soft cap and online softmax of `m` scores per row; outputs so far are
    rescaled."""
    w = f32_at(weights)
    for t in range(BLOCK_TOKENS):
        s, r = f32_at(scores + t * COLUMNS * 4), f32_at(running + t * 8)
        at = position + (row + t) // group
        low, high = min(max(first_visible(at, window, chunked) - start, 0), m), min(at - start + 1, m)
        top = r[0]
        if cap > ZERO:
            for p in range(m):
                s[p] = cap_score(s[p], cap)
        for p in range(low, high):
            top = max(top, s[p])
        for p in range(low):
            s[p] = NEVER
        for p in range(max(high, 0), m):
            s[p] = NEVER
        total = ZERO
        for p in range(m):
            v = exp(s[p] - top)
            s[p] = v
            total += v
        for p in range(m):
            w[p * BLOCK_TOKENS + t] = s[p]
        if top != r[0]:
            rescale = exp(r[0] - top)
            r[1] *= rescale
            for v in range(value_tiles):
                o = f32_at(out + (v * BLOCK_TOKENS + t) * COLUMNS * 4)
                for i in range(COLUMNS):
                    o[i] *= rescale
            r[0] = top
        r[1] += total


__all__ = ["attention", "scratch_bytes", "store_cache"]
