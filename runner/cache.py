"""What a sequence keeps: per layer a ring of keys and values in float16, Q8_0 or Q4_0, a recurrent state in float32,
or both."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from modeldb.errors import UnsupportedModel
from runner.hyper import Hyper
from runner.memory import zeros
from runner.weights import row_bytes

BLOCK = 32  # numbers that attention's kernels read together, and that quantized rows are made of
TYPES = {"f16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0"}


@dataclass(frozen=True)
class LayerCache:
    """Keys and values of `n_slots` positions, head by head: [head][slot][width]; position p is in slot p mod n_slots.
    Latent layers keep one row per position, whose first part is the value too. Row bytes are of all heads;
    `index_keys` are what an indexer looks at, each of `index_tokens` positions; so many have a row in `further` too,
    where there are such."""

    n_heads: int
    n_slots: int
    key_width: int
    value_width: int
    keys: np.ndarray = field(repr=False)
    values: np.ndarray = field(repr=False)
    key_row_bytes: int
    value_row_bytes: int
    own: bool = True  # False: these are the rows of another layer
    index_keys: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8), repr=False)
    index_row_bytes: int = 0
    index_tokens: int = 1
    further: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8), repr=False)
    n_further: int = 0

    @property
    def row_bytes(self) -> int:
        """Of a position's key and value."""
        return self.key_row_bytes + (0 if self.values is self.keys else self.value_row_bytes)

    def by_head(self, rows: np.ndarray) -> np.ndarray:
        """Keys or values as [head][slot][byte]."""
        return rows.reshape(max(1, self.n_heads), self.n_slots, -1)


@dataclass(frozen=True)
class LayerState:
    """A recurrent layer's last inputs [taps - 1][channel] and states [head][row][number]; of an indexer, the keys and
    gates of tokens that no index key stands for yet; for compressed rows, values and scores of the last tokens."""

    tail: np.ndarray = field(repr=False)
    state: np.ndarray = field(repr=False)

    @property
    def n_bytes(self) -> int:
        return self.tail.nbytes + self.state.nbytes


@dataclass(frozen=True)
class KvCache:
    """The caches of all layers, for `n_context` positions. A layer that does not attend has rows of no bytes; one
    that does not recur has no state."""

    n_context: int
    key_format: str
    value_format: str
    layers: tuple[LayerCache, ...]
    states: tuple[LayerState | None, ...]

    @property
    def state_bytes(self) -> int:
        """Bytes of the recurrent states, however many tokens they have seen."""
        return sum(s.n_bytes for s in self.states if s)

    @property
    def forgets(self) -> bool:
        """Whether states were overwritten that tokens before the last ones had."""
        return any(self.states)

    @property
    def allocated_bytes(self) -> int:
        return sum(self.layer_bytes(i) for i in range(len(self.layers)))

    def layer_bytes(self, i: int) -> int:
        """Allocated bytes of layer i."""
        c, state = self.layers[i], self.states[i]
        rows = c.keys.nbytes + (0 if c.values is c.keys else c.values.nbytes)
        return (rows + c.index_keys.nbytes + c.further.nbytes if c.own else 0) + (
            state.n_bytes if state else 0
        )

    def bytes_at(self, n_tokens: int) -> int:
        """Bytes that hold `n_tokens` tokens (rings hold at most their length)."""
        total = self.state_bytes
        for c in self.layers:
            total += min(n_tokens, c.n_slots) * c.row_bytes * c.own
            behind = c.index_row_bytes + (c.key_row_bytes if c.n_further else 0)
            total += min(n_tokens, self.n_context) // c.index_tokens * behind * c.own
        return total

    def forget(self) -> None:
        """States as before the first token."""
        for state in self.states:
            if state:
                state.tail.fill(0)
                state.state.fill(0)

    def copy_states(self) -> list[np.ndarray]:
        """The states now, for `put_states`."""
        return [a.copy() for s in self.states if s for a in (s.tail, s.state)]

    def put_states(self, kept: list[np.ndarray]) -> None:
        arrays = [a for s in self.states if s for a in (s.tail, s.state)]
        for own, values in zip(arrays, kept, strict=True):
            own[:] = values


