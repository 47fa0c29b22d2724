"""The lines of a memory bill: what each device and the host hold.

Everything here broadcasts: walk fields and counts may be arrays, so `estimators.memory` prices one deployment
and a table of them with the same lines.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from estimators import llamacpp_memory as llamacpp
from estimators.engine_memory import (
    BLOCK_TOKENS,
    POOLS,
    Line,
    constants,
    context_line,
    default_batch_tokens,
    exact,
)
from estimators.engine_overhead import Rank, overhead_lines
from estimators.memory_inputs import Inputs, Stage, expert_share, gpu_layers
from estimators.walk import Number

TENSORS = "sizes of the tensors in this scheme"
CELLS = "cells that llama.cpp allocates (multiples of 256), times bytes per cell"
# input copies beyond the first that llama.cpp keeps when several GPUs take layers in turn
PIPELINE_COPIES = 3
MATRICES = 3  # of a gated feed-forward
HOST_BATCH_TOKENS = 2048  # a step's tokens on CPUs where the settings leave them open
# masks enter the graph in 16 bit since then (llama.cpp load logs before and after)
HALF_MASKS_SINCE = 2025.65


# -- caches --------------------------------------------------------------------------------------------------


def cache_total(x: Inputs, held: llamacpp.Cells | None = None) -> tuple[Number, Number]:
    """(bytes of keys and values, bytes of recurrent state) of the whole model, for all users."""
    w = x.walk
    if x.gguf:
        full, ring = llamacpp.cache_bytes(w, held or cells_of(x), x.kv_k_bytes, x.kv_v_bytes)
        return full + ring, llamacpp.state_bytes(w, x.n_sequences)
    block = BLOCK_TOKENS.get(x.engine, 1)
    tokens = -(-x.context_tokens // block) * block
    per_full = w.kv_k_full * x.kv_k_bytes + w.kv_v_full * x.kv_v_bytes + w.index_elements
    per_window = w.kv_k_window * x.kv_k_bytes + w.kv_v_window * x.kv_v_bytes
    near = tokens
    if x.engine in POOLS:
        near = np.minimum(tokens, w.window_tokens + (x.batch_tokens or 0))
    elif x.engine == "mlx":
        near = np.minimum(tokens, np.maximum(w.window_tokens, 1))
    return x.n_sequences * (tokens * per_full + near * per_window), 4.0 * w.state_elements * x.n_sequences


@dataclass(frozen=True, slots=True)
class Shared:
    """What every device's lines divide among themselves, computed once per bill or table."""

    cache: Number
    state: Number
    peak: Number = 0.0  # llama.cpp's compute buffer, with logits
    inner: Number = 0.0  # and without
    inputs: Number = 0.0  # embeddings and masks that enter the graph
    hidden: Number = 0.0  # one micro-batch of embeddings


def shared(x: Inputs) -> Shared:
    """Caches and buffers of the whole model."""
    if not x.gguf:
        return Shared(*cache_total(x))
    held = cells_of(x)
    cache, state = cache_total(x, held)
    peak, inner, entering, hidden = _llamacpp_compute(x, held)
    return Shared(cache, state, peak, inner, entering, hidden)


def cells_of(x: Inputs) -> llamacpp.Cells:
    """Cells of the caches that llama.cpp keeps for this deployment."""
    return llamacpp.cells(
        x.context_tokens,
        x.walk.window_tokens,
        x.n_sequences,
        x.unified,
        x.micro_batch_tokens,
        x.full_window_cache,
    )


def kv_ranks(x: Inputs) -> Number:
    """How many ways tensor parallelism divides the cache: never finer than a head, never a latent."""
    if x.tensor_parallel <= 1:
        return 1.0
    w = x.walk
    layers = np.maximum(w.n_full_layers + w.n_window_layers, 1)
    heads = np.maximum((w.kv_k_full + w.kv_k_window) / np.maximum(layers * w.head_dim, 1), 1)
    return np.where(np.asarray(w.latent) > 0, 1.0, np.minimum(x.tensor_parallel, heads))


# -- compute -------------------------------------------------------------------------------------------------


