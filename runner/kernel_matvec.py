"""Decode: y = W x with W in its quantized form, one fused dot product per row."""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def,var-annotated"

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from runner.ir import F32, I8, I32, Emitter, f32_at, i64_at, vec
from runner.kernel_formats import FLOATS, LAYOUTS, load_floats, unpack
from runner.kernel_tools import THREADS, next_piece, operation
from runner.target import target

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


# a page ahead: hardware prefetchers stop at page boundaries (measured +10% on Zen 5, 2026)
PREFETCH_BYTES = 4096
PIECE_BYTES = 65536


def _spread(e: Emitter, scales: ir.Value, first: int, n_lanes: int, per_group: int) -> ir.Value:
    """The scale of each lane of partial sums; every lane sums 4 weights, the first lane those of group
    `first`."""
    return e.shuffle(scales, [(8 * first + lane) * per_group // 8 for lane in range(n_lanes)])


def _quantized_step(e: Emitter, fmt: str, n_groups: int, w: ir.Value, at: list, acc: list) -> list:
    """Add the products of `n_groups` groups. `at` = addresses of xq, xd, xs32, xs16; `acc` = two of partial
    sums, then for a whole step's minimums, a single group's minimum, and a single group's sums."""
    per_group = LAYOUTS[fmt][2]
    groups = unpack(e, fmt, w, n_groups)
    xq, xd, xs32, xs16 = at
    x_scales = e.load(xd, vec(F32, n_groups), align=4)
    if per_group == 2:
        x_scales = e.shuffle(x_scales, [i // 2 for i in range(2 * n_groups)])
    scales = e.b.fmul(groups.scales, x_scales)
    acc = list(acc)
    for i, quants in enumerate(groups.quants):
        n = quants.type.count
        x = e.load(xq, vec(I8, n), n * i)
        partial = e.dot_bytes(ir.Constant(vec(I32, n // 4), None), quants, x, groups.signed)
        factors = _spread(e, scales, n // 32 * i, n // 4, per_group)
        slot = i % 2 if n // 4 == acc[0].type.count else 4
        acc[slot] = e.fma(e.b.sitofp(partial, vec(F32, n // 4)), factors, acc[slot])
    if groups.minimums is not None:
        n = groups.minimums.type.count
        sums = e.load(xs32 if per_group == 1 else xs16, vec(F32, n), align=4)
        slot = acc[2] if n == acc[2].type.count else acc[3]
        updated = e.fma(e.b.fneg(groups.minimums), sums, slot)
        acc[2 if slot is acc[2] else 3] = updated
    return acc


def _emit_quantized(e: Emitter, fmt: str, w: ir.Value, width: ir.Value, xq, xd, xs32, xs16) -> ir.Value:
    block, block_bytes, per_group = LAYOUTS[fmt]
    lanes = target().lanes
    zeros = lambda n: ir.Constant(vec(F32, n), None)  # noqa: E731
    tail = 1 if block == 32 else 8
    acc = [zeros(lanes), zeros(lanes), zeros(8 * per_group), zeros(1), zeros(8)]

    def advance(i: ir.Value, n: int) -> list[ir.Value]:
        times = lambda size: e.b.mul(i, e.i64(size))  # noqa: E731
        return [e.b.add(xq, times(32 * n)), e.b.add(xd, times(4 * n)), e.b.add(xs32, times(4 * n)),
                e.b.add(xs16, times(8 * n))]  # fmt: skip

    step_bytes = block_bytes * (256 // block)
    n_steps = e.b.lshr(width, e.i64(8))

    def eight(i: ir.Value, a: list) -> list:
        at = e.b.add(w, e.b.mul(i, e.i64(step_bytes)))
        for line in range(0, step_bytes, 64):
            e.prefetch(at, PREFETCH_BYTES + line)
        return _quantized_step(e, fmt, 8, at, advance(i, 8), a)

    acc = e.loop(n_steps, acc, eight)
    if tail == 1:
        done = e.b.shl(n_steps, e.i64(3))
        left = e.b.sub(e.b.lshr(width, e.i64(5)), done)

        def one(i: ir.Value, a: list) -> list:
            k = e.b.add(done, i)
            return _quantized_step(e, fmt, 1, e.b.add(w, e.b.mul(k, e.i64(block_bytes))), advance(k, 1), a)

        acc = e.loop(left, acc, one)
    total = e.b.fadd(acc[0], acc[1])
    for narrow in (acc[2], acc[4]):
        total = e.fold(total, narrow)
    return e.b.fadd(e.sum(total), e.b.extract_element(acc[3], ir.Constant(I32, 0)))


def _emit_floats(e: Emitter, fmt: str, w: ir.Value, width: ir.Value, x: ir.Value) -> ir.Value:
    size = FLOATS[fmt]

    def step(n: int, first: ir.Value | None) -> Any:
        def body(i: ir.Value, acc: list) -> list:
            k = e.b.mul(i, e.i64(32)) if first is None else e.b.add(first, i)
            at, x_at = e.b.add(w, e.b.mul(k, e.i64(size))), e.b.add(x, e.b.mul(k, e.i64(4)))
            if n > 1:
                for line in range(0, n * size, 64):
                    e.prefetch(at, PREFETCH_BYTES + line)
            if n == 1:
                one = e.b.fmul(load_floats(e, fmt, at, 1), e.load(x_at, vec(F32, 1)))
                return [e.b.fadd(acc[0], one)]
            return [
                e.fma(
                    load_floats(e, fmt, e.at(at, 8 * size * j), 8),
                    e.load(x_at, vec(F32, 8), 32 * j, align=4),
                    a,
                )
                for j, a in enumerate(acc)
            ]

        return body

    n_steps = e.b.lshr(width, e.i64(5))
    acc = e.loop(n_steps, [ir.Constant(vec(F32, 8), None)] * 4, step(32, None))
    first = e.b.shl(n_steps, e.i64(5))
    rest = e.loop(e.b.sub(width, first), [ir.Constant(vec(F32, 1), None)], step(1, first))
    total = e.sum(e.b.fadd(e.b.fadd(acc[0], acc[1]), e.b.fadd(acc[2], acc[3])))
    return e.b.fadd(total, e.b.extract_element(rest[0], ir.Constant(I32, 0)))


@intrinsic(prefer_literal=True)
def dot_row(typingctx, fmt, w, width, x, xq, xd, xs32, xs16):
    """One row of `width` weights at address `w`, times x: float32 at `x` for float formats, else int8 at
    `xq` with
    scales `xd` and (scaled) sums per 32 and per 16."""
    signature = types.float32(fmt, *[types.intp] * 7)

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        e, name = Emitter(builder), fmt.literal_value
        _, w, width, x, *quantized = args
        if name in FLOATS:
            return _emit_floats(e, name, w, width, x)
        return _emit_quantized(e, name, w, width, *quantized)

    return signature, codegen


@cache
def matvec(fmt: str) -> Any:
    """y (+)= W x (+ bias) for one token."""

    @operation
    def matvec_op(args: int, state: int, thread: int) -> None:
        a = i64_at(args)
        rows, y = a[3], f32_at(a[5])
        # two pieces a thread, of 64 KiB at least: every thread works, and what is asked for ahead is its own
        piece = min(2048, max(PIECE_BYTES // a[2], rows // (2 * i64_at(state)[THREADS]), 1))
        while True:
            first = next_piece(args) * piece
            if first >= rows:
                break
            for r in range(first, min(first + piece, rows)):
                value = dot_row(fmt, a[1] + r * a[2], a[4], a[9], a[10], a[11], a[12], a[13])
                if a[8] != 0:
                    value += f32_at(a[8])[r]
                if a[7] != 0:
                    value += y[r]
                y[r] = value

    return matvec_op


@cache
def expert_matvec(fmt: str) -> Any:
    """Rows of chosen experts times their tokens' activations (never interleaved).

    Slots as above, and: OUT [pair][OUT_STRIDE], 7 bytes per expert, BIAS [expert][rows], 14 pairs by expert
    (int64),
    15 first pair of each expert, 16 number of experts, 17 pairs per row of x, 18 tokens from which an expert is left
    to `runner.kernel_experts`.
    """

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
            for r in range(active * piece_rows, min((active + 1) * piece_rows, rows)):
                weight = a[1] + expert * a[7] + r * row_bytes
                for p in range(first[expert], first[expert + 1]):
                    pair = pairs[p]
                    x = pair // a[17]
                    blocks = x * (width // 32) * 4
                    value = dot_row(
                        fmt, weight, width, a[9] + x * width * 4, a[10] + x * width, a[11] + blocks, a[12] + blocks,
                        a[13] + 2 * blocks,
                    )  # fmt: skip
                    if a[8] != 0:
                        value += f32_at(a[8])[expert * rows + r]
                    f32_at(a[5])[pair * a[6] + r] = value

    return expert_op
