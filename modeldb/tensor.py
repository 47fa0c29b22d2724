"""The atoms of a model: tensors, formats and caches."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import Literal

Role = Literal[
    "embedding",
    "head",
    "attention",
    "linear",
    "dense",
    "experts",
    "shared_experts",
    "router",
    "norm",
    "vision",
    "audio",
    "draft",
    "idle",  # in memory, but read by no step: keys and values of layers that read those of another
    "other",
]


@dataclass(frozen=True, slots=True)
class Format:
    """How the numbers of a tensor are stored: `block_weights` of them in `block_bytes` bytes.

    `overhead_bits` are bits per weight outside the blocks (group scales and zeros of GPTQ, AWQ, MLX ...),
    `row_bits` bits per output row (per-channel scales).
    """

    id: str
    block_weights: int
    block_bytes: int
    overhead_bits: float = 0.0
    source: str = ""
    row_bits: float = 0.0

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight, per-row scales left out."""
        return 8 * self.block_bytes / self.block_weights + self.overhead_bits

    def n_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of this shape (ggml order) stored in this format."""
        n = prod(shape)
        blocks = -(-n // self.block_weights) * self.block_bytes
        return blocks + ceil((n * self.overhead_bits + n // shape[0] * self.row_bits) / 8)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One named array. `shape` is in ggml order (fastest first): a matrix is (inputs, outputs),
    stacked experts
    (inputs, outputs, experts). Names follow GGUF (`blk.0.attn_q.weight`), whatever the container."""

    name: str
    shape: tuple[int, ...]
    role: Role
    layer: int | None = None  # None outside the layers
    format: str | None = None  # set only where the file or the model fixes it

    @property
    def n_elements(self) -> int:
        return prod(self.shape)


CacheKind = Literal["full", "window", "chunk", "latent", "state", "cross"]


@dataclass(frozen=True, slots=True)
class Cache:
    """What one layer keeps per sequence.

    Keys and values hold `k_elements` and `v_elements` numbers per cached token, for at most `window_tokens`
    tokens when that is set; `index_elements` per token belong to a sparse-attention indexer; recurrent layers
    hold `state_elements` numbers in all (convolution tail and state), kept in float32 by llama.cpp.
    `latent` caches (MLA) have k_elements = kv_rank + rope_dim and v_elements = 0.
    """

    layer: int
    kind: CacheKind
    k_elements: int = 0
    v_elements: int = 0
    window_tokens: int | None = None
    state_elements: int = 0
    index_elements: int = 0
