"""Arrays that begin with a cache line."""

from __future__ import annotations

from typing import Any

import numpy as np

LINE_BYTES = 64


def zeros(n: int, kind: Any) -> np.ndarray:
    """`n` zeros of a type. Arrays of `numpy.zeros` begin 16 bytes into a line, so that each vector of 512 bits lies on
    two: prompts took 5 to 7% longer (Zen 5, 2026)."""
    size = n * np.dtype(kind).itemsize
    raw = np.zeros(size + LINE_BYTES, np.uint8)
    start = -raw.ctypes.data % LINE_BYTES
    return raw[start : start + size].view(kind)
