"""Positions in two planes (GLM, arXiv 2103.10360): of the prompt's tokens, and of those behind them."""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,no-untyped-def"

from __future__ import annotations

import math

from runner.ir import f32_at, i64_at
from runner.kernel_tools import POSITION, PREFIX, TOKENS, next_piece, operation


@operation
def plane_angles(args: int, state: int, thread: int) -> None:
    """cos and sin of position x frequency: a[1] frequencies (n of them), a[2] n, a[3] out [token][n][2], a[4] plane. In
    the first a token behind the prefix stands where its last one does; in the second those of the prefix stand at 0."""
    a = i64_at(args)
    last = max(i64_at(state)[PREFIX] - 1, 0)
    while True:
        t = next_piece(args)
        if t >= i64_at(state)[TOKENS]:
            break
        position = i64_at(state)[POSITION] + t
        behind = max(position - i64_at(state)[PREFIX] + 1, 0)
        position = behind if a[4] != 0 else min(position, last)
        out, frequency = f32_at(a[3] + t * a[2] * 8), f32_at(a[1])
        for i in range(a[2]):
            angle = position * float(frequency[i])
            out[2 * i] = math.cos(angle)
            out[2 * i + 1] = math.sin(angle)
