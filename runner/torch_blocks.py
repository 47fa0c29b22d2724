"""Quantized matrices as tensors on a device: the blocks of a file, field by field, and their numbers.

A block of a ggml format holds codes, their high bits, scales of sub-blocks and scales of the block. A device reads
each field as one contiguous matrix (a plane), in as many bytes as the file has. FP8 (E4M3) is kept in the same
form: one plane of codes, one of float32 scales.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from modeldb.errors import BrokenFile
from runner.dequantize import FORMATS

if TYPE_CHECKING:
    from torch import Tensor

FP8 = "F8_E4M3"
# field -> (first byte, bytes, type of its numbers) in a block; ggml/src/ggml-common.h of llama.cpp
FIELDS: dict[str, dict[str, tuple[int, int, str]]] = {
    "Q4_0": {"scale": (0, 2, "float16"), "low": (2, 16, "uint8")},
    "Q8_0": {"scale": (0, 2, "float16"), "low": (2, 32, "int8")},
    "MXFP4": {"scale": (0, 1, "uint8"), "low": (1, 16, "uint8")},
    "Q4_K": {"scale": (0, 4, "float16"), "sub": (4, 12, "uint8"), "low": (16, 128, "uint8")},
    "Q5_K": {"scale": (0, 4, "float16"), "sub": (4, 12, "uint8"), "high": (16, 32, "uint8"),
             "low": (48, 128, "uint8")},
    "Q6_K": {"low": (0, 128, "uint8"), "high": (128, 64, "uint8"), "sub": (192, 16, "int8"),
             "scale": (208, 2, "float16")},
}  # fmt: skip
MXFP4_CODES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # in halves
FP8_LARGEST = 448.0  # of E4M3: arXiv 2209.05433, table 1


@dataclass(frozen=True)
class Packed:
    """`n` matrices [rows][width] in `format`; planes are [n * rows][...] (FP8 scales: [n * scale rows][columns],
    where one scale serves `scale_rows` rows and `scale_columns` columns)."""

    format: str
    n: int
    rows: int
    width: int
    low: Tensor
    scale: Tensor
    high: Tensor | None = None
    sub: Tensor | None = None
    scale_rows: int = 1
    scale_columns: int = 1

    @property
    def nbytes(self) -> int:
        planes = (self.low, self.scale, self.high, self.sub)
        return sum(p.nbytes for p in planes if p is not None)


def pack(format_id: str, data: np.ndarray, width: int, rows: int, n: int, device: Any) -> Packed:
    """Planes on the device, of a tensor's bytes as its file holds them."""
    import torch

    n_weights, n_bytes = FORMATS[format_id]
    blocks = data.reshape(n * rows, width // n_weights, n_bytes)

    def plane(first: int, size: int, kind: str) -> Tensor:
        part = np.ascontiguousarray(blocks[:, :, first : first + size]).reshape(n * rows, -1)
        return torch.from_numpy(part.view(kind)).to(device)

    planes: dict[str, Any] = {name: plane(*where) for name, where in FIELDS[format_id].items()}
    return Packed(format_id, n, rows, width, **planes)


def pack_fp8(codes: Tensor, scale: Tensor, rows: int, width: int, n: int = 1, name: str = "") -> Packed:
    """E4M3 codes (uint8 [n * rows][width]) under float32 scales: one number, [n * rows][1], or one per square block
    ([n * blocks][blocks]). Raises BrokenFile for scales of another shape, or numbers that are not finite."""
    codes = codes.reshape(n * rows, width)
    scale = scale.float().reshape(1, 1) if scale.numel() == 1 else scale.float().reshape(-1, scale.shape[-1])
    if scale.shape[0] % n and n > 1 and scale.numel() > 1:
        raise BrokenFile(f"{name}: FP8 scales of shape {tuple(scale.shape)} do not serve {n} matrices")
    high, wide = max(1, scale.shape[0] // n), scale.shape[1]
    if scale.numel() == 1:
        per_row, per_column, scale = rows, width, scale.expand(n, 1).contiguous()
    elif wide == 1:
        per_row, per_column = rows // high if rows % high == 0 else 0, width
    else:
        per_row = per_column = _block(rows, high, width, wide)
    if not per_row:
        raise BrokenFile(
            f"{name}: FP8 scales of shape {tuple(scale.shape)} do not serve {rows} rows of {width} numbers"
        )
    if bool(((codes & 127) == 127).any()) or not bool(scale.isfinite().all()):
        raise BrokenFile(f"{name}: FP8 numbers that are not finite")
    return Packed(FP8, n, rows, width, codes, scale, scale_rows=per_row, scale_columns=per_column)


def _block(rows: int, high: int, width: int, wide: int) -> int:
    """The side of the square blocks that cover [rows][width] in high x wide pieces; 0 for none. Sides are powers of
    two (128 in DeepSeek-V3, arXiv 2412.19437, section 3.3)."""
    return next((s for s in (128, 64, 32) if -(-rows // s) == high and -(-width // s) == wide), 0)


def quantize_fp8(values: Tensor, per_row: bool = True) -> tuple[Tensor, Tensor]:
    """(codes uint8, scales float32 [rows][1] or [1][1]) of float numbers [rows][width]."""
    import torch

    largest = values.abs().amax(-1, keepdim=True) if per_row else values.abs().amax().reshape(1, 1)
    scale = (largest.float() / FP8_LARGEST).clamp(min=1e-12)
    codes = (values.float() / scale).clamp(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn)
    return codes.view(torch.uint8), scale


# -- numbers, by tensor operations: the path of devices without Triton -------------------------------------------


def expand(m: Packed) -> Tensor:
    """float32 [n * rows][width]. Bit-equal to `runner.dequantize` for the ggml formats."""
    return (_fp8 if m.format == FP8 else _EXPANDED[m.format])(m)


def pick(m: Packed, rows: Tensor) -> Tensor:
    """float32 [len(rows)][width]: only these of all n * rows rows are expanded."""
    if m.format == FP8:
        per = -(-m.rows // m.scale_rows)
        scale = m.scale[rows // m.rows * per + rows % m.rows // m.scale_rows]
        return _fp8(Packed(FP8, 1, len(rows), m.width, m.low[rows], scale, scale_columns=m.scale_columns))
    high, sub = (None if p is None else p[rows] for p in (m.high, m.sub))
    return expand(Packed(m.format, 1, len(rows), m.width, m.low[rows], m.scale[rows], high, sub))


def part(m: Packed, first: int, n: int, matrix: int = 0) -> Packed:
    """`n` rows from `first` of one matrix, as a view; of FP8 `first` starts a row of scales."""
    at = matrix * m.rows + first
    if m.format == FP8:
        per, s = -(-m.rows // m.scale_rows), m.scale_rows
        scale = m.scale[matrix * per + first // s : matrix * per + -(-(first + n) // s)]
        rows_per_scale = min(s, n) if len(scale) == 1 else s
        return Packed(
            FP8, 1, n, m.width, m.low[at : at + n], scale, None, None, rows_per_scale, m.scale_columns
        )
    some = slice(at, at + n)
    high, sub = (None if p is None else p[some] for p in (m.high, m.sub))
    return Packed(m.format, 1, n, m.width, m.low[some], m.scale[some], high, sub)


def _fp8(m: Packed) -> Tensor:
    import torch

    values = m.low.view(torch.float8_e4m3fn).float().view(m.n, m.rows, m.width)
    scale = m.scale.view(m.n, -1, m.scale.shape[1])
    scale = scale.repeat_interleave(m.scale_rows, 1)[:, : m.rows]
    return (values * scale.repeat_interleave(m.scale_columns, 2)[..., : m.width]).view(-1, m.width)


def _halves(m: Packed, lanes: int) -> Tensor:
    """Codes of 4 bits as [rows][groups][2 * lanes]: low halves of `lanes` bytes, then their high halves."""
    import torch

    low = m.low.view(len(m.low), -1, lanes)
    return torch.cat((low & 15, low >> 4), -1)


def _q4_0(m: Packed) -> Tensor:
    return (m.scale.float()[..., None] * (_halves(m, 16).float() - 8)).flatten(1)


def _q8_0(m: Packed) -> Tensor:
    return (m.scale.float()[..., None] * m.low.view(len(m.low), -1, 32).float()).flatten(1)


def _mxfp4(m: Packed) -> Tensor:
    import torch

    table = torch.tensor(MXFP4_CODES, dtype=torch.float32, device=m.low.device)
    e = m.scale.int()
    bits = torch.where(e < 2, (e.clamp(max=1) + 1) << 21, (e.clamp(min=1) - 1) << 23)
    return (bits.view(torch.float32)[..., None] * table[_halves(m, 16).int()]).flatten(1)


def _sub_scales(m: Packed) -> tuple[Tensor, Tensor]:
    """Scales and minima of the 8 sub-blocks of 32: [rows][8 * blocks][1]."""
    import torch

    assert m.sub is not None
    x, y, z = m.sub.view(len(m.sub), -1, 3, 4).unbind(2)
    scale = torch.cat((x & 63, (z & 15) | ((x >> 6) << 4)), -1).float()
    least = torch.cat((y & 63, (z >> 4) | ((y >> 6) << 4)), -1).float()
    both = m.scale.float().view(len(m.scale), -1, 2)
    return (both[..., :1] * scale).flatten(1)[..., None], (both[..., 1:] * least).flatten(1)[..., None]


def _q4_k(m: Packed) -> Tensor:
    scale, least = _sub_scales(m)
    return (scale * _halves(m, 32).float().view(len(m.low), -1, 32) - least).flatten(1)


def _q5_k(m: Packed) -> Tensor:
    import torch

    assert m.high is not None
    scale, least = _sub_scales(m)
    bit = torch.arange(8, device=m.low.device, dtype=torch.uint8)[:, None]
    fifth = ((m.high.view(len(m.high), -1, 1, 32) >> bit) & 1) << 4
    codes = _halves(m, 32).view(len(m.low), -1, 32) | fifth.reshape(len(m.low), -1, 32)
    return (scale * codes.float() - least).flatten(1)


def _q6_k(m: Packed) -> Tensor:
    import torch

    assert m.high is not None
    assert m.sub is not None
    n = len(m.low)
    shift = torch.tensor([0, 2, 4, 6], device=m.low.device, dtype=torch.uint8)[:, None]
    high = ((m.high.view(n, -1, 1, 32) >> shift) & 3) << 4
    codes = (_halves(m, 64).view(n, -1, 4, 32) | high).float() - 32
    scale = m.scale.float()[..., None] * m.sub.view(n, -1, 16).float()
    return (scale.view(n, -1, 1) * codes.view(n, -1, 16)).flatten(1)


_EXPANDED = {"Q4_0": _q4_0, "Q8_0": _q8_0, "MXFP4": _mxfp4, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k}