def _llamacpp_compute(x: Inputs, held: llamacpp.Cells) -> tuple[Number, Number, Number, Number]:
    """llama.cpp's buffers: (peak with logits, peak without, embeddings and masks, embeddings)."""
    peak, inner = x.compute_bytes, x.inner_compute_bytes
    if peak is None:
        peak = llamacpp.approximate_compute_bytes(
            x.walk, held, x.micro_batch_tokens, x.n_outputs, x.flash_attention
        )
    if inner is None:
        inner = peak
        if x.n_outputs is None:
            inner = llamacpp.approximate_compute_bytes(
                x.walk, held, x.micro_batch_tokens, 1, x.flash_attention
            )
    tokens = np.minimum(x.micro_batch_tokens, held.full * held.streams)
    hidden = 4.0 * tokens * x.walk.hidden_size
    old = x.engine == "ik_llama.cpp" or (x.year is not None and x.year < HALF_MASKS_SINCE)
    mask = (4 if old or not x.flash_attention else 2) * tokens * held.full
    return peak, inner, hidden + mask, hidden


# -- lines ---------------------------------------------------------------------------------------------------


def device_lines(x: Inputs, stage: Stage, sums: Shared | None = None) -> list[Line]:
    """The items on one accelerator (on one rank of a tensor-parallel group)."""
    w, ranks = x.walk, stage.ranks
    span = stage.end - stage.start
    _, head = gpu_layers(x)
    layers = w.layer_bytes * span / ranks
    expert_ranks = max(ranks, x.expert_parallel)
    experts = w.expert_bytes * expert_share(x, stage.start, stage.end) / expert_ranks
    lines = [exact("weights", "layers", layers, TENSORS)]
    if np.any(np.asarray(w.expert_bytes) > 0):
        lines.append(exact("weights", "routed experts", experts, TENSORS))
    lines += _ends(x, stage, head)
    sums = sums or shared(x)
    mine = sums.cache * span / kv_ranks(x)
    lines.append(exact("cache", "keys and values", mine, CELLS if x.gguf else "tokens in whole blocks"))
    if np.any(np.asarray(sums.state) > 0):
        lines.append(exact("cache", "recurrent state", sums.state * span / ranks, "one state per sequence"))
    if x.gguf:
        return [*lines, *_llamacpp_lines(x, stage, head, span, sums)]
    rank = Rank(
        w, x.batch_tokens or default_batch_tokens(x.engine, stage.device.memory_bytes), x.prompt_tokens,
        x.context_tokens, x.n_sequences, mine, x.year, n_ranks=ranks * max(1, x.data_parallel),
        device_bytes=stage.device.memory_bytes, last=stage.last, eager=x.eager, family=x.family,
        max_context=x.max_context,
    )  # fmt: skip
    return lines + overhead_lines(x.engine, x.backend, rank)


def _ends(x: Inputs, stage: Stage, head: Number) -> list[Line]:
    """Embedding and head: llama.cpp keeps the embedding on the host and copies a tied head to the GPU."""
    w, lines = x.walk, []
    if not x.gguf and stage.first:
        lines.append(exact("weights", "embedding", w.embedding_bytes / stage.ranks, TENSORS))
        if np.any(np.asarray(w.tower_bytes) > 0):
            lines.append(exact("weights", "vision and audio towers", w.tower_bytes, TENSORS))
    if stage.last:
        own = head if x.gguf else 1.0 - np.asarray(w.tied) * stage.first
        lines.append(exact("weights", "output head", w.head_bytes * own / stage.ranks, TENSORS))
    return lines


def _llamacpp_lines(x: Inputs, stage: Stage, head: Number, span: Number, sums: Shared) -> list[Line]:
    own = (
        sums.peak
        if sums.inner is sums.peak
        else np.where(np.asarray(head) * stage.last > 0, sums.peak, sums.inner)
    )
    if x.engine != "ik_llama.cpp":
        own = own - sums.hidden
    if x.pipeline_parallel > 1 and x.on_gpu:
        copies = _input_copies(x, head)
        own = own + copies * sums.inputs + (copies > 0) * sums.hidden
    copied = _copied_bytes(x)
    if copied is not None and stage.first:  # the first device takes the host's operations
        own = np.maximum(own, np.where(copied > 0, sums.inner + copied, 0.0))
    own = np.maximum(own, 0.0) * (np.asarray(span) > 0)
    lines = [_compute_line(x, own)]
    if x.year is None or x.year >= 2024:  # older logs count tensors only
        lines.append(context_line(x.backend))
        pool = constants()["llamacpp_pool"].get(x.backend)
        if pool:
            used = np.asarray(x.prompt_tokens) > 1
            sizes = (used * pool["best"], used * pool["low"], used * pool["high"])
            lines.append(Line("engine", "scratch of prompt kernels", *sizes, pool["source"]))
    return lines