def padded(width: int) -> int:
    """The width of heads as kernels read them."""
    return -(-width // BLOCK) * BLOCK


def _rows(n_bytes: int) -> np.ndarray:
    """Zeroed bytes, with readable zeros behind them for the last head's padding. On small pages: a context that is not
    used takes no memory."""
    return zeros(n_bytes + 2 * BLOCK, np.uint8, large=False)[:n_bytes]


def allocate(
    h: Hyper, n_context: int, n_batch: int, key_type: str = "f16", value_type: str = "f16"
) -> KvCache:
    """Memory for `n_context` positions; windowed layers keep only the window and one batch. Raises
    UnsupportedModel
    for a cache type, or a width that its blocks do not divide."""
    for kind in (key_type, value_type):
        if kind not in TYPES:
            raise UnsupportedModel(
                f"a cache of type `{kind}` is not supported by the runner; it has {', '.join(TYPES)}"
            )
    key_format, value_format = TYPES[key_type], TYPES[value_type]
    if h.is_latent or h.compressed:
        value_format = key_format
    one = h.is_latent or h.compressed is not None  # keys are values
    for width in {w for x in h.heads for w in (x.width, x.value_width)}:
        if width % BLOCK and (one or {key_format, value_format} != {"F16"}):
            raise UnsupportedModel(
                f"attention heads of width {width} are not supported by the runner with a cache of blocks "
                f"of {BLOCK}, nor latent ones; it has f16 for them"
            )
    layers: list[LayerCache] = []
    states = tuple(_state(h, i) for i in range(h.n_layers))
    for i in range(h.n_layers):
        if h.sources[i] != i:
            layers.append(replace(layers[h.sources[i]], own=False))
            continue
        n_slots = min(n_context, h.windows[i] + n_batch) if h.windows[i] else n_context
        n_kv = min(h.n_kv_heads[i], 1) if h.is_latent else h.n_kv_heads[i]
        key_width, value_width = n_kv * h.heads[i].width, n_kv * h.heads[i].value_width
        key_row, value_row = row_bytes(key_format, key_width), row_bytes(value_format, value_width)
        keys = _rows(n_slots * key_row)
        values = keys if one else _rows(n_slots * value_row)
        own, pool = (h.indexer.width, h.indexer.pool) if h.indexer and h.indexes[i] else (0, 1)
        n_keys, n_further = n_slots // pool, 0
        if h.compressed and (pool := h.compressed.rates[i] or 1) > 1:
            own, n_keys = h.compressed.index_width(i), n_context // pool
            n_further = n_keys
        index_row = row_bytes(key_format, own)
        layers.append(
            LayerCache(
                n_kv,
                n_slots,
                key_width,
                value_width,
                keys,
                values,
                key_row,
                key_row if one else value_row,
                index_keys=_rows(n_keys * index_row),
                index_row_bytes=index_row,
                index_tokens=pool,
                further=_rows(n_further * key_row),
                n_further=n_further,
            )
        )
    return KvCache(n_context, key_format, value_format, tuple(layers), states)


def _state(h: Hyper, i: int) -> LayerState | None:
    """What layer i keeps beside its rows."""
    r, own, none = h.recurrent, h.indexer, np.zeros(0, np.float32)
    if r and h.recurs[i]:
        return LayerState(zeros(r.tail_numbers, np.float32), zeros(r.state_numbers, np.float32))
    if own and h.indexes[i] and own.pool > 1:
        return LayerState(zeros((own.pool - 1) * 2 * own.width, np.float32), none)
    if h.compressed and (n := h.compressed.state_numbers(i, h.heads[i].width)):
        return LayerState(zeros(n, np.float32), zeros(n, np.float32))
    return None
