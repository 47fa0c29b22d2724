"""llama.cpp's memory: cache cells, recurrent state, compute buffer and where each part lives.

The cache arithmetic reproduces every byte that llama.cpp at commit 0c1e57098 reports over 107 models and 26
settings; the compute buffer replays its graph allocator (`estimators.llamacpp_graph`). Functions broadcast.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np

from estimators.walk import Number, Walk
from modeldb.architectures import LAYOUTS, Layout
from modeldb.layers import Attention, LatentAttention, LinearAttention
from modeldb.model import Model

WINDOWS_SINCE = 2025.38  # llama.cpp PR 13194
LATENT_SINCE = 2025.28  # llama.cpp PR 12801
LATENT_ONLY_SINCE = 2026.07  # llama.cpp PR 19067: until then the latent was kept as values too
CELL_PADDING = 256  # cells; llama_kv_cache pads to it (src/llama-context.cpp)
BATCH_TOKENS = 2048  # -b
MICRO_BATCH_TOKENS = 512  # -ub
#: bytes per cached element (ggml block sizes; fp8/int8/int4 are what other engines store, without scales)
KV_ELEMENT_BYTES: dict[str, float] = {
    "f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32, "q4_1": 20 / 32,
    "q4_0": 18 / 32, "iq4_nl": 18 / 32, "fp8": 1.0, "fp8_e4m3": 1.0, "fp8_e5m2": 1.0, "int8": 1.0,
    "int4": 0.5,
}  # fmt: skip
QUANTIZED_KV = frozenset({"q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"})


def kv_element_bytes(kv_type: str) -> float:
    """Bytes per cached number. Raises ValueError for a type nobody implements."""
    try:
        return KV_ELEMENT_BYTES[kv_type.lower()]
    except KeyError:
        raise ValueError(
            f"no cache type is called `{kv_type}`: one of {', '.join(KV_ELEMENT_BYTES)}"
        ) from None


def padded(tokens: Number) -> Number:
    """Tokens rounded up to whole blocks of cells."""
    if np.ndim(tokens) and np.asarray(tokens).dtype.kind in "iu":
        return (tokens + (CELL_PADDING - 1)) & -CELL_PADDING  # twice as fast as a division
    return -(-tokens // CELL_PADDING) * CELL_PADDING


def _layout(model: Model) -> Layout:
    return LAYOUTS.get(model.architecture, Layout())


def windowed(model: Model) -> bool:
    """Whether llama.cpp keeps a separate, smaller cache for this model's windowed layers."""
    return not _layout(model).windowless and any(
        isinstance(m, Attention) and m.window_tokens for block in model.blocks for m in block.mixers
    )


def as_cached(
    walk: Walk, model: Model, engine: str = "llama.cpp", year: float | None = None, latent: bool | None = None
) -> Walk:
    """`walk` with the cache sums that llama.cpp really keeps: windows it ignores and latents it expands.

    ik_llama.cpp has no windowed caches. llama.cpp has them since 2025.4, and latent ones since 2025.3;
    `latent` overrides what the engine would do.
    """
    old = year is not None and year < WINDOWS_SINCE
    if engine == "ik_llama.cpp" or old:
        walk = unwindowed(walk)
    expanded = year is not None and year < LATENT_SINCE if latent is None else not latent
    latents = any(isinstance(m, LatentAttention) for block in model.blocks for m in block.mixers)
    if latents and (expanded or _layout(model).decompressed_latent):
        layers = [m for block in model.blocks for m in block.mixers if isinstance(m, LatentAttention)]
        return replace(
            walk,
            kv_k_full=float(sum(m.n_heads * (m.nope_dim + m.rope_dim) for m in layers)),
            kv_v_full=float(sum(m.n_heads * m.value_dim for m in layers)),
            head_dim=float(layers[0].nope_dim + layers[0].rope_dim),
            latent=0.0,
        )
    if latents and year is not None and year < LATENT_ONLY_SINCE and engine != "ik_llama.cpp":
        ranks = (m.kv_rank for b in model.blocks for m in b.mixers if isinstance(m, LatentAttention))
        walk = replace(walk, kv_v_full=walk.kv_v_full + float(sum(ranks)))
    return walk if windowed(model) else unwindowed(walk)


