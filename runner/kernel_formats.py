"""How each quantized format unpacks, as vector IR: 32-weight groups of small integers with their scales.

`unpack(e, format_id, address, n_groups)` reads one row's next `32 * n_groups` weights and returns `Groups`,
whose
weight k of group g is `scale * q - minimum`. It is the only place that knows the layouts (source: ggml-
common.h of
llama.cpp describes the blocks; bit-equality with the `gguf` package is tested).
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from runner.ir import F32, I1, I8, I16, I32, I64, Emitter, vec
from runner.target import target

IQ4_VALUES = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
MXFP4_VALUES = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]

# format -> (weights per block, bytes per block, scales per 32 weights)
LAYOUTS: dict[str, tuple[int, int, int]] = {
    "Q4_0": (32, 18, 1), "Q4_1": (32, 20, 1), "Q5_0": (32, 22, 1), "Q5_1": (32, 24, 1), "Q8_0": (32, 34, 1),
    "IQ4_NL": (32, 18, 1), "MXFP4": (32, 17, 1), "Q2_K": (256, 84, 2), "Q3_K": (256, 110, 2),
    "Q4_K": (256, 144, 1), "Q5_K": (256, 176, 1), "Q6_K": (256, 210, 2), "IQ4_XS": (256, 136, 1),
}  # fmt: skip


@dataclass
class Groups:
    """`quants`: vectors of 32 bytes, or of 64 where the target's vectors are so wide; `scales`, `minimums`: float
    vectors with 1 or 2 entries per group (without `minimums`, they are `offset` times the scales);
    `signed`: whether quants use all of int8 (else they are 0..127).

    For dot products only, `halves`: quants come in pairs, the first 16 weights of four groups and their last 16;
    `sixteenfold`: numbers in the upper half of each vector are 16 times too large."""

    quants: list[ir.Value]
    scales: ir.Value
    minimums: ir.Value | None = None
    signed: bool = False
    offset: float = 0.0
    halves: bool = False
    sixteenfold: bool = False

    def subtracted(self, e: Emitter) -> ir.Value | None:
        """What is subtracted from each group's (or half's) weights; None: nothing."""
        if self.minimums is None and self.offset:
            return e.b.fmul(self.scales, e.splat_const(self.scales.type, self.offset))
        return self.minimums


def unpack(e: Emitter, format_id: str, address: ir.Value, n_groups: int) -> Groups:
    """The next `n_groups` groups of 32 weights (8, or 1 for formats of 32-weight blocks) at `address`. With
    VNNI,
    signed quants come out shifted by 128 into unsigned bytes, the shift told in `offset`."""
    return _unsigned(e, _UNPACK[format_id](e, address, n_groups))


def unpack_for_dot(e: Emitter, format_id: str, address: ir.Value, n_groups: int) -> Groups:
    """As `unpack`, in the order that dot products of a row take least work in."""
    wide = target().lanes == 16 and target().dot == "vnni" and n_groups == 8
    if wide and format_id in _UNPACK_FOR_DOT:
        return _unsigned(e, _UNPACK_FOR_DOT[format_id](e, address, n_groups))
    return unpack(e, format_id, address, n_groups)


def _unsigned(e: Emitter, groups: Groups) -> Groups:
    """With VNNI, signed quants shifted by 128."""
    if groups.signed and target().dot == "vnni":
        assert groups.minimums is None
        groups.quants = [e.b.xor(q, e.splat_const(q.type, -128)) for q in groups.quants]
        groups.offset, groups.signed = 128.0, False
    return groups


def _halves(e: Emitter, address: ir.Value, n: int, stride: int, offset: int) -> ir.Value:
    """n float16 numbers, `stride` bytes apart -> float32 vector."""
    if target().lanes == 16 and n == 8 and stride == 18 and offset == 0:
        return e.half(_eight_words(e, address, [0, 9, 18, 27], 72))
    return e.half(e.gather([e.load(address, I16, offset + stride * i) for i in range(n)]))


def _eight_words(e: Emitter, address: ir.Value, places: list[int], second: int) -> ir.Value:
    """8 of the 16-bit words in two 64-byte loads, the second `second` bytes on: one permutation instead of
    8 inserts."""
    kind = vec(I16, 32)
    return e.shuffle(e.load(address, kind), places + [32 + k for k in places], e.load(address, kind, second))


def _moved(e: Emitter, w: ir.Value, moves: list[int], mask: int) -> list[ir.Value]:
    """32 bytes -> for each move m (w >> m) & mask, to the left where m < 0; in pairs where vectors have 64
    bytes.
    Moves of a pair go in one direction. Shifts are of 64-bit words: the mask drops what crosses bytes."""
    if target().lanes == 16:
        w = e.join(w, w)
    step = w.type.count // 32
    words = vec(I64, w.type.count // 8)
    wide, out = e.b.bitcast(w, words), []
    for i in range(0, len(moves), step):
        counts = [abs(m) for m in moves[i : i + step] for _ in range(4)]
        shift = e.b.shl if any(m < 0 for m in moves[i : i + step]) else e.b.lshr
        moved = e.b.bitcast(shift(wide, e.consts(I64, counts)), w.type)
        out.append(e.b.and_(moved, e.splat_const(w.type, mask)))
    return out


def _or(e: Emitter, first: list[ir.Value], second: list[ir.Value]) -> list[ir.Value]:
    return [e.b.or_(a, b) for a, b in zip(first, second, strict=True)]


def _paired(e: Emitter, parts: list[ir.Value]) -> list[ir.Value]:
    """Vectors of 32 bytes joined in pairs where vectors have 64 bytes."""
    if target().lanes < 16 or len(parts) == 1:
        return parts
    return [e.join(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]


def _nibbles(e: Emitter, blocks: list[ir.Value]) -> list[ir.Value]:
    """Each 16 bytes -> 32: low nibbles, then high nibbles; in pairs where vectors have 64 bytes."""
    order = [k % 16 for k in range(32)]
    raw = _paired(e, [e.shuffle(w, order) for w in blocks])
    out = []
    for w in raw:
        counts = [0, 0, 4, 4] * (w.type.count // 32)
        moved = e.b.lshr(e.b.bitcast(w, vec(I64, w.type.count // 8)), e.consts(I64, counts))
        out.append(e.b.and_(e.b.bitcast(moved, w.type), e.splat_const(w.type, 15)))
    return out


def _times(e: Emitter, v: ir.Value, factor: float) -> ir.Value:
    return e.b.fmul(v, e.splat_const(v.type, factor))


def _fifth_bits(e: Emitter, words: list[ir.Value]) -> list[ir.Value]:
    """Each 32 bits -> 32 bytes of 0 or 16."""
    out = []
    for bits in words:
        mask = e.b.bitcast(bits, vec(I1, 32))
        out.append(e.b.select(mask, e.splat_const(vec(I8, 32), 16), e.splat_const(vec(I8, 32), 0)))
    return _paired(e, out)


def _q4_0(e: Emitter, a: ir.Value, n: int) -> Groups:
    scales = _halves(e, a, n, 18, 0)
    quants = _nibbles(e, [e.load(a, vec(I8, 16), 18 * i + 2) for i in range(n)])
    return Groups(quants, scales, offset=8.0)


def _q4_1(e: Emitter, a: ir.Value, n: int) -> Groups:
    quants = _nibbles(e, [e.load(a, vec(I8, 16), 20 * i + 4) for i in range(n)])
    return Groups(quants, _halves(e, a, n, 20, 0), _times(e, _halves(e, a, n, 20, 2), -1.0))


def _q5_0(e: Emitter, a: ir.Value, n: int) -> Groups:
    scales = _halves(e, a, n, 22, 0)
    low = _nibbles(e, [e.load(a, vec(I8, 16), 22 * i + 6) for i in range(n)])
    quants = _or(e, low, _fifth_bits(e, [e.load(a, I32, 22 * i + 2) for i in range(n)]))
    return Groups(quants, scales, offset=16.0)


def _q5_1(e: Emitter, a: ir.Value, n: int) -> Groups:
    low = _nibbles(e, [e.load(a, vec(I8, 16), 24 * i + 8) for i in range(n)])
    quants = _or(e, low, _fifth_bits(e, [e.load(a, I32, 24 * i + 4) for i in range(n)]))
    return Groups(quants, _halves(e, a, n, 24, 0), _times(e, _halves(e, a, n, 24, 2), -1.0))


def _q8_0(e: Emitter, a: ir.Value, n: int) -> Groups:
    quants = _paired(e, [e.load(a, vec(I8, 32), 34 * i + 2) for i in range(n)])
    return Groups(quants, _halves(e, a, n, 34, 0), signed=True)


def _looked_up(e: Emitter, table: list[int], blocks: list[ir.Value]) -> list[ir.Value]:
    """The table's entry for each nibble."""
    return [e.table_16(table, nibbles) for nibbles in _nibbles(e, blocks)]


