"""Bytes that many tensors of a sampled run share, so that a layer of any size is there in a second.

Fresh memory costs more time than what is written to it. Once some hundred megabytes of a format are made, tensors of
equal size take those of earlier layers in turn, and a matrix larger than a piece is the same piece over and over.
Between two reads of a byte lie several times what a cache holds, so reads are from memory as they are in the whole
model: with 32 MiB of cache, steps over 96 MB and over 1.5 GB read at the same rate. Tensors lie in memory as those of
`runner.synthetic` do, for pages of the system's usual size read up to 15% slower than large ones (both Zen 5, 2026).
"""

from __future__ import annotations

from math import prod

import numpy as np

from runner import synthetic
from runner.memory import Arena
from runner.weights import Weight, row_bytes

Held = tuple[str, str, tuple[int, ...]]  # a tensor's name, format and shape

POOL_BYTES = 384 << 20  # of a format, before tensors share
EXPERT_BYTES = 768 << 20  # the same of experts, as long as tokens read less than half a pool of them
PIECE_BYTES = 128 << 20  # of a matrix that is made of pieces
LOOKED_UP_BYTES = 16 << 20  # of embeddings that are only looked up
APART_BYTES = 1 << 20  # smaller tensors have bytes of their own
MOST_PIECES = 4096


class Pool:
    """Makes the tensors of a stack, one after another. `tied`: embeddings are the head too, and read whole.
    `expert_share`: of a layer's experts, that a token reads."""

    def __init__(self, tied: bool, expert_share: float = 1.0, seed: int = 0) -> None:
        self.made: dict[tuple[bool, str], int] = {}  # bytes by format, of experts apart
        self._tied = tied
        self._expert_bytes = min(EXPERT_BYTES, POOL_BYTES / 2 / expert_share)
        self._rng, self._arena = np.random.default_rng(seed), Arena()
        self._held: dict[tuple[str, str, int], list[np.ndarray]] = {}
        self._turns: dict[tuple[str, str, int], int] = {}

    def tensor(self, name: str, fmt: str, shape: tuple[int, ...]) -> Weight:
        """The tensor, of shared bytes where it is a large matrix."""
        size = row_bytes(fmt, shape[0]) * prod(shape[1:])
        if not synthetic.is_matrix(name, shape) or size < APART_BYTES:
            return synthetic.tensor(name, fmt, shape, self._rng, self._arena)
        looked_up = name == "per_layer_token_embd.weight" or (name == "token_embd.weight" and not self._tied)
        n_pieces = _pieces(fmt, shape, LOOKED_UP_BYTES if looked_up else PIECE_BYTES)
        # a token's experts are the same in each of a layer's tensors, so these may not share
        key = (name.split(".")[-2] if len(shape) > 2 else "", fmt, size // n_pieces)
        data = self._bytes(key, shape[0])
        if n_pieces > 1:
            data = np.broadcast_to(data, (n_pieces, len(data)))
        return Weight(name, fmt, shape, data)

    def _bytes(self, key: tuple[str, str, int], width: int) -> np.ndarray:
        """New bytes while the format has few, else those of an earlier tensor."""
        stacked, fmt, size = key
        held, made = self._held.setdefault(key, []), self.made.get((stacked > "", fmt), 0)
        if not held or made + size <= (self._expert_bytes if stacked else POOL_BYTES):
            rows = size // row_bytes(fmt, width)
            out = self._arena.bytes(size)
            held.append(synthetic.blocks(fmt, width, rows, self._rng, width**-0.5, out))
            self.made[stacked > "", fmt] = made + size
            return held[-1]
        self._turns[key] = turn = self._turns.get(key, -1) + 1
        return held[turn % len(held)]


def _pieces(fmt: str, shape: tuple[int, ...], most_bytes: int) -> int:
    """How many equal runs of rows a matrix is made of, none above `most_bytes`; stacked ones are not cut."""
    row, rows = row_bytes(fmt, shape[0]), shape[1]
    if len(shape) > 2 or row * rows <= most_bytes:
        return 1
    return next((n for n in range(2, MOST_PIECES) if rows % n == 0 and row * rows // n <= most_bytes), 1)