def table_as_cached(walk: Walk) -> Walk:
    """`as_cached` for a table of walks and today's llama.cpp, from what each walk says of its architecture."""
    if np.ndim(walk.windowless) == 0:
        return table_as_cached(_as_table(walk)).row(0) if walk.windowless or walk.expanded_k else walk
    changed: dict[str, Number] = {}
    rows = np.flatnonzero(walk.windowless)
    rows = rows[walk.kv_k_window[rows] > 0]
    if len(rows):
        for name in ("kv_k", "kv_v"):
            near, full = getattr(walk, f"{name}_window").copy(), getattr(walk, f"{name}_full").copy()
            full[rows] += near[rows]
            near[rows] = 0.0
            changed |= {f"{name}_window": near, f"{name}_full": full}
        changed["window_tokens"] = walk.window_tokens.copy()
        changed["window_tokens"][rows] = 0.0
    rows = np.flatnonzero(walk.expanded_k)
    if len(rows):
        expanded = {"kv_k_full": walk.expanded_k, "kv_v_full": walk.expanded_v}
        expanded |= {"head_dim": walk.expanded_head_dim, "latent": walk.expanded_k * 0.0}
        for name, values in expanded.items():
            column = changed[name] if name in changed else getattr(walk, name).copy()
            column[rows] = values[rows]
            changed[name] = column
    return replace(walk, **changed) if changed else walk


def _as_table(walk: Walk) -> Walk:
    return Walk(**{f.name: np.array([float(getattr(walk, f.name))]) for f in fields(Walk)})


def unwindowed(walk: Walk) -> Walk:
    """`walk` with every windowed layer counted as a full one."""
    return replace(
        walk,
        kv_k_full=walk.kv_k_full + walk.kv_k_window,
        kv_v_full=walk.kv_v_full + walk.kv_v_window,
        kv_k_window=walk.kv_k_window * 0,
        kv_v_window=walk.kv_v_window * 0,
        window_tokens=walk.window_tokens * 0,
    )


@dataclass(frozen=True, slots=True)
class Cells:
    """Cells of one stream's full and windowed caches, and how many streams there are."""

    full: Number
    window: Number
    streams: Number


def cells(
    context_tokens: Number,
    window_tokens: Number,
    n_sequences: Number = 1,
    unified: bool = True,
    micro_batch_tokens: Number = MICRO_BATCH_TOKENS,
    full_window_cache: bool = False,
) -> Cells:
    """Cells that llama.cpp allocates for `n_sequences` of `context_tokens` each.

    A unified cache holds all sequences in one stream; otherwise each has its own. A windowed layer keeps a
    ring of its window (times the sequences that share it) plus one micro-batch.
    """
    full = padded(context_tokens * n_sequences if unified else context_tokens)
    if full_window_cache:
        return Cells(full, full, 1 if unified else n_sequences)
    ring = padded(window_tokens * (n_sequences if unified else 1) + micro_batch_tokens)
    return Cells(full, np.minimum(full, ring), 1 if unified else n_sequences)


def cache_bytes(
    walk: Walk, held: Cells, k_bytes: Number = 2.0, v_bytes: Number = 2.0
) -> tuple[Number, Number]:
    """Bytes of the full and of the windowed keys and values. An indexer's keys lie beside the full ones, in the
    keys' type (llama.cpp 0c1e57098, src/llama-kv-cache-dsa.cpp, src/llama-memory-hybrid-idx.cpp)."""
    full = (
        held.full
        * held.streams
        * (
            (walk.kv_k_full + walk.drafted_k + walk.index_elements * walk.index_copies) * k_bytes
            + walk.kv_v_full * v_bytes
        )
    )
    ring = held.window * held.streams * (walk.kv_k_window * k_bytes + walk.kv_v_window * v_bytes)
    return full, ring


def state_bytes(walk: Walk, n_sequences: Number = 1) -> Number:
    """Bytes of recurrent state and convolution tails, float32 per sequence."""
    return 4.0 * walk.state_elements * n_sequences


