"""A tile of rows times a block of tokens whose activations were packed to match (`runner.kernel_ops.pack`)."""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def,var-annotated"

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from runner.ir import F32, I8, I32, Emitter, vec
from runner.kernel_formats import LAYOUTS
from runner.kernel_tile import has_minimum
from runner.target import target

# activations of wide layers exceed the caches: a page ahead gave 485 for 368 GFLOP/s at 4096 x 14336 (Zen 5, 2026)
X_AHEAD_BYTES = 4096


def block_tokens() -> int:
    """Tokens per block of packed activations: as many accumulators as the register file holds."""
    return 12 if target().lanes == 16 else 6


@intrinsic(prefer_literal=True)
def multiply_bytes(typingctx, fmt, n_tokens, quants, scales, minimums, n_groups, xq, xd, xs, out):
    """`lanes` rows of a tile times the first `n_tokens` of a block -> float32 [token][lane] at `out` (overwritten)."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        e, name = Emitter(builder), fmt.literal_value
        _, _, quants, scales, minimums, n_groups, xq, xd, xs, out = args
        lanes, tokens, per_group = target().lanes, block_tokens(), LAYOUTS[name][2]
        count = n_tokens.literal_value
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
                whole = [ir.Constant(vec(I32, lanes), None)] * count
                for k in range(words * part, words * (part + 1)):
                    w = e.load(q, vec(I8, 4 * lanes), 4 * lanes * k, align=4)
                    for t in range(count):
                        four = e.splat(e.load(x, I32, 4 * (tokens * k + t), align=4), lanes)
                        four = e.b.bitcast(four, vec(I8, 4 * lanes))
                        whole[t] = e.dot_bytes(whole[t], w, four, False)
                scale = e.load(s, vec(F32, lanes), 4 * lanes * part, align=4)
                for t in range(count):
                    factor = e.b.fmul(scale, e.splat(e.load(d, F32, 4 * t, align=4), lanes))
                    acc[t] = e.fma(e.b.sitofp(whole[t], vec(F32, lanes)), factor, acc[t])
                if has_minimum(name):
                    least = e.load(m, vec(F32, lanes), 4 * lanes * part, align=4)
                    for t in range(count):
                        total = e.splat(e.load(sums, F32, 4 * (tokens * part + t), align=4), lanes)
                        acc[t] = e.fma(least, total, acc[t])
            return acc

        acc = e.loop(n_groups, [ir.Constant(vec(F32, lanes), None)] * count, group)
        for t in range(count):
            e.store(acc[t], out, 4 * lanes * t, align=4)
        return context.get_dummy_value()

    return types.void(fmt, n_tokens, *[types.intp] * 8), codegen


@intrinsic(prefer_literal=True)
def multiply_floats(typingctx, n_tokens, tile, width, x, out):
    """Rows of a float32 tile [input][2 * lanes rows] times the first `n_tokens` of a block [input][token] -> [token]
    [2 * lanes] at `out`."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        e = Emitter(builder)
        _, tile, width, x, out = args
        lanes, tokens, count = target().lanes, block_tokens(), n_tokens.literal_value

        def step(k: ir.Value, acc: list) -> list:
            row = e.b.add(tile, e.b.mul(k, e.i64(8 * lanes)))
            inputs = e.b.add(x, e.b.mul(k, e.i64(4 * tokens)))
            e.prefetch(inputs, X_AHEAD_BYTES)
            w = [e.load(row, vec(F32, lanes), 4 * lanes * j, align=4) for j in range(2)]
            new = []
            for t in range(count):
                one = e.splat(e.load(inputs, F32, 4 * t, align=4), lanes)
                new += [e.fma(w[j], one, acc[2 * t + j]) for j in range(2)]
            return new

        acc = e.loop(width, [ir.Constant(vec(F32, lanes), None)] * (2 * count), step)
        for i, value in enumerate(acc):
            e.store(value, out, 4 * lanes * i, align=4)
        return context.get_dummy_value()

    return types.void(n_tokens, *[types.intp] * 4), codegen
