"""Bytes that many tensors of a sampled run share, so that a layer of any size is there in a second.

Fresh memory costs more time than what is written to it. Tensors of a format lie one behind another in a pool of a few
hundred megabytes, from its start again where it ends; one larger than the pool is made of pieces that lie on the same
bytes. Between two reads of a byte lies the pool, several times what a cache holds, so reads are from memory as they
are in the whole model.
"""

from __future__ import annotations

from collections.abc import Collection
from math import prod

import numpy as np
from numpy.lib.stride_tricks import as_strided

from runner import synthetic
from runner.dequantize import FORMATS
from runner.weights import Weight, row_bytes

POOL_BYTES = 384 << 20  # of a format
LOOKED_UP_BYTES = 16 << 20  # of embeddings that are only looked up
APART_BYTES = 1 << 20  # smaller tensors have bytes of their own
MOST_PIECES = 1024
LINE = 64

Held = tuple[str, str, tuple[int, ...]]  # a tensor's name, format and shape


class Pool:
    """Shared bytes for the given tensors, of which none is needed twice at a time. `width`: of most inputs."""

    def __init__(self, tensors: Collection[Held], width: int, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._width = width
        self._looked_up = "token_embd.weight" if any(t[0] == "output.weight" for t in tensors) else ""
        wanted: dict[str, list[int]] = {}
        for name, fmt, shape in tensors:
            if _shares(name, fmt, shape):
                wanted.setdefault(fmt, []).append(_padded(fmt, self._least_bytes(name, fmt, shape)))
        self._sizes = {fmt: min(sum(sizes), max(POOL_BYTES, *sizes)) for fmt, sizes in wanted.items()}
        self._held: dict[str, np.ndarray] = {}
        self._next = dict.fromkeys(wanted, 0)

    def tensor(self, name: str, fmt: str, shape: tuple[int, ...]) -> Weight:
        """The tensor, of bytes in the pool where it is large."""
        if not _shares(name, fmt, shape):
            return synthetic.tensor(name, fmt, shape, self._rng)
        whole, needed = row_bytes(fmt, shape[0]) * prod(shape[1:]), self._least_bytes(name, fmt, shape)
        size = self._sizes[fmt]
        if self._next[fmt] + needed > size:
            self._next[fmt] = 0
        start = self._next[fmt]
        data = self._bytes(fmt)[start : start + needed]
        self._next[fmt] += _padded(fmt, needed)
        if needed < whole:
            data = as_strided(data, (whole // needed, needed), (0, 1), writeable=False)
        return Weight(name, fmt, shape, data)

    def _bytes(self, fmt: str) -> np.ndarray:
        """All bytes of a format's pool, made when first asked for."""
        if fmt not in self._held:
            n_weights, n_bytes = FORMATS[fmt]
            rows = self._sizes[fmt] // n_bytes
            self._held[fmt] = synthetic.blocks(fmt, n_weights, rows, self._rng, self._width**-0.5)
        return self._held[fmt]

    def _least_bytes(self, name: str, fmt: str, shape: tuple[int, ...]) -> int:
        """Bytes that must lie in one piece: experts all, of a larger matrix the largest even part that fits."""
        row, rows = row_bytes(fmt, shape[0]), prod(shape[1:])
        most = LOOKED_UP_BYTES if name == self._looked_up else POOL_BYTES
        if len(shape) > 2 or row * rows <= most:
            return row * rows
        parts = next((n for n in range(2, MOST_PIECES) if rows % n == 0 and row * rows // n <= most), 1)
        return row * rows // parts


def _shares(name: str, fmt: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is a large matrix of ordinary numbers."""
    return synthetic.is_matrix(name, shape) and row_bytes(fmt, shape[0]) * prod(shape[1:]) >= APART_BYTES


def _padded(fmt: str, n_bytes: int) -> int:
    """To whole blocks that end with a cache line."""
    unit = FORMATS[fmt][1] * LINE
    return -(-n_bytes // unit) * unit