def _iq4_nl(e: Emitter, a: ir.Value, n: int) -> Groups:
    quants = _looked_up(e, IQ4_VALUES, [e.load(a, vec(I8, 16), 18 * i + 2) for i in range(n)])
    return Groups(quants, _halves(e, a, n, 18, 0), signed=True)


def _mxfp4(e: Emitter, a: ir.Value, n: int) -> Groups:
    """Values are held doubled, so the power-of-two scale (E8M0) is halved: 2^(exponent - 128)."""
    if target().lanes == 16 and n == 8:
        pairs = e.b.zext(_eight_words(e, a, [0, 8, 17, 25], 68), vec(I32, 8))  # bytes 0, 17, 34, 51
        words = e.b.and_(e.b.lshr(pairs, e.consts(I32, [0, 8] * 4)), e.splat_const(pairs.type, 255))
    else:
        words = e.b.zext(e.gather([e.load(a, I8, 17 * i) for i in range(n)]), vec(I32, n))
    normal = e.b.shl(e.b.sub(words, e.splat_const(words.type, 1)), e.splat_const(words.type, 23))
    subnormal = e.b.shl(e.splat_const(words.type, 0x00200000), words)
    tiny = e.b.icmp_unsigned("<", words, e.splat_const(words.type, 2))
    scales = e.b.bitcast(e.b.select(tiny, subnormal, normal), vec(F32, n))
    shifted = [v + 12 for v in MXFP4_VALUES]  # 0..24, so that no signed product is needed
    quants = _looked_up(e, shifted, [e.load(a, vec(I8, 16), 17 * i + 1) for i in range(n)])
    return Groups(quants, scales, offset=12.0)


