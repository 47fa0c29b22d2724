"""Norms and gates of one token that pack what they make for the matrix kernels, which saves a step a barrier each.

Arguments are int64 slots; `a[0]` is the work counter, addresses are of float32 unless said.
"""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def,var-annotated"

from __future__ import annotations

import numpy as np

from runner.ir import as_float, f32_at, i64_at
from runner.kernel_ops import gate_part, mean_and_factor, norm_part
from runner.kernel_pack import pack_groups
from runner.kernel_tools import next_piece, operation

PIECE = 1024  # numbers


@operation
def norm_and_pack(args: int, state: int, thread: int) -> None:
    """As `kernel_ops.norm` of one row: a[1] x, a[2] weight, a[3] bias, a[4] out (another row), a[5] width (a multiple
    of 32), a[6] eps, a[7] centre; as `kernel_pack.pack`: a[8] int8, a[9] scales, a[10] sums per 32, a[11] sums per 16.
    Each thread looks at all of the row."""
    a = i64_at(args)
    x, out, width = f32_at(a[1]), f32_at(a[4]), a[5]
    mean, factor = mean_and_factor(x, width, as_float(a[6]), a[7])
    while True:
        first = next_piece(args) * PIECE
        if first >= width:
            break
        last = min(first + PIECE, width)
        norm_part(x, out, a[2], a[3], first, last, mean, factor, 0)
        pack_groups(a[4], first // 32, last // 32, 1, 0, a[8], a[9], a[10], a[11])


@operation
def gate_and_pack(args: int, state: int, thread: int) -> None:
    """As `kernel_ops.gate` of one row: a[1] gate, a[2] up (0: none), a[3] out, a[4] width (a multiple of 32), a[5]
    activation, a[6] limit; as `kernel_pack.pack`: a[7] int8, a[8] scales, a[9] sums per 32, a[10] sums per 16."""
    a = i64_at(args)
    gate, out, width = f32_at(a[1]), f32_at(a[3]), a[4]
    while True:
        first = next_piece(args) * PIECE
        if first >= width:
            break
        last = min(first + PIECE, width)
        gate_part(gate, a[2], out, first, last, a[5], np.float32(as_float(a[6])))
        pack_groups(a[3], first // 32, last // 32, 1, 0, a[7], a[8], a[9], a[10])
