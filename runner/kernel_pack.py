"""Activations packed for the matrix kernels: int8 with scales and sums, or float32, in order or in blocks of tokens.

Arguments are int64 slots; `a[0]` is the work counter, addresses are of float32 unless said, strides are in elements.
"""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def,var-annotated"

from __future__ import annotations

from runner.ir import f32_at, i64_at, quantize_group
from runner.kernel_multiply import block_tokens
from runner.kernel_tools import FEW, TOKENS, helper, next_piece, operation, stays_in_order

BLOCK_TOKENS = block_tokens()


@operation
def pack(args: int, state: int, thread: int) -> None:
    """Activations for the matrix kernels. a[1] x, a[2] width, a[3] x stride, a[4] float blocks (or 0), a[5]
    int8 blocks
    (or 0), a[6] scales, a[7] sums per 32, a[8] sums per 16, a[9] rows per token, a[10] never interleave.

    Up to `FEW` tokens stay in order; more are interleaved in blocks of `block_tokens()`: [block][input][token], but
    for floats that `stays_in_order`.
    """
    a = i64_at(args)
    width, n = a[2], i64_at(state)[TOKENS] * a[9]
    tokens = 1 if n <= FEW or a[10] != 0 else BLOCK_TOKENS
    groups, per_piece = width // 32, 32
    pieces = max(1, (groups + per_piece - 1) // per_piece)
    while True:
        piece = next_piece(args)
        block = piece // pieces  # one thread packs all tokens of a block: their numbers share cache lines
        if block * tokens >= n:
            break
        first = piece % pieces * per_piece
        last = min(first + per_piece, groups)
        end = width if last == groups else last * 32
        for lane in range(min(tokens, n - block * tokens)):
            x = a[1] + (block * tokens + lane) * a[3] * 4
            if a[4] != 0:
                source, floats = f32_at(x), f32_at(a[4] + block * width * tokens * 4)
                if stays_in_order(n, width):
                    for i in range(first * 32, end):
                        floats[lane * width + i] = source[i]
                else:
                    for i in range(first * 32, end):
                        floats[i * tokens + lane] = source[i]
            if a[5] != 0:
                pack_groups(x, first, last, tokens, lane, a[5] + block * width * tokens,
                            a[6] + block * groups * tokens * 4, a[7] + block * groups * tokens * 4,
                            a[8] + block * groups * tokens * 8)  # fmt: skip


@helper
def pack_groups(x, first, last, tokens, lane, xq, xd, xs32, xs16):
    """Groups of 32 -> int8, scales and sums, interleaved with `tokens` - 1 other tokens."""
    for g in range(first, last):
        at = 4 * (g * tokens + lane)
        low = xs16 + 4 * (2 * g * tokens + lane)
        quantize_group(
            x + g * 128,
            xq + 4 * (8 * g * tokens + lane),
            4 * tokens,
            xd + at,
            xs32 + at,
            low,
            low + 4 * tokens,
        )
