"""Dot products of a row of weights, in its quantized form, with a few tokens, as vector IR.

Tokens share what is unpacked of the row. Two rows at a time would share what is read of the activations, but rows far
apart read up to 5% slower from memory, and neighbours more (Zen 5, 2026).
"""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def,var-annotated"

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from runner.ir import F32, I8, I32, Emitter, vec
from runner.kernel_formats import FLOATS, LAYOUTS, Groups, load_floats, unpack_for_dot
from runner.target import target

# hardware prefetchers stop at page boundaries (a page ahead: +10%); at 33 GB/s a thread two pages ahead are 5% better
# than one, four no better than two (Zen 5, 2026)
PREFETCH_BYTES = 8192


@dataclass(frozen=True)
class Inputs:
    """Addresses of one token's activations: float32, or int8 with scales and (scaled) sums per 32 and per 16."""

    x: ir.Value
    xq: ir.Value
    xd: ir.Value
    xs32: ir.Value
    xs16: ir.Value

    def after(self, e: Emitter, groups: ir.Value) -> Inputs:
        """Those that follow `groups` groups of 32."""
        step = lambda a, size: e.b.add(a, e.b.mul(groups, e.i64(size)))  # noqa: E731
        return Inputs(
            step(self.x, 128), step(self.xq, 32), step(self.xd, 4), step(self.xs32, 4), step(self.xs16, 8)
        )


def _zeros(n: int) -> ir.Constant:
    return ir.Constant(vec(F32, n), None)