def _input_copies(x: Inputs, head: Number) -> Number:
    """Copies of the graph's inputs beyond the first: only where every layer is on GPUs that take turns
    (llama.cpp gives pipelining up when a layer or an expert is placed elsewhere)."""
    if x.pipeline_parallel <= 1:
        return np.asarray(0.0)
    return PIPELINE_COPIES * np.asarray(head) * (np.asarray(x.n_cpu_expert_layers) <= 0)


def _copied_bytes(x: Inputs) -> Number | None:
    """The largest host tensor that llama.cpp copies to the GPU to process a prompt of 32 tokens or more.

    None where nothing is on the host. ik_llama.cpp computes its repacked weights where they are.
    """
    layers, _ = gpu_layers(x)
    partial = np.asarray(layers) < x.walk.n_layers
    experts = (np.asarray(x.n_cpu_expert_layers) > 0) | partial
    if not x.on_gpu or x.engine == "ik_llama.cpp" or not np.any(experts):
        return None
    w = x.walk
    expert = w.expert_bytes / np.maximum(w.n_moe_layers, 1) / MATRICES
    dense = w.dense_bytes / np.maximum(w.n_layers - w.n_moe_layers, 1) / MATRICES
    return np.maximum(expert * experts, dense * partial)


def _compute_line(x: Inputs, size: Number) -> Line:
    """llama.cpp's buffer: replayed (97% of checked settings within 3%), or its closed form (90% in 10%)."""
    if x.compute_bytes is None:
        return Line(
            "compute", "compute buffer", size, size * 0.9, size * 1.1, "largest live set of its graph"
        )
    low, high = size * (1 - x.compute_width), size * (1 + x.compute_width)
    return Line("compute", "compute buffer", size, low, high, "llama.cpp's graph allocator, replayed")


def host_lines(x: Inputs, sums: Shared | None = None) -> list[Line]:
    """The items in host memory (empty for engines that keep nothing there)."""
    sums = sums or shared(x)
    if not x.on_gpu:
        return _all_on_host(x, sums)
    if not x.gguf and x.engine != "ktransformers":
        return []
    w = x.walk
    layers, head = gpu_layers(x)
    away = 1.0 - layers / w.n_layers
    on_gpu = expert_share(x, away, 1.0)
    body = w.layer_bytes * away
    cache, state = sums.cache, sums.state
    lines = [
        exact("weights", "embedding", w.embedding_bytes, TENSORS),
        exact("weights", "layers on the host", body, TENSORS),
        exact("weights", "routed experts on the host", w.expert_bytes * (1.0 - on_gpu), TENSORS),
        exact(
            "weights",
            "output head",
            np.where(np.asarray(w.tied) > 0, 0.0, w.head_bytes) * (1.0 - head),
            TENSORS,
        ),
        exact("cache", "keys and values", cache * away, CELLS),
        exact("cache", "recurrent state", state * away, "one state per sequence"),
    ]
    if x.gguf:
        pinned = sums.inputs * np.maximum(_input_copies(x, head), 1)
        if x.host_compute_bytes is not None:
            pinned = x.host_compute_bytes
        size = np.where(np.asarray(head) > 0, pinned, np.maximum(sums.peak, pinned))
        lines.append(
            Line("compute", "host compute buffer", size, 0.9 * size, 1.1 * size, "inputs of the graph")
        )
    return lines


def _all_on_host(x: Inputs, sums: Shared) -> list[Line]:
    w = x.walk
    towers = 0.0 if x.gguf else w.tower_bytes
    body = w.layer_bytes
    head = np.where(np.asarray(w.tied) > 0, 0.0, w.head_bytes)
    cache, state = sums.cache, sums.state
    lines = [
        exact("weights", "embedding", w.embedding_bytes, TENSORS),
        exact("weights", "layers", body + towers, TENSORS),
        exact("weights", "routed experts", w.expert_bytes, TENSORS),
        exact("weights", "output head", head, TENSORS),
        exact("cache", "keys and values", cache, CELLS if x.gguf else "tokens in whole blocks"),
        exact("cache", "recurrent state", state, "one state per sequence"),
    ]
    if not x.gguf:
        tokens = x.batch_tokens or HOST_BATCH_TOKENS
        rank = Rank(w, tokens, x.prompt_tokens, x.context_tokens, x.n_sequences, cache, x.year)
        return lines + overhead_lines(x.engine, "cpu", rank)
    return [*lines, _compute_line(x, sums.peak), context_line("cpu")]
