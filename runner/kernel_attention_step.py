"""Attention of one token: heads that share keys are taken together, so that each key and value is read and converted
once for several of them. Softmax is computed online over tiles of positions."""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def,var-annotated"

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from runner.ir import F32, I32, Emitter, as_float, exp, exponential, f32_at, i64_at, kernel, vec
from runner.kernel_formats import FLOATS, LAYOUTS, load_32
from runner.kernel_ops import ONE, ZERO
from runner.kernel_tools import POSITION, THREADS, helper, next_piece
from runner.kernel_visible import cap_score, first_visible, lower, slope_of
from runner.target import target

TILE = 256  # positions per softmax tile
HEADS = target().lanes // 4  # heads, and positions, that are multiplied together: as registers allow
RUNS = target().lanes // 8  # runs of 32 numbers of a value that are summed together: as registers allow
LANES = target().lanes
NEVER = np.float32(-1e30)  # a score whose weight is nothing beside any other
AHEAD = 16  # positions from which keys are asked for


def scratch_bytes(group: int) -> int:
    """Scratch memory per thread."""
    return (group * (TILE + 2) + 64) * 4


def _bytes_per_32(fmt: str) -> int:
    return 32 * FLOATS[fmt] if fmt in FLOATS else LAYOUTS[fmt][1]


def _sums(e: Emitter, vectors: list[ir.Value]) -> ir.Value:
    """The horizontal sums of 2^n vectors, as one vector: each round halves both the vectors and what is left to add in
    each."""
    left = vectors[0].type.count
    while left > 1:
        n, half = vectors[0].type.count, left // 2
        low = [i for i in range(n) if i % left < half]
        high = [i + half for i in low]
        if len(vectors) == 1:
            vectors = [e.b.fadd(e.shuffle(vectors[0], low), e.shuffle(vectors[0], high))]
        else:
            both = lambda order, n=n: order + [n + i for i in order]  # noqa: E731
            vectors = [
                e.b.fadd(e.shuffle(a, both(low), b), e.shuffle(a, both(high), b))
                for a, b in zip(vectors[::2], vectors[1::2], strict=True)
            ]
        left = half
    return vectors[0]


