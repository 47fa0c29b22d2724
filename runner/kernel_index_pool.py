"""Index keys that stand for several tokens each (GLM-5.3-Flash): a sum of the tokens' keys, number by number, by the
softmax of their gates over the tokens.

Arguments are int64 slots; `a[0]` is the work counter, addresses are of float32 unless said.
"""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def,var-annotated"

from __future__ import annotations

from functools import cache
from typing import Any

from runner.ir import exp, f32_at, i64_at
from runner.kernel_cache import write_row
from runner.kernel_ops import ZERO
from runner.kernel_tools import POSITION, TOKENS, helper, next_piece, operation


def scratch_bytes(width: int) -> int:
    """Scratch memory per thread: a key, and the largest gates and their sums."""
    return 3 * width * 4


@helper
def place(a, position, before):
    """Addresses of the key and the gate at `position`: of this step's tokens, or of those kept from earlier ones."""
    width = a[3]
    if position < before:
        kept = a[6] + position % a[4] * 2 * width * 4
        return kept, kept + width * 4
    own = (position - before) * width * 4
    return a[1] + own, a[2] + own


@helper
def pooled(a, first, before, out):
    """A key of the tokens from `first` on, in out [width], with 2 * width numbers of scratch behind it."""
    width = a[3]
    o, top, total = f32_at(out), f32_at(out + width * 4), f32_at(out + 2 * width * 4)
    for k in range(a[4]):
        _, gates = place(a, first + k, before)
        g, added = f32_at(gates), f32_at(a[5] + k * width * 4)
        for i in range(width):
            x = g[i] + added[i]
            top[i] = x if k == 0 else max(top[i], x)
    for i in range(width):
        o[i] = total[i] = ZERO
    for k in range(a[4]):
        keys, gates = place(a, first + k, before)
        x, g, added = f32_at(keys), f32_at(gates), f32_at(a[5] + k * width * 4)
        for i in range(width):
            w = exp(g[i] + added[i] - top[i])
            total[i] += w
            o[i] += w * x[i]
    for i in range(width):
        o[i] /= total[i]


@cache
def pool(fmt: str) -> Any:
    """Keys that these tokens complete: a[1] keys [token][width], a[2] gates likewise, a[3] width, a[4] tokens of a key,
    a[5] what is added to gates [a[4]][width], a[6] kept [a[4] - 1][key, gate][width] of tokens before (`remember`),
    a[7] rows of the cache, a[8] row bytes, a[9] scratch, a[10] scratch bytes per thread."""

    @operation
    def pool_op(args: int, state: int, thread: int) -> None:
        a = i64_at(args)
        before = i64_at(state)[POSITION]
        end = (before + i64_at(state)[TOKENS]) // a[4]
        out = a[9] + thread * a[10]
        while True:
            key = before // a[4] + next_piece(args)
            if key >= end:
                break
            pooled(a, key * a[4], before, out)
            write_row(fmt, out, a[3], a[7] + key * a[8])

    return pool_op


@operation
def remember(args: int, state: int, thread: int) -> None:
    """Keeps tokens that complete no key yet: a[1] to a[6] as of `pool`."""
    if next_piece(args) != 0:
        return
    a = i64_at(args)
    width, before = a[3], i64_at(state)[POSITION]
    end = before + i64_at(state)[TOKENS]
    for position in range(max(before, end // a[4] * a[4]), end):
        keys, gates = place(a, position, before)
        kept = a[6] + position % a[4] * 2 * width * 4
        x, g, key, gate = f32_at(keys), f32_at(gates), f32_at(kept), f32_at(kept + width * 4)
        for i in range(width):
            key[i], gate[i] = x[i], g[i]
