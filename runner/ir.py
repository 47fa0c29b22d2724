"""Vector IR vocabulary of the kernels: addresses, loads, half floats, byte dot products, table look-ups,
atomics.

Kernels work on plain addresses (Numba `intp`). Everything here is portable LLVM vector IR except
`dot_bytes` and
`table_16`, which use one machine instruction where the target has it and plain IR where it has not.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from runner.target import target

I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()


def vec(element: ir.Type, n: int) -> ir.VectorType:
    return ir.VectorType(element, n)


class Emitter:
    """A thin shorthand over llvmlite's builder; every method emits IR and returns the value."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.b = builder

    def i64(self, value: int) -> ir.Constant:
        return ir.Constant(I64, value)

    def splat_const(self, kind: ir.VectorType, value: float) -> ir.Constant:
        return ir.Constant(kind, [ir.Constant(kind.element, value)] * kind.count)

    def consts(self, element: ir.Type, values: list) -> ir.Constant:
        return ir.Constant(vec(element, len(values)), [ir.Constant(element, v) for v in values])

    def call(self, name: str, result: ir.Type, *args: ir.Value) -> ir.Value:
        function_type = ir.FunctionType(result, [a.type for a in args])
        return self.b.call(cgutils.get_or_insert_function(self.b.module, function_type, name), args)

    def at(self, address: ir.Value, offset: int | ir.Value = 0) -> ir.Value:
        if isinstance(offset, int):
            return address if offset == 0 else self.b.add(address, self.i64(offset))
        return self.b.add(address, offset)

    def load(self, address: ir.Value, kind: ir.Type, offset: int = 0, align: int = 1) -> ir.Value:
        value = self.b.load(self.b.inttoptr(self.at(address, offset), kind.as_pointer()))
        value.align = align
        return value

    def store(self, value: ir.Value, address: ir.Value, offset: int = 0, align: int = 1) -> None:
        pointer = self.b.inttoptr(self.at(address, offset), value.type.as_pointer())
        self.b.store(value, pointer).align = align

    def prefetch(self, address: ir.Value, offset: int) -> None:
        """Ask for a cache line to be read; harmless past the end of memory."""
        pointer = self.b.inttoptr(self.at(address, offset), I8.as_pointer())
        kinds = [I32] * 3
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, *kinds])
        function = cgutils.get_or_insert_function(self.b.module, kind, "llvm.prefetch.p0")
        self.b.call(function, [pointer, *(ir.Constant(I32, v) for v in (0, 3, 1))])

    def splat(self, value: ir.Value, n: int) -> ir.Value:
        one = self.b.insert_element(ir.Constant(vec(value.type, n), ir.Undefined), value, ir.Constant(I32, 0))
        return self.shuffle(one, [0] * n)

    def shuffle(self, a: ir.Value, order: list[int], other: ir.Value | None = None) -> ir.Value:
        other = other if other is not None else ir.Constant(a.type, ir.Undefined)
        return self.b.shuffle_vector(a, other, self.consts(I32, order))

    def join(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.shuffle(a, list(range(2 * a.type.count)), b)

    def gather(self, values: list[ir.Value]) -> ir.Value:
        """Scalars -> vector."""
        out = ir.Constant(vec(values[0].type, len(values)), ir.Undefined)
        for i, value in enumerate(values):
            out = self.b.insert_element(out, value, ir.Constant(I32, i))
        return out

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        name = f"llvm.fma.v{a.type.count}f32" if isinstance(a.type, ir.VectorType) else "llvm.fma.f32"
        return self.call(name, a.type, a, b, c)

    def sum(self, v: ir.Value) -> ir.Value:
        """Horizontal sum of a float vector whose length is a power of two."""
        n = v.type.count
        while n > 1:
            n //= 2
            v = self.b.fadd(self.shuffle(v, list(range(n))), self.shuffle(v, list(range(n, 2 * n))))
        return self.b.extract_element(v, ir.Constant(I32, 0))

    def fold(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """A vector whose horizontal sum is that of both."""
        if a.type.count < b.type.count:
            a, b = b, a
        while a.type.count > b.type.count:
            n = a.type.count // 2
            a = self.b.fadd(self.shuffle(a, list(range(n))), self.shuffle(a, list(range(n, 2 * n))))
        return self.b.fadd(a, b)

    def half(self, bits: ir.Value) -> ir.Value:
        """float16 bits (i16 or a vector of them) -> float32, exact for every finite number."""
        like = (lambda e: vec(e, bits.type.count)) if isinstance(bits.type, ir.VectorType) else (lambda e: e)
        if target().half:
            return self.b.fpext(self.b.bitcast(bits, like(F16)), like(F32))
        const = (lambda t, v: self.splat_const(t, v)) if isinstance(bits.type, ir.VectorType) else ir.Constant
        wide = self.b.zext(bits, like(I32))
        magnitude = self.b.shl(self.b.and_(wide, const(like(I32), 0x7FFF)), const(like(I32), 13))
        scaled = self.b.fmul(self.b.bitcast(magnitude, like(F32)), const(like(F32), 2.0**112))
        sign = self.b.shl(self.b.and_(wide, const(like(I32), 0x8000)), const(like(I32), 16))
        return self.b.bitcast(self.b.or_(self.b.bitcast(scaled, like(I32)), sign), like(F32))

    def bfloat(self, bits: ir.Value) -> ir.Value:
        wide = vec(I32, bits.type.count)
        return self.b.bitcast(
            self.b.shl(self.b.zext(bits, wide), self.splat_const(wide, 16)), vec(F32, bits.type.count)
        )

    def dot_bytes(self, acc: ir.Value, w: ir.Value, x: ir.Value, signed: bool) -> ir.Value:
        """acc[i] + sum over k < 4 of w[4i + k] * x[4i + k]; x is int8, w is 0..127 or, where `signed`, int8
        (with
        `vnni`, `signed` must have been turned into unsigned by an offset; then w may reach 255)."""
        n = w.type.count
        if target().dot == "vnni":
            assert not signed
            words = vec(I32, n // 4)
            name = f"llvm.x86.avx512.vpdpbusd.{8 * n}"
            return self.call(name, words, acc, self.b.bitcast(w, words), self.b.bitcast(x, words))
        if target().dot == "avx2" and n == 32:
            if signed:
                zero = ir.Constant(w.type, None)
                negative = self.b.icmp_signed("<", w, zero)
                x = self.b.select(negative, self.b.sub(zero, x), x)
                w = self.b.select(negative, self.b.sub(zero, w), w)
            pairs = self.call("llvm.x86.avx2.pmadd.ub.sw", vec(I16, 16), w, x)
            ones = self.splat_const(vec(I16, 16), 1)
            return self.b.add(acc, self.call("llvm.x86.avx2.pmadd.wd", vec(I32, 8), pairs, ones))
        wide = vec(I32, n)
        product = self.b.mul(self.b.sext(w, wide), self.b.sext(x, wide))
        for k in range(4):
            acc = self.b.add(acc, self.shuffle(product, list(range(k, n, 4))))
        return acc

    def table_16(self, table: list[int], index: ir.Value) -> ir.Value:
        """table[i] for each byte i < 16 of `index` (32 or 64 bytes)."""
        n, kind = index.type.count, target().byte_shuffle
        if kind == "x86":
            name = {32: "llvm.x86.avx2.pshuf.b", 64: "llvm.x86.avx512.pshuf.b.512"}[n]
            return self.call(name, index.type, self.consts(I8, [v & 0xFF for v in table] * (n // 16)), index)
        if kind == "neon":
            halves = [self.shuffle(index, list(range(16 * i, 16 * i + 16))) for i in range(n // 16)]
            values = self.consts(I8, [v & 0xFF for v in table])
            found = [self.call("llvm.aarch64.neon.tbl1.v16i8", vec(I8, 16), values, h) for h in halves]
            return self.join(*found)
        out = self.splat_const(index.type, table[0] & 0xFF)
        for k in range(1, 16):
            hit = self.b.icmp_unsigned("==", index, self.splat_const(index.type, k))
            out = self.b.select(hit, self.splat_const(index.type, table[k] & 0xFF), out)
        return out

    def loop(self, count: ir.Value, carried: list[ir.Value], body: Any) -> list[ir.Value]:
        """`for i in range(count): carried = body(i, carried)`; returns the last `carried` (the first when
        count is 0)."""
        b = self.b
        before = b.block
        head, inside, after = (b.append_basic_block(n) for n in ("head", "inside", "after"))
        b.branch(head)
        b.position_at_end(head)
        i = b.phi(I64)
        slots = [b.phi(v.type) for v in carried]
        b.cbranch(b.icmp_signed("<", i, count), inside, after)
        b.position_at_end(inside)
        results = body(i, slots)
        following = b.add(i, self.i64(1))
        end = b.block
        b.branch(head)
        i.add_incoming(self.i64(0), before)
        i.add_incoming(following, end)
        for slot, first, last in zip(slots, carried, results, strict=True):
            slot.add_incoming(first, before)
            slot.add_incoming(last, end)
        b.position_at_end(after)
        return slots


def kernel(result: Any, *arguments: Any) -> Any:
    """Decorate `emit(emitter, *values) -> value | None` into a Numba intrinsic of the given signature."""

    def wrap(emit: Any) -> Any:
        names = ", ".join(f"a{i}" for i in range(len(arguments)))
        scope: dict[str, Any] = {}
        # Numba reads the number of arguments from the signature, so the function is made with as many
        source = (
            "def build(signature, codegen):\n"
            f"    def {emit.__name__}(typingctx, {names}):\n"
            "        return signature, codegen\n"
            f"    return {emit.__name__}\n"
        )
        exec(source, scope)

        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            value = emit(Emitter(builder), *args)
            return context.get_dummy_value() if value is None else value

        return intrinsic(scope["build"](result(*arguments), codegen))

    return wrap


def _pointer_to(kind: types.Type) -> Any:
    @intrinsic
    def pointer(typingctx, address):  # type: ignore[no-untyped-def]
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            return builder.inttoptr(args[0], context.get_value_type(types.CPointer(kind)))

        return types.CPointer(kind)(types.intp), codegen

    return pointer


f32_at = _pointer_to(types.float32)
i64_at = _pointer_to(types.int64)
i32_at = _pointer_to(types.int32)
u8_at = _pointer_to(types.uint8)
u16_at = _pointer_to(types.uint16)


@kernel(types.float64, types.int64)
def as_float(e: Emitter, bits: ir.Value) -> ir.Value:
    """The float64 whose bits are these."""
    return e.b.bitcast(bits, F64)


@kernel(types.int64, types.intp, types.int64)
def fetch_add(e: Emitter, address: ir.Value, amount: ir.Value) -> ir.Value:
    """Atomically add to the int64 at `address`; the value before."""
    return e.b.atomic_rmw("add", e.b.inttoptr(address, I64.as_pointer()), amount, "seq_cst")


@kernel(types.int64, types.intp)
def load_acquire(e: Emitter, address: ir.Value) -> ir.Value:
    return e.b.load_atomic(e.b.inttoptr(address, I64.as_pointer()), "acquire", 8)


@kernel(types.void, types.intp, types.intp, types.intp, types.intp)
def call_at(e: Emitter, function: ir.Value, a: ir.Value, b: ir.Value, c: ir.Value) -> None:
    """Call the C function `void(intp, intp, intp)` at an address."""
    kind = ir.FunctionType(ir.VoidType(), [I64, I64, I64])
    e.b.call(e.b.inttoptr(function, kind.as_pointer()), [a, b, c])


def exponential(e: Emitter, x: ir.Value) -> ir.Value:
    """e^x of a float32 or a vector of them, to about 2 units in the last place, as plain arithmetic.

    Range reduction by ln 2 in two parts (Cody and Waite) and the Taylor polynomial of degree 6 on |r| <= ln
    2 / 2.
    """
    n_lanes = x.type.count if isinstance(x.type, ir.VectorType) else 0
    like = (lambda t: vec(t, n_lanes)) if n_lanes else (lambda t: t)
    name = f"llvm.rint.v{n_lanes}f32" if n_lanes else "llvm.rint.f32"
    const = lambda t, v: e.splat_const(vec(t, n_lanes), v) if n_lanes else ir.Constant(t, v)  # noqa: E731
    f = lambda v: const(F32, v)  # noqa: E731
    # fcmp + select rather than llvm.minnum, which some targets scalarize
    x = e.b.select(e.b.fcmp_ordered("<", x, f(-87.0)), f(-87.0), x)
    x = e.b.select(e.b.fcmp_ordered(">", x, f(88.0)), f(88.0), x)
    n = e.call(name, x.type, e.b.fmul(x, f(1.4426950408889634)))
    r = e.fma(n, f(-0.693359375), x)
    r = e.fma(n, f(2.12194440054690583e-4), r)
    p = f(1 / 720)
    for c in (1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
        p = e.fma(p, r, f(c))
    power = e.b.shl(e.b.add(e.b.fptosi(n, like(I32)), const(I32, 127)), const(I32, 23))
    return e.b.fmul(p, e.b.bitcast(power, x.type))


@kernel(types.float32, types.float32)
def exp(e: Emitter, x: ir.Value) -> ir.Value:
    """e^x, for loops that are vectorized as they are."""
    return exponential(e, x)


def half_bits(e: Emitter, x: ir.Value) -> ir.Value:
    """float32 -> float16 bits, rounded to nearest even."""
    if target().half:
        return e.b.bitcast(e.b.fptrunc(x, F16), I16)
    i = lambda v: ir.Constant(I32, v)  # noqa: E731
    bits = e.b.bitcast(x, I32)
    sign = e.b.lshr(e.b.and_(bits, i(0x80000000)), i(16))
    magnitude = e.b.and_(bits, i(0x7FFFFFFF))
    odd = e.b.and_(e.b.lshr(magnitude, i(13)), i(1))
    rounded = e.b.lshr(e.b.sub(e.b.add(magnitude, e.b.add(i(0xFFF), odd)), i(0x38000000)), i(13))
    # below 2^-14 a float addition aligns and rounds the bits of a subnormal half
    small = e.b.bitcast(e.b.fadd(e.b.bitcast(magnitude, F32), ir.Constant(F32, 0.5)), I32)
    small = e.b.sub(small, i(0x3F000000))
    value = e.b.select(e.b.icmp_unsigned("<", magnitude, i(0x38800000)), small, rounded)
    value = e.b.select(e.b.icmp_unsigned(">=", magnitude, i(0x477FF000)), i(0x7C00), value)
    return e.b.trunc(e.b.or_(value, sign), I16)


@kernel(types.uint16, types.float32)
def to_half(e: Emitter, x: ir.Value) -> ir.Value:
    """float32 -> float16 bits."""
    return half_bits(e, x)


@kernel(types.void, *[types.intp] * 7)
def quantize_group(
    e: Emitter,
    x: ir.Value,
    out: ir.Value,
    stride: ir.Value,
    scale: ir.Value,
    sum32: ir.Value,
    low: ir.Value,
    high: ir.Value,
) -> None:
    """32 float32 at `x` -> int8, four to a word, words `stride` bytes apart at `out`; the float16-rounded
    scale (as
    llama.cpp's Q8_0 keeps it) and the scaled sums of all 32, the first 16 and the last 16, as float32."""
    v = e.load(x, vec(F32, 32), align=4)
    top = e.call("llvm.fabs.v32f32", v.type, v)
    while top.type.count > 1:
        n = top.type.count // 2
        a, b = e.shuffle(top, list(range(n))), e.shuffle(top, list(range(n, 2 * n)))
        top = e.b.select(e.b.fcmp_ordered(">", a, b), a, b)
    largest = e.b.extract_element(top, ir.Constant(I32, 0))
    some = e.b.fcmp_ordered(">", largest, ir.Constant(F32, 0.0))
    inverse = e.b.select(some, e.b.fdiv(ir.Constant(F32, 127.0), largest), ir.Constant(F32, 0.0))
    kept = e.half(half_bits(e, e.b.fdiv(largest, ir.Constant(F32, 127.0))))
    scaled = e.call("llvm.rint.v32f32", v.type, e.b.fmul(v, e.splat(inverse, 32)))
    codes = e.b.fptosi(scaled, vec(I32, 32))
    words = e.b.bitcast(e.b.trunc(codes, vec(I8, 32)), vec(I32, 8))
    at = out
    for i in range(8):
        e.store(e.b.extract_element(words, ir.Constant(I32, i)), at)
        at = e.b.add(at, stride)
    sums = []
    for half in range(2):
        part = e.shuffle(codes, list(range(16 * half, 16 * half + 16)))
        sums.append(e.b.fmul(e.b.sitofp(e.call("llvm.vector.reduce.add.v16i32", I32, part), F32), kept))
    for value, place in ((kept, scale), (e.b.fadd(*sums), sum32), (sums[0], low), (sums[1], high)):
        e.store(value, place, align=4)
