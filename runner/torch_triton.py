"""Triton kernels over quantized blocks: matrix times vector for decode, and blocks to 16-bit numbers for prompts.

A tile is [rows][groups][lanes]: lanes are the bytes of codes that share a scale, so scales are loaded once per group.
A byte of codes holds one number (`pair` false) or two. Under TRITON_INTERPRET=1, set before this module is imported,
the same code runs on the processor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from runner.torch_blocks import FP8, Packed

if TYPE_CHECKING:
    from torch import Tensor

LANES = {"Q4_0": 16, "MXFP4": 16, "Q8_0": 32, "Q4_K": 32, "Q5_K": 32, "Q6_K": 16, FP8: 32, "PLAIN": 32}
ONE = ("Q8_0", FP8, "PLAIN")  # formats with one number per element of `low`
# A tile of 4 rows by 512 bytes gives each of 128 threads a 16-byte load. Not tuned: no GPU has run this.
ROWS, TILE_BYTES = 4, 512


@triton.jit
def _places(FORMAT: tl.constexpr, group, lane):
    """Places in a row of the first and second number of a byte."""
    if FORMAT == "Q4_0" or FORMAT == "MXFP4":
        first = group * 32 + lane
        second = first + 16
    elif FORMAT == "Q4_K" or FORMAT == "Q5_K":
        first = group * 64 + lane
        second = first + 32
    elif FORMAT == "Q6_K":
        first = (group // 4) * 128 + (group % 4) * 16 + lane
        second = first + 64
    else:
        first = group * 32 + lane
        second = first
    return first, second


@triton.jit
def _six_bits(sub, s, mask):
    """Scale and minimum of sub-block s (0 to 7) of a Q4_K or Q5_K block, whose 12 bytes start at `sub`."""
    low = s < 4
    a = tl.load(sub + tl.where(low, s, s + 4), mask, 0).to(tl.int32)
    b = tl.load(sub + tl.where(low, s, s - 4), mask, 0).to(tl.int32)
    c = tl.load(sub + tl.where(low, s + 4, s), mask, 0).to(tl.int32)
    scale = tl.where(low, a & 63, (a & 15) | ((b >> 6) << 4))
    least = tl.where(low, c & 63, (a >> 4) | ((c >> 6) << 4))
    return scale.to(tl.float32), least.to(tl.float32)


@triton.jit
def _fp4(code):
    """An MXFP4 code in halves: 0, 1, 2, 3, 4, 6, 8, 12 and their negatives."""
    e = (code & 7) >> 1
    m = code & 1
    size = tl.where(e == 0, m, (2 + m) << (tl.maximum(e, 1) - 1)).to(tl.float32)
    return tl.where(code > 7, -size, size)


@triton.jit
def _fp8(code):
    """An E4M3 code (bias 7) as float32."""
    e = (code >> 3) & 15
    m = code & 7
    normal = (((e + 120) << 23) | (m << 20)).to(tl.float32, bitcast=True)
    size = tl.where(e == 0, m.to(tl.float32) * 0.001953125, normal)
    return tl.where(code > 127, -size, size)


@triton.jit
def _numbers(FORMAT: tl.constexpr, low, high, sub, scale, row, row_scale, group, lane, groups, scale_width,
             scale_columns, LANES: tl.constexpr, mask, few):  # fmt: skip
    """The first and second numbers of a tile [rows][groups][lanes], as float32. `few` masks [rows][groups][1]."""
    raw = tl.load(low + (row * groups + group) * LANES + lane, mask, 0)
    if FORMAT == "PLAIN":
        first = raw.to(tl.float32)
        second = first
    elif FORMAT == "Q8_0":
        first = raw.to(tl.float32) * tl.load(scale + row * groups + group, few, 0).to(tl.float32)
        second = first
    elif FORMAT == "F8_E4M3":
        size = tl.load(scale + row_scale * scale_width + (group * LANES) // scale_columns, few, 0)
        first = _fp8(raw.to(tl.int32)) * size
        second = first
    elif FORMAT == "Q4_0":
        size = tl.load(scale + row * groups + group, few, 0).to(tl.float32)
        code = raw.to(tl.int32)
        first = size * ((code & 15) - 8).to(tl.float32)
        second = size * ((code >> 4) - 8).to(tl.float32)
    elif FORMAT == "MXFP4":
        e = tl.load(scale + row * groups + group, few, 0).to(tl.int32)
        bits = tl.where(e < 2, (tl.minimum(e, 1) + 1) << 21, (tl.maximum(e, 1) - 1) << 23)
        size = bits.to(tl.float32, bitcast=True)
        code = raw.to(tl.int32)
        first = size * _fp4(code & 15)
        second = size * _fp4(code >> 4)
    elif FORMAT == "Q6_K":
        block = row * (groups // 8) + group // 8
        half = (group % 8) // 4
        quarter = group % 4
        code = raw.to(tl.int32)
        bits = tl.load(high + block * 64 + half * 32 + (quarter % 2) * 16 + lane, mask, 0).to(tl.int32)
        bits = bits >> ((quarter // 2) * 2)
        whole = tl.load(scale + block, few, 0).to(tl.float32)
        where = sub + block * 16 + half * 8 + quarter
        size_1 = whole * tl.load(where, few, 0).to(tl.float32)
        size_2 = whole * tl.load(where + 4, few, 0).to(tl.float32)
        first = size_1 * (((code & 15) | ((bits & 3) << 4)) - 32).to(tl.float32)
        second = size_2 * (((code >> 4) | (((bits >> 4) & 3) << 4)) - 32).to(tl.float32)
    else:  # Q4_K and Q5_K
        block = row * (groups // 4) + group // 4
        pair = group % 4
        code = raw.to(tl.int32)
        code_1 = code & 15
        code_2 = code >> 4
        if FORMAT == "Q5_K":
            bits = tl.load(high + block * 32 + lane, mask, 0).to(tl.int32) >> (pair * 2)
            code_1 = code_1 | ((bits & 1) << 4)
            code_2 = code_2 | (((bits >> 1) & 1) << 4)
        d = tl.load(scale + block * 2, few, 0).to(tl.float32)
        d_least = tl.load(scale + block * 2 + 1, few, 0).to(tl.float32)
        size_1, least_1 = _six_bits(sub + block * 12, pair * 2, few)
        size_2, least_2 = _six_bits(sub + block * 12, pair * 2 + 1, few)
        first = (d * size_1) * code_1.to(tl.float32) - d_least * least_1
        second = (d * size_2) * code_2.to(tl.float32) - d_least * least_2
    return first, second


@triton.jit
def _matvec(low, high, sub, scale, x, out, chosen, n_rows, width, groups, scale_rows, scale_width, scale_columns,
            slots, FORMAT: tl.constexpr, PAIR: tl.constexpr, CHOSEN: tl.constexpr, ROWS: tl.constexpr,
            GROUPS: tl.constexpr, LANES: tl.constexpr):  # fmt: skip
    """out[vector][row] = W[matrix of the vector][row] . x[vector // slots]; sums in float32."""
    vector = tl.program_id(1)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = rows.to(tl.int64)[:, None, None]
    row_scale = row // scale_rows
    if CHOSEN:
        matrix = tl.load(chosen + vector).to(tl.int64)
        row_scale += matrix * ((n_rows + scale_rows - 1) // scale_rows)
        row += matrix * n_rows
    lane = tl.arange(0, LANES)[None, None, :]
    x += (vector // slots) * width
    total = tl.zeros([ROWS, GROUPS, LANES], tl.float32)
    for start in range(0, groups, GROUPS):
        group = (start + tl.arange(0, GROUPS))[None, :, None]
        few = (rows[:, None, None] < n_rows) & (group < groups)
        mask = few & (lane < LANES)
        one, two = _numbers(FORMAT, low, high, sub, scale, row, row_scale, group, lane, groups, scale_width,
                            scale_columns, LANES, mask, few)  # fmt: skip
        first, second = _places(FORMAT, group, lane)
        # x in the shape of the tile: else the weights, not x, change their layout through shared memory
        nothing = (row * 0).to(tl.int32)
        total += one * tl.load(x + nothing + first, mask, 0).to(tl.float32)
        if PAIR:
            total += two * tl.load(x + nothing + second, mask, 0).to(tl.float32)
    sums = tl.sum(tl.sum(total, 2), 1)
    tl.store(out + vector * n_rows + rows, sums, rows < n_rows)


@triton.jit
def _expand(low, high, sub, scale, out, n_rows, width, groups, scale_rows, scale_width, scale_columns,
            FORMAT: tl.constexpr, PAIR: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr,
            LANES: tl.constexpr):  # fmt: skip
    """out[row][column], in the type of `out`."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = rows.to(tl.int64)[:, None, None]
    lane = tl.arange(0, LANES)[None, None, :]
    group = (tl.program_id(1) * GROUPS + tl.arange(0, GROUPS))[None, :, None]
    few = (rows[:, None, None] < n_rows) & (group < groups)
    mask = few & (lane < LANES)
    one, two = _numbers(FORMAT, low, high, sub, scale, row, row // scale_rows, group, lane, groups, scale_width,
                        scale_columns, LANES, mask, few)  # fmt: skip
    first, second = _places(FORMAT, group, lane)
    tl.store(out + row * width + first, one.to(out.dtype.element_ty), mask)
    if PAIR:
        tl.store(out + row * width + second, two.to(out.dtype.element_ty), mask)


def _tile(format_id: str, groups: int) -> int:
    return min(TILE_BYTES // LANES[format_id], triton.next_power_of_2(groups))


def fits(format_id: str, width: int) -> bool:
    """Whether rows of this width are whole groups."""
    return format_id in LANES and width % 32 == 0


def matvec(m: Packed, x: Tensor, chosen: Tensor | None = None, slots: int = 1) -> Tensor:
    """float32 [vectors][rows]: vector i is row i // slots of x ([..][width]), times matrix chosen[i] (all: the one
    matrix there is)."""
    n_vectors = len(x) * slots if chosen is None else len(chosen)
    out = x.new_empty((n_vectors, m.rows), dtype=_float32())
    one = m.format in ONE
    groups = m.width // LANES[m.format] if one else m.low.shape[1] // LANES[m.format]
    grid = (triton.cdiv(m.rows, ROWS), n_vectors)
    spare = m.low if chosen is None else chosen
    _matvec[grid](m.low, _or(m.high, m), _or(m.sub, m), m.scale, x, out, spare, m.rows, m.width, groups, m.scale_rows,
                  m.scale.shape[-1], m.scale_columns, slots, FORMAT=m.format, PAIR=not one, CHOSEN=chosen is not None,
                  ROWS=ROWS, GROUPS=_tile(m.format, groups), LANES=LANES[m.format])  # fmt: skip
    return out


def expand(m: Packed, out: Tensor) -> Tensor:
    """Fill out [rows][width] with the numbers of one matrix (`n` is 1)."""
    one = m.format in ONE
    groups = m.width // LANES[m.format] if one else m.low.shape[1] // LANES[m.format]
    tile = _tile(m.format, groups)
    grid = (triton.cdiv(m.rows, ROWS), triton.cdiv(groups, tile))
    _expand[grid](m.low, _or(m.high, m), _or(m.sub, m), m.scale, out, m.rows, m.width, groups, m.scale_rows,
                  m.scale.shape[-1], m.scale_columns, FORMAT=m.format, PAIR=not one, ROWS=ROWS, GROUPS=tile,
                  LANES=LANES[m.format])  # fmt: skip
    return out


def plain(values: Tensor) -> Packed:
    """A stack of matrices [n][rows][width] in 16 or 32 bits, as the kernels take them."""
    n, rows, width = values.shape
    return Packed("PLAIN", n, rows, width, values.view(n * rows, width), values)


def _or(plane: Tensor | None, m: Packed) -> Tensor:
    return m.low if plane is None else plane


def _float32():
    import torch

    return torch.float32
