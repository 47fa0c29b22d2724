"""Experts without weights, which give back what they read (LongCat-Flash, arXiv 2509.01322)."""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,no-untyped-def"

from __future__ import annotations

from runner.ir import f32_at, i64_at
from runner.kernel_tools import next_piece, operation


@operation
def give_back(args: int, state: int, thread: int) -> None:
    """out[pair] = the row of the pair's token: a[1] x [token][width], a[2] width, a[3] pairs by expert (int64), a[4]
    first pairs from the first of these experts on, a[5] how many they are, a[6] pairs per token, a[7] out
    [pair][width]."""
    a = i64_at(args)
    width, pairs, first = a[2], i64_at(a[3]), i64_at(a[4])
    while True:
        at = first[0] + next_piece(args)
        if at >= first[a[5]]:
            break
        x, out = f32_at(a[1] + pairs[at] // a[6] * width * 4), f32_at(a[7] + pairs[at] * width * 4)
        for i in range(width):
            out[i] = x[i]