def compute_bytes(
    model: Model,
    held: Cells,
    n_sequences: int = 1,
    micro_batch_tokens: int = MICRO_BATCH_TOKENS,
    n_outputs: int | None = None,
    kv_type_k: str = "f16",
    kv_type_v: str = "f16",
    flash_attention: bool = True,
) -> int:
    """Bytes of the compute buffer on one backend that runs everything, by replaying llama.cpp's allocator.

    `n_outputs` tokens of a micro-batch have their logits computed (None: all, as llama-bench reserves;
    llama-server reserves one per slot).
    """
    dims = {
        (m.head_dim, m.value_dim) for block in model.blocks for m in block.mixers if isinstance(m, Attention)
    }
    rotate_k = kv_type_k in QUANTIZED_KV and bool(dims) and all(k % 64 == 0 for k, _ in dims)
    rotate_v = kv_type_v in QUANTIZED_KV and bool(dims) and all(v % 64 == 0 for _, v in dims)
    total_cells = int(held.full) * int(held.streams)
    tokens = min(micro_batch_tokens, total_cells)
    tokens = -(-tokens // n_sequences) * n_sequences
    outputs = min(tokens, n_outputs or tokens)
    # where pairs of tokens take room, llama.cpp reserves for one sequence as well (src/llama-context.cpp)
    pairs = any(
        isinstance(m, LinearAttention) and m.kind == "lightning" for b in model.blocks for m in b.mixers
    )
    return max(
        _peak(
            _Key(model),
            (flash_attention, rotate_k, rotate_v, windowed(model)),
            (1, tokens, tokens * int(held.full), tokens * int(held.window), outputs, n, tokens * tokens / n),
        )
        for n in {n_sequences, 1 if pairs else n_sequences}
    )


class _Key:
    """A model as a cache key: only what shapes its graph."""

    __slots__ = ("key", "model")

    def __init__(self, model: Model) -> None:
        self.model = model
        self.key = (model.architecture, model.hidden_size, model.vocab_size, model.blocks, model.extra)

    def __hash__(self) -> int:
        return hash((self.key[0], self.key[1], self.key[2], len(self.model.blocks)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and (self.model is other.model or self.key == other.key)


@lru_cache(maxsize=4096)
def _peak(key: _Key, shape: tuple[bool, bool, bool, bool], values: tuple[float, ...]) -> int:
    from estimators.ggml_alloc import peak_bytes

    return peak_bytes(_graph(key, *shape), values)


@lru_cache(maxsize=512)
def _graph(key: _Key, flash: bool, rotate_k: bool, rotate_v: bool, ring: bool):  # type: ignore[no-untyped-def]
    from estimators import llamacpp_graph

    return llamacpp_graph.build(key.model, flash, rotate_k, rotate_v, ring)


def approximate_compute_bytes(
    walk: Walk,
    held: Cells,
    micro_batch_tokens: Number = MICRO_BATCH_TOKENS,
    n_outputs: Number | None = None,
    flash_attention: bool = True,
) -> Number:
    """The compute buffer from a walk's sums alone, for pricing whole tables: the largest of four live sets
    (logits; a feed-forward; attention scores; lightning attention's pairs of tokens). Within 1.2% of
    llama.cpp in the median and 8.2% at the 90th percentile of the rows that `compute_bytes` is checked on."""
    tokens = np.minimum(micro_batch_tokens, held.full * held.streams)
    outputs = tokens if n_outputs is None else np.minimum(tokens, n_outputs)
    mask_bytes = 2 if flash_attention else 4
    attends = (walk.kv_k_full + walk.kv_k_window) > 0
    has_window = walk.kv_k_window > 0
    mask = mask_bytes * tokens * (held.full * attends + held.window * has_window)
    hidden = 4.0 * tokens * walk.hidden_size
    layers = np.maximum(walk.n_full_layers + walk.n_window_layers, 1)
    flops = (walk.attention_flops_full + walk.attention_flops_window) / layers
    heads = np.where(walk.latent > 0, walk.n_heads, flops / np.maximum(4.0 * walk.head_dim, 1))
    q_width = heads * np.where(walk.latent > 0, walk.kv_k_full / layers, walk.head_dim)
    logits = 4.0 * outputs * (walk.vocab_size + walk.hidden_size) + hidden
    expert_out = walk.experts_per_token * walk.hidden_size
    # the experts' outputs fit the hole that gate and up leave, or extend the buffer
    extends = expert_out > 2 * walk.max_inner
    plain = (walk.n_moe_layers == 0) & (
        walk.dense_params < 2.5 * walk.n_layers * walk.hidden_size * walk.max_inner
    )
    inner = np.where(plain, 1, 3) * walk.max_inner  # without a gate the activation is in place
    feed_forward = 3 * hidden + mask + 4.0 * tokens * (inner + extends * expert_out)
    # an input of the graph, so that it lies beside all that layers do
    pairs = 4.0 * tokens * tokens * walk.pair_heads
    lightning = 3 * hidden + mask + 2 * pairs + 20.0 * tokens * walk.pair_heads * walk.head_dim
    others = np.maximum(logits, pairs + np.maximum(feed_forward, lightning * (walk.pair_heads > 0)))
    if flash_attention:
        return np.maximum(others, pairs + 2 * hidden + mask + 8.0 * tokens * q_width)
    widest = np.where(walk.kv_k_full > 0, held.full, held.window)
    scores = 2 * hidden + mask + 4.0 * tokens * (heads * widest + 3 * q_width)
    return np.maximum(others, pairs + scores)
