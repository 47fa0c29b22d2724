"""Operations that only measure: a streaming read, and an empty one."""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def,var-annotated"

from __future__ import annotations

from llvmlite import ir
from numba import types

from runner.ir import I64, Emitter, i64_at, kernel, vec
from runner.kernel_dot import PREFETCH_BYTES
from runner.kernel_tools import next_piece, operation


@kernel(types.int64, types.intp, types.intp)
def xor_lines(e: Emitter, address: ir.Value, n_lines: ir.Value) -> ir.Value:
    """The exclusive or of `n_lines` runs of 256 bytes, asked for as far ahead as decode does."""
    kind = vec(I64, 8)

    def line(i: ir.Value, acc: list) -> list:
        at = e.b.add(address, e.b.mul(i, e.i64(256)))
        for j in range(4):
            e.prefetch(at, PREFETCH_BYTES + 64 * j)
        return [e.b.xor(a, e.load(at, kind, 64 * j, align=8)) for j, a in enumerate(acc)]

    acc = e.loop(n_lines, [ir.Constant(kind, None)] * 4, line)
    total = e.b.xor(e.b.xor(acc[0], acc[1]), e.b.xor(acc[2], acc[3]))
    out = e.b.extract_element(total, ir.Constant(ir.IntType(32), 0))
    for k in range(1, 8):
        out = e.b.xor(out, e.b.extract_element(total, ir.Constant(ir.IntType(32), k)))
    return out


@operation
def read_memory(args: int, state: int, thread: int) -> None:
    """Read a[2] bytes at a[1] in pieces of 1 MiB; a[3] one int64 per cache line and thread for the
    result."""
    a = i64_at(args)
    n, piece, total = a[2], 1 << 20, 0
    while True:
        first = next_piece(args) * piece
        if first >= n:
            break
        total ^= xor_lines(a[1] + first, min(piece, n - first) // 256)
    i64_at(a[3])[thread * 8] = total


@operation
def nothing(args: int, state: int, thread: int) -> None:
    """No work: what an operation costs by itself."""
