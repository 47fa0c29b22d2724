"""Rows of the cache, kept in float16, Q8_0 or Q4_0. Positions map to slots modulo the ring's length."""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def,var-annotated"

from __future__ import annotations

from functools import cache
from typing import Any

from runner.ir import f32_at, i64_at, quantize_group, to_half, u8_at, u16_at
from runner.kernel_tools import POSITION, TOKENS, helper, next_piece, operation


@cache
def store_cache(fmt: str) -> Any:
    """Append keys or values: a[1] x [token][stride], a[2] width of a head, a[3] stride, a[4] cache [head][slot], a[5]
    bytes of a head's row, a[6] ring length, a[7] heads."""

    @operation
    def store_op(args: int, state: int, thread: int) -> None:
        a = i64_at(args)
        while True:
            t = next_piece(args)
            if t >= i64_at(state)[TOKENS]:
                break
            slot = (i64_at(state)[POSITION] + t) % a[6]
            for h in range(a[7]):
                write_row(fmt, a[1] + (t * a[3] + h * a[2]) * 4, a[2], a[4] + (h * a[6] + slot) * a[5])

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
