"""The key-value cache on a PyTorch device: one ring per layer, in 16 (on a processor also 32) bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modeldb.errors import UnsupportedModel

if TYPE_CHECKING:
    from torch import Tensor

    from runner.hyper import Hyper

TYPES = {"f16": "float16", "bf16": "bfloat16", "f32": "float32"}


@dataclass(frozen=True)
class LayerCache:
    """keys [kv head][slot][width], values likewise; position p is in slot p mod n_slots. Latent layers have one head
    whose rows are the values too (their first part)."""

    keys: Tensor
    values: Tensor
    window: int
    own: bool = True  # no layer reads another's here

    @property
    def n_slots(self) -> int:
        return self.keys.shape[1]

    @property
    def is_ring(self) -> bool:
        return self.window > 0

    @property
    def key_row_bytes(self) -> int:
        return self.keys.nbytes // self.n_slots

    @property
    def value_row_bytes(self) -> int:
        return self.values.nbytes // self.n_slots

    @property
    def row_bytes(self) -> int:
        """Of a position's key and value."""
        return self.key_row_bytes + (0 if self.values is self.keys else self.value_row_bytes)


@dataclass(frozen=True)
class KvCache:
    """The caches of all layers, for `n_context` positions."""

    n_context: int
    layers: tuple[LayerCache, ...]

    @property
    def states(self) -> tuple[None, ...]:
        """Of recurrent layers, which this backend has none of."""
        return (None,) * len(self.layers)

    @property
    def allocated_bytes(self) -> int:
        return sum(c.keys.nbytes + (0 if c.values is c.keys else c.values.nbytes) for c in self.layers)


def allocate(h: Hyper, n_context: int, n_batch: int, kind: str, device: Any) -> KvCache:
    """Zeroed memory for `n_context` positions; windowed layers keep only the window and one batch. Raises
    UnsupportedModel for a type that this backend has no attention for."""
    import torch

    if kind not in TYPES:
        raise UnsupportedModel(
            f"a cache of type `{kind}` is not supported by the PyTorch backend; it has {', '.join(TYPES)}"
        )
    dtype = getattr(torch, TYPES[kind])
    layers = []
    for i in range(h.n_layers):
        n_slots = min(n_context, h.windows[i] + n_batch) if h.windows[i] else n_context
        n_kv = 1 if h.is_latent else h.n_kv_heads[i]
        keys = torch.zeros((n_kv, n_slots, h.head_dim), dtype=dtype, device=device)
        values = (
            keys if h.is_latent else torch.zeros((n_kv, n_slots, h.value_dim), dtype=dtype, device=device)
        )
        layers.append(LayerCache(keys, values, h.windows[i]))
    return KvCache(n_context, tuple(layers))


def bucket(n_tokens: int, n_context: int) -> int:
    """Slots that a step of fixed shape attends over: the least of a few lengths that hold `n_tokens`, at most an
    eighth more (256 at least), so that few graphs serve every length."""
    step = 256
    while n_tokens > 16 * step:
        step *= 2
    return min(n_context, -(-n_tokens // step) * step)


def mask(layer: LayerCache, n_seen: int, positions: Tensor) -> Tensor:
    """bool [token][slot]: which of the first `n_seen` slots (all of a ring) each token sees. `positions` are those of
    the newest tokens, all of which are in the cache; slots never written hold positions before the first."""
    import torch

    n = layer.n_slots if layer.is_ring else n_seen
    slots = torch.arange(n, device=positions.device)
    if not layer.is_ring:
        return slots <= positions[:, None]
    last = positions[-1]
    held = last - torch.remainder(last - slots, n)
    seen = (held <= positions[:, None]) & (held >= 0)
    return seen & (held > positions[:, None] - layer.window)