def _sums_of_bytes(
    e: Emitter, groups: Groups, per_group: int, xq: ir.Value
) -> list[tuple[ir.Value, list[int]]]:
    """Vectors of sums of four (or, of `halves`, eight) products, with the scale that belongs to each lane."""
    found, quants = [], groups.quants
    n = quants[0].type.count
    none = ir.Constant(vec(I32, n // 4), None)
    if groups.halves:
        for i in range(0, len(quants), 2):
            a, b = (e.load(xq, vec(I8, n), n * (i + k)) for k in range(2))
            first, last = (e.shuffle(a, _every_other(n, k), b) for k in (0, 16))
            half = e.dot_bytes(none, quants[i], first, groups.signed)
            found.append((e.dot_bytes(half, quants[i + 1], last, groups.signed), i * n // 32))
        return [(s, [first + lane // 4 for lane in range(n // 4)]) for s, first in found]
    for i, part in enumerate(quants):
        x = e.load(xq, vec(I8, n), n * i)
        order = [(n // 4 * i + lane) * per_group // 8 for lane in range(n // 4)]
        found.append((e.dot_bytes(none, part, x, groups.signed), order))
    return found


def _every_other(n: int, first: int) -> list[int]:
    """Of two joined vectors of n bytes, every other run of 16."""
    return [32 * (k // 16) + first + k % 16 for k in range(n)]


def _add_groups(
    e: Emitter, fmt: str, groups: Groups, at: Inputs, main: list, least: ir.Value
) -> tuple[list, ir.Value]:
    """Add the products of these groups to the partial sums `main`, and what is to be subtracted to `least`."""
    per_group, n_groups = LAYOUTS[fmt][2], groups.scales.type.count // LAYOUTS[fmt][2]
    main, found = list(main), _sums_of_bytes(e, groups, per_group, at.xq)
    factors = _factors(
        e, groups.scales, e.load(at.xd, vec(F32, n_groups), align=4), [order for _, order in found]
    )
    for i, ((sums, _), factor) in enumerate(zip(found, factors, strict=True)):
        slot = i % len(main)
        main[slot] = e.fma(e.b.sitofp(sums, factor.type), factor, main[slot])
    subtracted = groups.minimums if groups.minimums is not None else groups.scales if groups.offset else None
    if subtracted is not None:
        x_sums = e.load(at.xs32 if per_group == 1 else at.xs16, subtracted.type, align=4)
        least = e.fma(subtracted, x_sums, least)
    return main, least


def _factors(e: Emitter, scales: ir.Value, x_scales: ir.Value, orders: list[list[int]]) -> list[ir.Value]:
    """For each of `orders`, the scales of these numbers times those of the activations.

    Numbers change every four lanes, so four orders take one shuffle of all lanes (two in a cycle of Zen 5) and four
    within quarters of a vector (four in a cycle)."""
    per_group = scales.type.count // x_scales.type.count
    if len(orders[0]) < 16 or len(orders) > 4:
        each = [i // per_group for i in range(scales.type.count)]
        both = e.b.fmul(scales, x_scales if per_group == 1 else e.shuffle(x_scales, each))
        return [e.shuffle(both, order) for order in orders]
    quarters = [orders[min(i, len(orders) - 1)][4 * q] for q in range(4) for i in range(4)]
    both = e.b.fmul(e.shuffle(scales, quarters), e.shuffle(x_scales, [k // per_group for k in quarters]))
    return [e.shuffle(both, [lane // 4 * 4 + i for lane in range(16)]) for i in range(len(orders))]


def _quantized(
    e: Emitter, fmt: str, row: ir.Value, width: ir.Value, tokens: list[Inputs], ahead: ir.Value
) -> list[ir.Value]:
    """Sums by token of a quantized format."""
    lanes = target().lanes
    n_main = 2 if lanes == 16 or len(tokens) == 1 else 1
    n_steps = e.b.lshr(width, e.i64(8))
    totals = _looped(e, fmt, row, tokens, (e.i64(0), n_steps, 8), [_zeros(lanes)] * n_main, ahead)
    if LAYOUTS[fmt][0] == 32:
        done = e.b.shl(n_steps, e.i64(3))
        left = e.b.sub(e.b.lshr(width, e.i64(5)), done)
        rest = _looped(e, fmt, row, tokens, (done, left, 1), [_zeros(8)], ahead)
        totals = [e.b.fadd(a, b) for a, b in zip(totals, rest, strict=True)]
    return totals


def _looped(e: Emitter, fmt: str, row: ir.Value, tokens: list[Inputs], steps: tuple[ir.Value, ir.Value, int],
            main: list, ahead: ir.Value) -> list[ir.Value]:  # fmt: skip
    """Sums by token over `steps`: the first group, the number of steps and the groups of each."""
    block, block_bytes, per_group = LAYOUTS[fmt]
    first, count, n_groups = steps
    step_bytes, size = block_bytes * n_groups * 32 // block, len(main) + 1
    row = e.b.add(row, e.b.mul(first, e.i64(32 * block_bytes // block)))
    traits: list[Groups] = []

    def body(i: ir.Value, acc: list) -> list:
        at, after = e.b.add(row, e.b.mul(i, e.i64(step_bytes))), e.b.add(first, e.b.mul(i, e.i64(n_groups)))
        for line in range(0, step_bytes if n_groups > 1 else 0, 64):
            e.prefetch(e.b.add(at, ahead), line)
        groups, new = unpack_for_dot(e, fmt, at, n_groups), []
        traits[:] = [groups]
        for t, token in enumerate(tokens):
            *parts, least = acc[t * size : (t + 1) * size]
            parts, least = _add_groups(e, fmt, groups, token.after(e, after), parts, least)
            new += [*parts, least]
        return new

    acc = e.loop(count, [*main, _zeros(n_groups * per_group)] * len(tokens), body)
    return [_total(e, traits[0], acc[k : k + size]) for k in range(0, len(acc), size)]


def _total(e: Emitter, groups: Groups, acc: list) -> ir.Value:
    """The horizontal sum of the partial sums less that of what is to be subtracted."""
    *main, least = acc
    total = main[0] if len(main) == 1 else e.b.fadd(main[0], main[1])
    if groups.sixteenfold:
        n = total.type.count
        total = e.b.fmul(total, e.consts(F32, [1.0] * (n // 2) + [1 / 16] * (n // 2)))
    if groups.minimums is None and not groups.offset:
        return e.sum(total)
    if groups.offset:
        least = e.b.fmul(least, e.splat_const(least.type, groups.offset))
    return e.sum(e.fold(total, e.b.fneg(least)))


def _floats(
    e: Emitter, fmt: str, row: ir.Value, width: ir.Value, tokens: list[Inputs], ahead: ir.Value
) -> list[ir.Value]:
    """Sums by token of a float format."""
    size, lanes = FLOATS[fmt], target().lanes
    step = 4 * lanes
    n_main = 4 if len(tokens) == 1 else 2

    def wide(i: ir.Value, acc: list) -> list:
        k, acc = e.b.mul(i, e.i64(step)), list(acc)
        at = e.b.add(row, e.b.mul(k, e.i64(size)))
        xs = [e.b.add(t.x, e.b.mul(k, e.i64(4))) for t in tokens]
        for line in range(0, step * size, 64):
            e.prefetch(e.b.add(at, ahead), line)
        for j in range(4):
            w = load_floats(e, fmt, e.at(at, size * lanes * j), lanes)
            for t, x in enumerate(xs):
                slot = t * n_main + j % n_main
                acc[slot] = e.fma(w, e.load(x, vec(F32, lanes), 4 * lanes * j, align=4), acc[slot])
        return acc

    def single(i: ir.Value, acc: list) -> list:
        k = e.b.add(first, i)
        w = load_floats(e, fmt, e.b.add(row, e.b.mul(k, e.i64(size))), 1)
        xs = [e.load(e.b.add(t.x, e.b.mul(k, e.i64(4))), vec(F32, 1), align=4) for t in tokens]
        return [e.b.fadd(a, e.b.fmul(w, x)) for a, x in zip(acc, xs, strict=True)]

    n_steps = e.b.udiv(width, e.i64(step))
    acc = e.loop(n_steps, [_zeros(lanes)] * (n_main * len(tokens)), wide)
    first = e.b.mul(n_steps, e.i64(step))
    rest = e.loop(e.b.sub(width, first), [_zeros(1)] * len(tokens), single)
    totals = []
    for t, alone in enumerate(rest):
        parts = acc[t * n_main : (t + 1) * n_main]
        while len(parts) > 1:
            parts = [e.b.fadd(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        totals.append(e.b.fadd(e.sum(parts[0]), e.b.extract_element(alone, ir.Constant(I32, 0))))
    return totals


@intrinsic(prefer_literal=True)
def dots(typingctx, fmt, n_tokens, w, width, ahead, last, x, xq, xd, xs32, xs16):
    """A row of `width` weights at `w` times `n_tokens` tokens -> a tuple of float32. Tokens follow each other: float32
    at `x` for float formats, else int8 at `xq` with scales `xd` and (scaled) sums per 32 and per 16. Tokens after
    number `last` are token `last` again. Meanwhile what lies `ahead` bytes from the row is asked for."""
    signature = types.UniTuple(types.float32, n_tokens.literal_value)(fmt, n_tokens, *[types.intp] * 9)

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        e, name = Emitter(builder), fmt.literal_value
        _, _, w, width, ahead, last, *inputs = args
        groups, tokens = e.b.lshr(width, e.i64(5)), []
        for t in range(n_tokens.literal_value):
            k = e.b.select(e.b.icmp_signed("<", last, e.i64(t)), last, e.i64(t)) if t else e.i64(0)
            after = Inputs(*inputs).after(e, e.b.mul(k, groups))
            x_at = e.b.add(inputs[0], e.b.mul(e.b.mul(k, width), e.i64(4)))  # any width will do for floats
            tokens.append(Inputs(x_at, after.xq, after.xd, after.xs32, after.xs16))
        find = _floats if name in FLOATS else _quantized
        return context.make_tuple(builder, sig.return_type, find(e, name, w, width, tokens, ahead))

    return signature, codegen


__all__ = ["PREFETCH_BYTES", "dots"]