@intrinsic(prefer_literal=True)
def score_rows(typingctx, fmt, n_heads, keys, row_bytes, n, width, queries, scores, values, value_bytes):
    """scores[head][TILE] = queries [head][width] times n keys `row_bytes` apart, for `n_heads` heads; `width` a
    multiple of 32. Scores are written in runs of `HEADS` positions, past a smaller n. Values of these positions are
    asked for meanwhile."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        e, name, heads = Emitter(builder), fmt.literal_value, n_heads.literal_value
        _, _, keys, row_bytes, n, width, queries, scores, values, value_bytes = args
        lanes, size = target().lanes, _bytes_per_32(name)
        stride = e.b.mul(width, e.i64(4))

        # runs end with the last key: it is less work to multiply some twice than to look where each one ends
        last = e.b.sub(n, e.i64(1))
        least = lambda a, b: e.b.select(e.b.icmp_signed("<", a, b), a, b)  # noqa: E731
        offsets = [least(e.i64(k), last) for k in range(HEADS)]
        key_offsets, value_offsets = (
            [e.b.mul(k, size) for k in offsets] for size in (row_bytes, value_bytes)
        )
        latest = e.b.sub(last, offsets[-1])

        def positions(i: ir.Value, carried: list) -> list:
            first, later = least(e.b.mul(i, e.i64(HEADS)), latest), []
            key, value = (
                e.b.add(keys, e.b.mul(first, row_bytes)),
                e.b.add(values, e.b.mul(first, value_bytes)),
            )
            rows = [e.b.add(key, offset) for offset in key_offsets]
            for row, offset in zip(rows, value_offsets, strict=True):
                later += [e.b.add(row, e.b.mul(row_bytes, e.i64(AHEAD))), e.b.add(value, offset)]

            def part(c: ir.Value, acc: list) -> list:
                at = e.b.mul(c, e.i64(size))
                for address in later:
                    e.prefetch(e.b.add(address, at), 0)
                vectors = [load_32(e, name, e.b.add(row, at)) for row in rows]
                x = e.b.add(queries, e.b.mul(c, e.i64(128)))
                new = []
                for _ in range(heads):
                    q = [e.load(x, vec(F32, lanes), 4 * lanes * j, align=4) for j in range(32 // lanes)]
                    for key in vectors:
                        total = acc[len(new)]
                        for a, b in zip(key, q, strict=True):
                            total = e.fma(a, b, total)
                        new.append(total)
                    x = e.b.add(x, stride)
                return new

            zero = ir.Constant(vec(F32, lanes), None)
            sums = _sums(e, e.loop(e.b.lshr(width, e.i64(5)), [zero] * (heads * HEADS), part))
            at = e.b.add(scores, e.b.mul(first, e.i64(4)))
            for h in range(heads):
                e.store(e.shuffle(sums, list(range(HEADS * h, HEADS * h + HEADS))), at, 4 * TILE * h, align=4)
            return []

        e.loop(e.b.udiv(e.b.add(n, e.i64(HEADS - 1)), e.i64(HEADS)), [], positions)
        return context.get_dummy_value()

    return types.void(fmt, n_heads, *[types.intp] * 8), codegen


@intrinsic(prefer_literal=True)
def add_rows(typingctx, fmt, n_heads, rows, row_bytes, n, width, weights, out, later):
    """out[head][width] += sum over n rows `row_bytes` apart of weights[head][TILE] * row, for `n_heads` heads; `width`
    a multiple of 32. As many bytes from `later` on are asked for meanwhile: scores wait for memory, sums do not."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        e, name, heads = Emitter(builder), fmt.literal_value, n_heads.literal_value
        _, _, rows, row_bytes, n, width, weights, out, later = args
        lanes, size = target().lanes, _bytes_per_32(name)

        def columns(first: ir.Value, runs: int) -> list:
            """Sums of `runs` runs of 32 numbers, run number `first` the first of them."""
            per_head = runs * 32 // lanes
            start = e.b.add(rows, e.b.mul(first, e.i64(size)))
            next_start = e.b.add(later, e.b.mul(e.b.mul(first, n), e.i64(size)))
            at = [e.b.add(out, e.b.mul(first, e.i64(128)))]
            for _ in range(1, heads):
                at.append(e.b.add(at[-1], e.b.mul(width, e.i64(4))))

            def row(i: ir.Value, acc: list) -> list:
                for k in range(runs):
                    e.prefetch(e.b.add(next_start, e.b.mul(i, e.i64(size * runs))), size * k)
                at_row = e.b.add(start, e.b.mul(i, row_bytes))
                vectors = [v for k in range(runs) for v in load_32(e, name, e.at(at_row, size * k))]
                place, new = e.b.add(weights, e.b.mul(i, e.i64(4))), []
                for h in range(heads):
                    w = e.splat(e.load(place, F32, 4 * TILE * h, align=4), lanes)
                    new += [e.fma(v, w, acc[per_head * h + j]) for j, v in enumerate(vectors)]
                return new

            acc = [e.load(a, vec(F32, lanes), 4 * lanes * j, align=4) for a in at for j in range(per_head)]
            for k, value in enumerate(e.loop(n, acc, row)):
                e.store(value, at[k // per_head], 4 * lanes * (k % per_head), align=4)
            return []

        many = e.b.udiv(e.b.lshr(width, e.i64(5)), e.i64(RUNS))
        e.loop(many, [], lambda c, _: columns(e.b.mul(c, e.i64(RUNS)), RUNS))
        done = e.b.mul(many, e.i64(RUNS))
        left = e.b.sub(e.b.lshr(width, e.i64(5)), done)
        e.loop(left, [], lambda c, _: columns(e.b.add(done, c), 1))
        return context.get_dummy_value()

    return types.void(fmt, n_heads, *[types.intp] * 7), codegen


@cache
def step_attention(key_fmt: str, value_fmt: str) -> Any:
    @helper
    def tile(a, keys, values, n, first, heads, queries, scores, sums, out, distance, later):
        """`n` more positions, the earliest `distance` tokens back, for `heads` heads from `first` on, of one key head.
        Keys at `later` come next."""
        head_dim, value_dim, many = a[5], a[6], heads // HEADS * HEADS
        for h in range(0, many, HEADS):
            score_rows(key_fmt, HEADS, keys, a[8], n, head_dim, queries + h * head_dim * 4, scores + h * TILE * 4,
                       values, a[11])  # fmt: skip
        for h in range(many, heads):
            score_rows(key_fmt, 1, keys, a[8], n, head_dim, queries + h * head_dim * 4, scores + h * TILE * 4,
                       values, a[11])  # fmt: skip
        for h in range(heads):
            weigh(scores + h * TILE * 4, n, np.float32(as_float(a[16])), np.float32(as_float(a[17])), sums + h * 8,
                  out + h * value_dim * 4, value_dim, slope_of(a[24], first + h), distance)  # fmt: skip
        for h in range(0, many, HEADS):
            add_rows(value_fmt, HEADS, values, a[11], n, value_dim, scores + h * TILE * 4, out + h * value_dim * 4,
                     later)  # fmt: skip
        for h in range(many, heads):
            add_rows(value_fmt, 1, values, a[11], n, value_dim, scores + h * TILE * 4, out + h * value_dim * 4,
                     later)  # fmt: skip

    @helper
    def attention_of_one(args, state, thread):
        a = i64_at(args)
        n_kv, head_dim, value_dim, ring = a[4], a[5], a[6], a[13]
        group, n_threads = a[3] // n_kv, i64_at(state)[THREADS]
        # as many heads per piece as share keys, but at least one piece per thread
        split = group if n_kv >= n_threads else max(1, group * n_kv // n_threads)
        per_group = (group + split - 1) // split
        position = i64_at(state)[POSITION]
        further = (position + 1) // a[27] if a[26] != 0 else 0
        if a[25] != 0 and a[26] != 0:
            further = i64_at(a[25])[0]
        elif a[25] != 0:
            position = i64_at(a[25])[0] - 1
        scores = a[20] + thread * a[21]
        sums = scores + group * TILE * 4
        piece = next_piece(args)
        while piece < n_kv * per_group:
            kv, part = piece // per_group, piece % per_group
            head = kv * group + part * split
            heads = min(split, group - part * split)
            out = a[19] + head * value_dim * 4
            start_heads(a[18], head, heads, value_dim, sums, out)
            start = first_visible(position, a[14], a[15])
            while start <= position:
                # tiles end where the ring wraps, so that rows are evenly spaced
                slot = start % ring
                n = min(TILE, min(position + 1 - start, ring - slot))
                later = (start + n) % ring * a[8] + kv * a[9]
                if start + n > position:
                    piece = next_piece(args)
                    later = first_visible(position, a[14], a[15]) % ring * a[8] + piece // per_group * a[9]
                tile(a, a[7] + slot * a[8] + kv * a[9], a[10] + slot * a[11] + kv * a[12], n, head, heads,
                     a[1] + head * head_dim * 4, scores, sums, out, position - start, a[7] + later)  # fmt: skip
                start += n
            for row in range(0, further, TILE):
                rows = a[26] + row * a[8]
                tile(a, rows, rows, min(TILE, further - row), head, heads, a[1] + head * head_dim * 4, scores, sums,
                     out, 0, rows + TILE * a[8])  # fmt: skip
            for h in range(heads):
                o, total = f32_at(out + h * value_dim * 4), f32_at(sums + h * 8)[1]
                for i in range(value_dim):
                    o[i] /= total

    return attention_of_one


@helper
def start_heads(sinks, head, heads, value_dim, sums, out):
    for h in range(heads):
        running, o = f32_at(sums + h * 8), f32_at(out + h * value_dim * 4)
        running[0] = f32_at(sinks)[head + h] if sinks != 0 else -1e30
        running[1] = 1.0 if sinks != 0 else 0.0
        for i in range(value_dim):
            o[i] = 0.0


@kernel(types.float32, types.intp, types.intp, types.float32, types.float32)
def scale_scores(e: Emitter, scores: ir.Value, n: ir.Value, factor: ir.Value, top: ir.Value) -> ir.Value:
    """The first `n` scores, whole vectors of them, times `factor`; the largest of them and `top`."""
    lanes = target().lanes
    factors = e.splat(factor, lanes)

    def part(i: ir.Value, carried: list) -> list:
        at = e.b.add(scores, e.b.mul(i, e.i64(4 * lanes)))
        s = e.b.fmul(e.load(at, vec(F32, lanes), align=4), factors)
        e.store(s, at, align=4)
        return [e.b.select(e.b.fcmp_ordered(">", s, carried[0]), s, carried[0])]

    (most,) = e.loop(e.b.udiv(n, e.i64(lanes)), [e.splat(top, lanes)], part)
    while most.type.count > 1:
        half = most.type.count // 2
        a, b = (e.shuffle(most, list(range(k, k + half))) for k in (0, half))
        most = e.b.select(e.b.fcmp_ordered(">", a, b), a, b)
    return e.b.extract_element(most, ir.Constant(I32, 0))


@kernel(types.float32, types.intp, types.intp, types.float32)
def exponentials(e: Emitter, scores: ir.Value, n: ir.Value, top: ir.Value) -> ir.Value:
    """The first `n` scores, whole vectors of them, as e^(score - top); their sum."""
    lanes = target().lanes
    tops = e.splat(top, lanes)

    def part(i: ir.Value, carried: list) -> list:
        at = e.b.add(scores, e.b.mul(i, e.i64(4 * lanes)))
        w = exponential(e, e.b.fsub(e.load(at, vec(F32, lanes), align=4), tops))
        e.store(w, at, align=4)
        return [e.b.fadd(carried[0], w)]

    return e.sum(e.loop(e.b.udiv(n, e.i64(lanes)), [ir.Constant(vec(F32, lanes), None)], part)[0])


@helper
def weigh(scores, n, factor, cap, running, out, value_dim, slope, distance):
    """Scores -> unnormalized weights; the running maximum and sum and the output so far are rescaled."""
    s, r, o = f32_at(scores), f32_at(running), f32_at(out)
    if cap > ZERO or slope != ZERO:
        for p in range(n):
            s[p] = cap_score(s[p] * factor, cap)
        factor = ONE
        if slope != ZERO:
            lower(scores, n, slope, distance)
    whole = (n + LANES - 1) // LANES * LANES
    for p in range(n, whole):
        s[p] = s[0]
    top = scale_scores(scores, whole, factor, r[0])
    for p in range(n, whole):
        s[p] = NEVER
    total = exponentials(scores, whole, top)
    rescale = exp(r[0] - top)
    r[1] = r[1] * rescale + total
    if r[0] != top:
        for i in range(value_dim):
            o[i] *= rescale
    r[0] = top
