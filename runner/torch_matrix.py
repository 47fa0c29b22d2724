"""Matrices on a device, and products with them: 16 or 32 bits as they are, FP8 and quantized blocks packed.

Which path a product takes (`Paths` decides once per engine, `describe` says it):
- 16 and 32 bits: the vendor's library.
- packed, up to FEW vectors: the Triton kernel reads the blocks; without Triton, tiles are expanded first.
- packed, more vectors (a prompt): tiles of rows are expanded to 16 bits, then the vendor's library; FP8 on devices
  with FP8 matrix units (compute capability 8.9 and up) is multiplied as it is, activations rounded per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from runner import torch_blocks as blocks
from runner.dequantize import dequantize
from runner.torch_blocks import FIELDS, FP8, FP8_LARGEST, Packed

if TYPE_CHECKING:
    from torch import Tensor

    from runner.weights import Weight

PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
FEW = 4  # vectors for which reading the blocks once per vector costs less than expanding them
FEW_PAIRS = 32  # (token, expert) pairs whose matrices are gathered rather than grouped
TILE_WEIGHTS = 1 << 25  # expanded at a time: 64 MiB in 16 bits
Matrix = Any  # a Tensor [rows][width] or [n][rows][width], or Packed


@dataclass(frozen=True)
class Paths:
    """What a device offers: Triton kernels, FP8 matrix products; `expanded` is the torch dtype of tiles."""

    kernels: bool
    fp8_products: bool
    expanded: Any


def paths(device: Any, expanded: Any, kernels: bool | None = None) -> Paths:
    """What this device offers. `kernels` overrides whether Triton is used."""
    import torch

    fp8 = False
    if device.type == "cuda" and torch.version.hip is None:
        fp8 = torch.cuda.get_device_capability(device) >= (8, 9)
    return Paths(has_triton(device) if kernels is None else kernels, fp8, expanded)


def has_triton(device: Any) -> bool:
    """Whether Triton is installed and compiles for this device (CUDA and ROCm)."""
    import importlib.util

    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


def load(weight: Weight, device: Any, dtype: Any, keep_packed: bool) -> Matrix:
    """A weight on the device: quantized blocks as they are where `keep_packed` and the format has planes; F32, F16 and
    BF16 in their own type unless `dtype` says another; all else expanded to `dtype`."""
    import torch

    rows, n = weight.rows, int(np.prod(weight.shape[2:], dtype=np.int64))
    if weight.format in FIELDS and keep_packed and weight.width % 32 == 0:
        return blocks.pack(weight.format, weight.data, weight.width, rows, n, device)
    shape = weight.shape[::-1]
    if weight.format == "BF16":
        values = torch.from_numpy(_writable(weight.data).view(np.int16)).view(torch.bfloat16)
    elif weight.format in PLAIN:
        values = torch.from_numpy(_writable(weight.data).view(PLAIN[weight.format]))
    else:
        values = torch.from_numpy(np.ascontiguousarray(dequantize(weight.format, weight.data)))
    return values.reshape(shape).to(device, dtype or values.dtype)


def _writable(data: np.ndarray) -> np.ndarray:
    """A copy of what a file maps: PyTorch takes writable memory only."""
    return np.array(data)


def rows_of(m: Matrix, ids: Tensor) -> Tensor:
    """float32 [len(ids)][width]: an embedding's rows."""
    return blocks.pick(m, ids) if isinstance(m, Packed) else m[ids].float()


def n_bytes(m: Matrix) -> int:
    return int(m.nbytes)


def product(m: Matrix, x: Tensor, p: Paths) -> Tensor:
    """float32 [vectors][rows] of x [vectors][width] and a matrix."""
    if not isinstance(m, Packed):
        return (x.to(m.dtype) @ m.T).float()
    if p.kernels and len(x) <= FEW:
        from runner import torch_triton

        return torch_triton.matvec(m, x.to(p.expanded).contiguous())
    if m.format == FP8 and p.fp8_products and fits_fp8_product(m):
        return fp8_product(m, x)
    return _by_tiles(m, x, p, 0)