def _half_splat(e: Emitter, a: ir.Value, offset: int, n: int) -> ir.Value:
    return e.splat(e.half(e.load(a, I16, offset)), n)


def _to_float(e: Emitter, v: ir.Value, signed: bool = False) -> ir.Value:
    wide = vec(I32, v.type.count)
    return e.b.sitofp(e.b.sext(v, wide) if signed else e.b.zext(v, wide), vec(F32, v.type.count))


def _two_bits(e: Emitter, a: ir.Value, offset: int) -> list[ir.Value]:
    """64 bytes of four 2-bit planes per half -> 8 groups."""
    halves = [_moved(e, e.load(a, vec(I8, 32), offset + 32 * half), [0, 2, 4, 6], 3) for half in range(2)]
    return halves[0] + halves[1]


def _q2_k(e: Emitter, a: ir.Value, n: int) -> Groups:
    packed = e.load(a, vec(I8, 16), 0)
    scale = _to_float(e, e.b.and_(packed, e.splat_const(packed.type, 15)))
    minimum = _to_float(e, e.b.lshr(packed, e.splat_const(packed.type, 4)))
    return Groups(
        _two_bits(e, a, 16),
        e.b.fmul(scale, _half_splat(e, a, 80, 16)),
        e.b.fmul(minimum, _half_splat(e, a, 82, 16)),
    )


def _masked(e: Emitter, word: ir.Value, shift: int, mask: int) -> ir.Value:
    """(word >> shift) & mask in each byte; word is i32."""
    shifted = e.b.lshr(word, ir.Constant(I32, shift)) if shift else word
    return e.b.and_(shifted, ir.Constant(I32, mask * 0x01010101))


