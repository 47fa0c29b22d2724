"""FP8 (E4M3) matrices of seeded weights: codes, and the float32 scales that checkpoints store beside them.

The PyTorch backend multiplies with these; the compiled kernels do not.
"""

from __future__ import annotations

from functools import cache
from math import prod, sqrt

import numpy as np

from runner.weights import Weight

FORMAT = "F8_E4M3"  # as safetensors calls it
# modeldb's formats: a scale per matrix, per row, per square block
SCALED = ("fp8", "fp8-channel", "fp8-block")
BLOCK = 128  # side of the square blocks: DeepSeek-V3, arXiv 2412.19437, section 3.3
LARGEST = 448.0  # of E4M3: arXiv 2209.05433, table 1
PATTERN = (1 << 20) - 1  # codes before they repeat; odd, so that rows differ
DEVIATIONS = 4.0  # the largest code stands for so many standard deviations


def scale_shape(kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """ggml order (fastest first) of the scales of a matrix (width, rows) or of a stack of them."""
    width, rows, *stack = shape
    one = {"fp8": (1,), "fp8-channel": (1, rows), "fp8-block": (-(-width // BLOCK), -(-rows // BLOCK))}[kind]
    return (*one, *stack)


def scale_bytes(kind: str, shape: tuple[int, ...]) -> int:
    """Bytes of those scales."""
    return 4 * prod(scale_shape(kind, shape))


@cache
def _positive() -> np.ndarray:
    """The 127 finite numbers from zero that E4M3 holds, by code: 4 bits of exponent (bias 7), 3 of fraction."""
    code = np.arange(127)
    exponent, fraction = code >> 3, code & 7
    tiny = fraction / 8 * 2.0**-6
    return np.where(exponent == 0, tiny, (1 + fraction / 8) * 2.0 ** (exponent - 7.0))


def rounded(values: np.ndarray) -> np.ndarray:
    """uint8 codes of the numbers nearest to `values`, those beyond the largest cut to it."""
    numbers = _positive()
    nearest = np.searchsorted((numbers[1:] + numbers[:-1]) / 2, np.abs(values))
    return (nearest | np.where(values < 0, 128, 0)).astype(np.uint8)


def matrix(name: str, kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[Weight, Weight]:
    """(codes, scales) of a matrix or a stack of them, numbers of standard deviation 1 / sqrt(width)."""
    codes = rounded(rng.standard_normal(min(PATTERN, prod(shape))) * LARGEST / DEVIATIONS)
    size = DEVIATIONS / LARGEST / sqrt(shape[0])
    scales = np.full(prod(scale_shape(kind, shape)), size, np.float32)
    return (
        Weight(name, FORMAT, shape, np.resize(codes, prod(shape))),
        Weight(f"{name}_scale", "F32", scale_shape(kind, shape), scales.view(np.uint8)),
    )