def _by_tiles(m: Packed, x: Tensor, p: Paths, matrix: int) -> Tensor:
    """x W' by tiles of rows in 16 bits (float32 on a processor)."""
    unit = m.scale_rows if 1 < m.scale_rows < m.rows else 128  # a tile starts where a scale does
    step = max(unit, TILE_WEIGHTS // m.width // unit * unit)
    out = x.new_empty((len(x), m.rows), dtype=_float32())
    few = x.to(p.expanded)
    for first in range(0, m.rows, step):
        tile = blocks.part(m, first, min(step, m.rows - first), matrix)
        out[:, first : first + tile.rows] = few @ expanded(tile, p).T
    return out


def expanded(m: Packed, p: Paths) -> Tensor:
    """[rows][width] in `p.expanded`, of one matrix."""
    if not p.kernels:
        return blocks.expand(m).to(p.expanded)
    from runner import torch_triton

    return torch_triton.expand(m, m.low.new_empty((m.rows, m.width), dtype=p.expanded))


# -- FP8 products ----------------------------------------------------------------------------------------------


def fits_fp8_product(m: Packed) -> bool:
    """Whether `torch._scaled_mm` takes it: one scale per matrix or per row, sides that are multiples of 16."""
    return m.n == 1 and m.scale_columns == m.width and m.rows % 16 == 0 and m.width % 16 == 0


def fp8_product(m: Packed, x: Tensor) -> Tensor:
    """float32 [vectors][rows]; activations are rounded to E4M3 with one scale per vector (per matrix where the
    weights have one scale)."""
    import torch

    codes = m.low.view(torch.float8_e4m3fn).T
    largest = x.float().abs()
    if m.scale.numel() == 1:
        scale = (largest.amax() / FP8_LARGEST).clamp(min=1e-12)
        weight_scale = m.scale.reshape(())
    else:
        scale = (largest.amax(-1, keepdim=True) / FP8_LARGEST).clamp(min=1e-12)
        weight_scale = m.scale.repeat_interleave(m.scale_rows, 0)[: m.rows].T.contiguous()
    rounded = (x.float() / scale).clamp(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn)
    out = torch._scaled_mm(rounded, codes, scale_a=scale, scale_b=weight_scale, out_dtype=torch.bfloat16)
    return out.float()


# -- experts ---------------------------------------------------------------------------------------------------


def chosen_product(m: Matrix, x: Tensor, chosen: Tensor, slots: int, p: Paths) -> Tensor:
    """float32 [pairs][rows]: pair i is row i // slots of x times matrix chosen[i] ([pairs] int64, on the device). No
    number goes to the host."""
    if p.kernels:
        from runner import torch_triton

        stack = m if isinstance(m, Packed) else torch_triton.plain(m)
        kind = p.expanded if isinstance(m, Packed) else m.dtype
        return torch_triton.matvec(stack, x.to(kind).contiguous(), chosen, slots)
    if isinstance(m, Packed):
        rows = (chosen[:, None] * m.rows + _arange(m.rows, chosen)).reshape(-1)
        picked = blocks.pick(m, rows).view(len(chosen), m.rows, m.width).to(p.expanded)
    else:
        picked = m.index_select(0, chosen)
    pairs = x.repeat_interleave(slots, 0)[:, :, None].to(picked.dtype)
    return (picked @ pairs)[..., 0].float()


def grouped_product(m: Matrix, x: Tensor, ends: Tensor, p: Paths) -> Tensor:
    """float32 [pairs][rows] of x [pairs][width] sorted by matrix; matrix i has the rows before ends[i] (int32). Only
    the library's grouped product leaves `ends` on the device."""
    import torch

    if not isinstance(m, Packed) and m.dtype == torch.bfloat16 and _has_grouped(m):
        return torch._grouped_mm(x.to(m.dtype), m.transpose(1, 2), offs=ends).float()
    stops = ends.tolist()
    counts = [b - a for a, b in zip([0, *stops], stops, strict=False)]
    out, first = x.new_empty((len(x), m.rows if isinstance(m, Packed) else m.shape[1]), dtype=_float32()), 0
    for matrix, n in enumerate(counts):
        if n:
            some = x[first : first + n]
            if isinstance(m, Packed):
                out[first : first + n] = _by_tiles(m, some, p, matrix)
            else:
                out[first : first + n] = some.to(m.dtype) @ m[matrix].T
        first += n
    return out


def _has_grouped(m: Tensor) -> bool:
    """Whether PyTorch has a grouped product here (private until 2.9; widths in steps of 16 bytes)."""
    import torch

    if not hasattr(torch, "_grouped_mm") or m.shape[1] % 8 or m.shape[2] % 8:
        return False
    return m.device.type == "cuda" and torch.cuda.get_device_capability(m.device) >= (9, 0)


def _arange(n: int, like: Tensor) -> Tensor:
    import torch

    return torch.arange(n, device=like.device)


def _float32() -> Any:
    import torch

    return torch.float32


def describe(formats: dict[str, str], p: Paths) -> str:
    """One line: which formats are read packed, and by what; which were expanded. `formats`: format -> `packed`,
    `expanded` or `own`."""
    said = []
    packed = sorted(f for f, how in formats.items() if how == "packed")
    wide = str(p.expanded).removeprefix("torch.")
    if packed:
        by = f"read packed by a Triton kernel, prompts by tiles expanded to {wide}"
        said.append(f"{', '.join(packed)} " + (by if p.kernels else f"kept packed, tiles expanded to {wide}"))
        if FP8 in packed and p.fp8_products:
            said.append("FP8 prompts multiplied in FP8 where scales allow")
    if opened := sorted(f for f, how in formats.items() if how == "expanded"):
        said.append(f"{', '.join(opened)} expanded to {wide} when loaded")
    return "; ".join(said)