def _q3_k(e: Emitter, a: ir.Value, n: int) -> Groups:
    word = [e.load(a, I32, 96 + 4 * i) for i in range(3)]
    parts = []
    for i in range(4):
        low = _masked(e, word[i % 2], 4 * (i // 2), 15)
        parts.append(e.b.or_(low, e.b.shl(_masked(e, word[2], 2 * i, 3), ir.Constant(I32, 4))))
    six = e.b.sub(e.b.bitcast(e.gather(parts), vec(I8, 16)), e.splat_const(vec(I8, 16), 32))
    scales = e.b.fmul(_to_float(e, six, signed=True), _half_splat(e, a, 108, 16))
    high = _moved(e, e.load(a, vec(I8, 32), 0), [-2, -1, 0, 1, 2, 3, 4, 5], 4)
    return Groups(_or(e, _two_bits(e, a, 32), high), scales, offset=4.0)


def _six_bit_pairs(e: Emitter, a: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Q4_K and Q5_K: 8 scales and 8 minimums of 6 bits in 12 bytes at offset 4, times the block's two halves."""
    mask = lambda v: ir.Constant(I64, v * 0x0101010101010101)  # noqa: E731
    first, last = e.load(a, I64, 4), e.b.zext(e.load(a, I32, 12), I64)
    low = e.b.and_(e.b.or_(last, e.b.shl(last, e.i64(28))), mask(15))  # high nibbles move to the upper word
    high = e.b.and_(e.b.lshr(first, e.i64(2)), mask(48))
    # 4 scales, 4 minimums, 4 scales, 4 minimums
    words = e.gather([e.b.and_(first, mask(63)), e.b.or_(low, high)])
    halves = e.half(e.shuffle(e.b.bitcast(e.load(a, I32), vec(I16, 2)), [0, 1, 0, 1]))
    values = e.b.fmul(
        _to_float(e, e.b.bitcast(words, vec(I8, 16))), e.shuffle(halves, ([0] * 4 + [1] * 4) * 2)
    )
    return tuple(e.shuffle(values, [i + k for i in (0, 1, 2, 3, 8, 9, 10, 11)]) for k in (0, 4))


def _nibble_planes(e: Emitter, a: ir.Value, offset: int) -> list[ir.Value]:
    """128 bytes -> 8 groups: the low nibbles of each 32 bytes, then their high nibbles."""
    runs = [_moved(e, e.load(a, vec(I8, 32), offset + 32 * j), [0, 4], 15) for j in range(4)]
    return [group for run in runs for group in run]


def _q4_k(e: Emitter, a: ir.Value, n: int) -> Groups:
    return Groups(_nibble_planes(e, a, 16), *_six_bit_pairs(e, a))


def _q5_k(e: Emitter, a: ir.Value, n: int) -> Groups:
    fifth = _moved(e, e.load(a, vec(I8, 32), 16), [-4, -3, -2, -1, 0, 1, 2, 3], 16)
    return Groups(_or(e, _nibble_planes(e, a, 48), fifth), *_six_bit_pairs(e, a))


def _q6_k(e: Emitter, a: ir.Value, n: int) -> Groups:
    quants = []
    for half in range(2):
        runs = _paired(e, [e.load(a, vec(I8, 32), 64 * half + 32 * i) for i in range(2)])
        low = [e.b.and_(w, e.splat_const(w.type, 15)) for w in runs]
        low += [e.b.lshr(w, e.splat_const(w.type, 4)) for w in runs]
        high = _moved(e, e.load(a, vec(I8, 32), 128 + 32 * half), [-4, -2, 0, 2], 48)
        quants += _or(e, low, high)
    scales = e.b.fmul(_to_float(e, e.load(a, vec(I8, 16), 192), signed=True), _half_splat(e, a, 208, 16))
    return Groups(quants, scales, offset=32.0)


def _iq4_xs(e: Emitter, a: ir.Value, n: int) -> Groups:
    low = e.splat(e.load(a, I32, 4), 8)
    high = e.splat(e.b.zext(e.load(a, I16, 2), I32), 8)
    four = e.b.and_(e.b.lshr(low, e.consts(I32, [4 * i for i in range(8)])), e.splat_const(low.type, 15))
    two = e.b.and_(e.b.lshr(high, e.consts(I32, [2 * i for i in range(8)])), e.splat_const(low.type, 3))
    six = e.b.sub(e.b.or_(four, e.b.shl(two, e.splat_const(low.type, 4))), e.splat_const(low.type, 32))
    scales = e.b.fmul(e.b.sitofp(six, vec(F32, 8)), _half_splat(e, a, 0, 8))
    quants = _looked_up(e, IQ4_VALUES, [e.load(a, vec(I8, 16), 8 + 16 * i) for i in range(8)])
    return Groups(quants, scales, signed=True)


_UNPACK = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "IQ4_NL": _iq4_nl,
    "MXFP4": _mxfp4, "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
    "IQ4_XS": _iq4_xs,
}  # fmt: skip


def _sixteens(e: Emitter, a: ir.Value, stride: int, offset: int) -> list[ir.Value]:
    """Of 8 blocks `stride` (even) bytes apart the 16 bytes at `offset`, four blocks to a vector."""
    last = (3 * stride + offset + 16 - 64) // 2  # words between two loads that together hold four blocks
    order = []
    for k in range(4):
        at = (k * stride + offset) // 2
        order += [w if at + 8 <= 32 else 32 + w - last for w in range(at, at + 8)]
    out = []
    for first in (0, 4 * stride):
        first_load, last_load = (e.load(a, vec(I16, 32), first + 2 * w) for w in (0, last))
        out.append(e.b.bitcast(e.shuffle(first_load, order, last_load), vec(I8, 64)))
    return out


def _nibble_halves(e: Emitter, raw: list[ir.Value]) -> list[ir.Value]:
    """Each 64 bytes -> their low nibbles, then their high nibbles."""
    out = []
    for w in raw:
        moved = e.b.lshr(e.b.bitcast(w, vec(I64, 8)), e.splat_const(vec(I64, 8), 4))
        out += [e.b.and_(v, e.splat_const(w.type, 15)) for v in (w, e.b.bitcast(moved, w.type))]
    return out


def _q4_0_halves(e: Emitter, a: ir.Value, n: int) -> Groups:
    return Groups(_nibble_halves(e, _sixteens(e, a, 18, 2)), _halves(e, a, n, 18, 0), offset=8.0, halves=True)


def _iq4_nl_halves(e: Emitter, a: ir.Value, n: int) -> Groups:
    quants = [e.table_16(IQ4_VALUES, q) for q in _nibble_halves(e, _sixteens(e, a, 18, 2))]
    return Groups(quants, _halves(e, a, n, 18, 0), signed=True, halves=True)


def _q4_k_planes(e: Emitter, a: ir.Value, n: int) -> Groups:
    """Low nibbles of each 32 bytes beside their high nibbles, which are not moved down."""
    mask = e.consts(I8, [15] * 32 + [-16] * 32)
    runs = [e.load(a, vec(I8, 32), 16 + 32 * j) for j in range(4)]
    return Groups([e.b.and_(e.join(w, w), mask) for w in runs], *_six_bit_pairs(e, a), sixteenfold=True)


_UNPACK_FOR_DOT = {"Q4_0": _q4_0_halves, "IQ4_NL": _iq4_nl_halves, "Q4_K": _q4_k_planes}

FLOATS = {"F32": 4, "F16": 2, "BF16": 2}  # bytes per weight


def load_floats(e: Emitter, format_id: str, address: ir.Value, n: int) -> ir.Value:
    """n consecutive weights of a float format -> float32 vector."""
    if format_id == "F32":
        return e.load(address, vec(F32, n))
    bits = e.load(address, vec(I16, n))
    return e.half(bits) if format_id == "F16" else e.bfloat(bits)


def load_32(e: Emitter, format_id: str, address: ir.Value) -> list[ir.Value]:
    """32 weights (of one block, or of a float format) -> float32 vectors of the target's width."""
    lanes = target().lanes
    if format_id in FLOATS:
        size = FLOATS[format_id]
        return [load_floats(e, format_id, e.at(address, size * lanes * j), lanes) for j in range(32 // lanes)]
    groups = _UNPACK[format_id](e, address, 1)
    least, found = groups.subtracted(e), []
    for j in range(32 // lanes):
        quants = e.shuffle(groups.quants[0], list(range(lanes * j, lanes * (j + 1))))
        value = e.b.fmul(_to_float(e, quants, groups.signed), e.shuffle(groups.scales, [0] * lanes))
        found.append(value if least is None else e.b.fsub(value, e.shuffle(least, [0] * lanes)))
    return found


__all__ = ["FLOATS", "I64", "LAYOUTS", "Groups", "load_32", "load_floats", "unpack", "unpack_for_dot"]
