"""The itemised memory of deployments: one line per item, per device; the same arithmetic for one and for a table.

`bill` prices one deployment (with llama.cpp's compute buffer replayed exactly); `table_memory` prices a
`DeploymentTable` with the closed form of that buffer; both sum the lines of `device_lines` and `host_lines`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from estimators import llamacpp_memory as llamacpp
from estimators.deployment import Bill, BillLine, Deployment, DeviceBill
from estimators.engine_memory import (
    BLOCK_TOKENS,
    LLAMACPP,
    POOLS,
    TRANSFORMERS,
    Line,
    constants,
    context_line,
    default_batch_tokens,
    exact,
    overhead_lines,
)
from estimators.quantity import Quantity
from estimators.walk import Number, Walk
from hwdb.device import Device, Machine

if TYPE_CHECKING:
    from estimators.table import DeploymentTable

SERVER_SLOTS = 1  # llama-server -np where the deployment names no users
TENSORS = "sizes of the tensors in this scheme"
CELLS = "cells that llama.cpp allocates (multiples of 256), times bytes per cell"
PIPELINE_COPIES = (
    3  # input copies beyond the first that llama.cpp keeps when several GPUs take layers in turn
)
# Metal lets one process wire two thirds of memory up to 36 GiB, three quarters above (recommendedMaxWorkingSetSize)
METAL_SMALL_BYTES, METAL_SMALL_SHARE, METAL_LARGE_SHARE = 36 << 30, 2 / 3, 3 / 4


@dataclass(frozen=True)
class Inputs:
    """Everything that a bill depends on. Walk fields and counts may be arrays; the rest is one value for all."""

    walk: Walk
    engine: str
    backend: str
    machine: Machine
    context_tokens: Number = 4096
    prompt_tokens: Number = 512
    n_sequences: Number = 1
    kv_k_bytes: Number = 2.0
    kv_v_bytes: Number = 2.0
    n_gpu_layers: Number = -1  # < 0: all of them, and the head
    n_cpu_expert_layers: Number = 0
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    expert_parallel: int = 1
    data_parallel: int = 1
    flash_attention: bool = True
    micro_batch_tokens: int = llamacpp.MICRO_BATCH_TOKENS
    batch_tokens: int | None = None
    n_outputs: Number | None = 1
    unified: bool = True
    full_window_cache: bool = False
    eager: bool = False
    year: float | None = None
    memory_fraction: float | None = None
    compute_bytes: Number | None = None  # replayed; None: the closed form
    inner_compute_bytes: Number | None = None  # the same without logits
    family: str = ""  # of the scheme

    @property
    def on_gpu(self) -> bool:
        return bool(self.machine.devices) and self.backend != "cpu"

    @property
    def gguf(self) -> bool:
        return self.engine in LLAMACPP


@dataclass(frozen=True, slots=True)
class Stage:
    """What one device holds of the layers: from `start` to `end` as shares of all layers, split `ranks` ways."""

    index: int
    device: Device
    start: Number
    end: Number
    first: bool
    last: bool
    ranks: int


# -- where layers go -----------------------------------------------------------------------------------------


def gpu_layers(x: Inputs) -> tuple[Number, Number]:
    """(layers on the accelerators, 1 where the head is there too)."""
    everything = x.walk.n_layers + 1
    wanted = np.where(np.asarray(x.n_gpu_layers) < 0, everything, np.minimum(x.n_gpu_layers, everything))
    return np.minimum(wanted, x.walk.n_layers), (wanted > x.walk.n_layers) * 1.0


def stages(x: Inputs) -> list[Stage]:
    """The devices with the layers that each takes.

    Layers are dealt in order, in proportion to memory where the engine splits layers over unequal devices
    (llama.cpp's rule, the head counting as one layer), evenly otherwise.
    """
    n, ranks = max(1, x.pipeline_parallel), max(1, x.tensor_parallel)
    devices = _devices(x.machine, n * ranks * max(1, x.data_parallel))
    sizes = [float(devices[i * ranks].memory_bytes or 1) for i in range(n)]
    weights = sizes if x.gguf or x.engine in TRANSFORMERS else [1.0] * n
    layers, head = gpu_layers(x)
    items, total = layers + head, sum(weights)
    made, before, share = [], 0.0, 0.0
    for i in range(n):
        share += weights[i] / total
        cut = np.ceil(items * min(share, 1.0) - 1e-9) if i < n - 1 else items
        start, end = np.minimum(before, layers), np.minimum(cut, layers)
        offset = x.walk.n_layers - layers
        made.append(
            Stage(i, devices[i * ranks], (offset + start) / x.walk.n_layers, (offset + end) / x.walk.n_layers,
                  i == 0, i == n - 1, ranks)
        )  # fmt: skip
        before = cut
    return made


def _devices(machine: Machine, count: int) -> Sequence[Device]:
    known = machine.devices
    return [known[min(i, len(known) - 1)] for i in range(count)]


def _expert_share(x: Inputs, start: Number, end: Number) -> Number:
    """Share of all routed experts between two points, less those of the first layers that stay on the host."""
    on_host = np.minimum(x.n_cpu_expert_layers / np.maximum(x.walk.n_moe_layers, 1), 1.0)
    return np.maximum(end - np.maximum(start, on_host), 0.0)


# -- caches --------------------------------------------------------------------------------------------------


def cache_total(x: Inputs) -> tuple[Number, Number]:
    """(bytes of keys and values, bytes of recurrent state) of the whole model, all users at the asked context."""
    w = x.walk
    if x.gguf:
        full, ring = llamacpp.cache_bytes(w, _cells(x), x.kv_k_bytes, x.kv_v_bytes)
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


def _cells(x: Inputs) -> llamacpp.Cells:
    return llamacpp.cells(
        x.context_tokens,
        x.walk.window_tokens,
        x.n_sequences,
        x.unified,
        x.micro_batch_tokens,
        x.full_window_cache,
    )


def _kv_ranks(x: Inputs) -> Number:
    """How many ways tensor parallelism divides the cache: never finer than a head, never a latent."""
    w = x.walk
    layers = np.maximum(w.n_full_layers + w.n_window_layers, 1)
    heads = np.maximum((w.kv_k_full + w.kv_k_window) / np.maximum(layers * w.head_dim, 1), 1)
    return np.where(np.asarray(w.latent) > 0, 1.0, np.minimum(x.tensor_parallel, heads))


# -- compute -------------------------------------------------------------------------------------------------


def _llamacpp_compute(x: Inputs) -> tuple[Number, Number, Number]:
    """(peak with logits, peak without, bytes of the inputs: embeddings and masks) of llama.cpp's buffers."""
    held = _cells(x)
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
    mask = (2 if x.flash_attention else 4) * tokens * held.full
    return peak, np.minimum(inner, peak), 4.0 * tokens * x.walk.hidden_size + mask


# -- lines ---------------------------------------------------------------------------------------------------


def device_lines(x: Inputs, stage: Stage) -> list[Line]:
    """The items on one accelerator (on one rank of a tensor-parallel group)."""
    w, ranks = x.walk, stage.ranks
    span = stage.end - stage.start
    _, head = gpu_layers(x)
    layers = (w.mixer_bytes + w.dense_bytes + w.shared_bytes + w.other_bytes) * span / ranks
    expert_ranks = max(ranks, x.expert_parallel)
    experts = w.expert_bytes * _expert_share(x, stage.start, stage.end) / expert_ranks
    lines = [exact("weights", "layers", layers, TENSORS)]
    if np.any(np.asarray(w.expert_bytes) > 0):
        lines.append(exact("weights", "routed experts", experts, TENSORS))
    lines += _ends(x, stage, head)
    cache, state = cache_total(x)
    mine = cache * span / _kv_ranks(x)
    lines.append(exact("cache", "keys and values", mine, CELLS if x.gguf else "tokens in whole blocks"))
    if np.any(np.asarray(state) > 0):
        lines.append(exact("cache", "recurrent state", state * span / ranks, "one state per sequence"))
    if x.gguf:
        return [*lines, *_llamacpp_lines(x, stage, head, span)]
    return lines + overhead_lines(
        x.engine,
        w,
        x.backend,
        batch_tokens=x.batch_tokens or default_batch_tokens(x.engine, stage.device.memory_bytes),
        prompt_tokens=x.prompt_tokens,
        cache_bytes=mine,
        context_tokens=x.context_tokens,
        last=stage.last,
        family=x.family,
        n_sequences=x.n_sequences,
        n_ranks=ranks * max(1, x.data_parallel),
        device_bytes=stage.device.memory_bytes,
        eager=x.eager,
        year=x.year,
    )


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


def _llamacpp_lines(x: Inputs, stage: Stage, head: Number, span: Number) -> list[Line]:
    peak, inner, inputs = _llamacpp_compute(x)
    tokens_hidden = (
        4.0 * np.minimum(x.micro_batch_tokens, x.context_tokens * x.n_sequences) * x.walk.hidden_size
    )
    own = np.where(np.asarray(head) * stage.last > 0, peak, inner) - tokens_hidden
    if x.pipeline_parallel > 1 and x.on_gpu:
        own = own + head * (PIPELINE_COPIES * inputs + tokens_hidden)
    own = np.maximum(own, 0.0) * (np.asarray(span) > 0)
    source = "llama.cpp's graph allocator, replayed" if x.compute_bytes is not None else "largest live set"
    width = 0.03 if x.compute_bytes is not None else 0.12
    lines = [Line("compute", "compute buffer", own, own * (1 - width), own * (1 + width), source)]
    if x.year is None or x.year >= 2024:  # older logs count tensors only
        lines.append(context_line(x.backend))
        pool = constants()["llamacpp_pool"].get(x.backend)
        if pool:
            used = np.asarray(x.prompt_tokens) > 1
            sizes = (used * pool["best"], used * pool["low"], used * pool["high"])
            lines.append(Line("engine", "scratch of prompt kernels", *sizes, pool["source"]))
    return lines


def host_lines(x: Inputs) -> list[Line]:
    """The items in host memory (empty for engines that keep nothing there)."""
    if not x.on_gpu:
        return _all_on_host(x)
    if not x.gguf and x.engine != "ktransformers":
        return []
    w = x.walk
    layers, head = gpu_layers(x)
    away = 1.0 - layers / w.n_layers
    on_gpu = _expert_share(x, away, 1.0)
    body = (w.mixer_bytes + w.dense_bytes + w.shared_bytes + w.other_bytes) * away
    cache, state = cache_total(x)
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
        peak, _, inputs = _llamacpp_compute(x)
        pinned = inputs * (PIPELINE_COPIES if x.pipeline_parallel > 1 else 1)
        size = np.where(np.asarray(head) > 0, pinned, np.maximum(peak, pinned))
        lines.append(
            Line("compute", "host compute buffer", size, 0.9 * size, 1.1 * size, "inputs of the graph")
        )
    return lines


def _all_on_host(x: Inputs) -> list[Line]:
    w = x.walk
    towers = 0.0 if x.gguf else w.tower_bytes
    body = w.mixer_bytes + w.dense_bytes + w.shared_bytes + w.other_bytes
    head = np.where(np.asarray(w.tied) > 0, 0.0, w.head_bytes)
    cache, state = cache_total(x)
    lines = [
        exact("weights", "embedding", w.embedding_bytes, TENSORS),
        exact("weights", "layers", body + towers, TENSORS),
        exact("weights", "routed experts", w.expert_bytes, TENSORS),
        exact("weights", "output head", head, TENSORS),
        exact("cache", "keys and values", cache, CELLS if x.gguf else "tokens in whole blocks"),
        exact("cache", "recurrent state", state, "one state per sequence"),
    ]
    if not x.gguf:
        return lines + overhead_lines(
            x.engine, w, "cpu", batch_tokens=x.batch_tokens or 2048, prompt_tokens=x.prompt_tokens,
            cache_bytes=cache, context_tokens=x.context_tokens, n_sequences=x.n_sequences, year=x.year,
        )  # fmt: skip
    peak, _, _ = _llamacpp_compute(x)
    width = 0.03 if x.compute_bytes is not None else 0.12
    compute = Line(
        "compute",
        "compute buffer",
        peak,
        peak * (1 - width),
        peak * (1 + width),
        "llama.cpp's graph allocator",
    )
    return [*lines, compute, context_line("cpu")]


# -- one deployment ------------------------------------------------------------------------------------------


def inputs(deployment: Deployment) -> Inputs:
    """The numbers behind a deployment's bill."""
    from estimators.walk import walk as walk_of

    d, s, p = deployment, deployment.settings, deployment.placement
    walk = walk_of(d.model, d.scheme)
    gguf = d.engine in LLAMACPP
    if gguf:
        walk = llamacpp.as_cached(walk, d.model, d.engine, s.year, s.latent_cache)
    if s.weights_bytes:
        walk = scaled(walk, s.weights_bytes)
    n = max(1, d.workload.n_sequences)
    server = s.program == "server"
    outputs = s.n_outputs or (n if server else None)
    on_gpu = bool(d.machine.devices) and d.backend != "cpu"
    x = Inputs(
        walk=walk, engine=d.engine, backend=d.backend, machine=d.machine,
        context_tokens=s.context_tokens, prompt_tokens=d.workload.prompt_tokens, n_sequences=n,
        kv_k_bytes=llamacpp.kv_element_bytes(s.kv_type_k), kv_v_bytes=llamacpp.kv_element_bytes(s.kv_type_v),
        n_gpu_layers=-1 if p.n_gpu_layers is None else p.n_gpu_layers,
        n_cpu_expert_layers=p.n_cpu_expert_layers,
        tensor_parallel=p.tensor_parallel, pipeline_parallel=p.pipeline_parallel if on_gpu else 1,
        expert_parallel=p.expert_parallel, data_parallel=p.data_parallel,
        flash_attention=s.flash_attention, micro_batch_tokens=s.micro_batch_tokens or llamacpp.MICRO_BATCH_TOKENS,
        batch_tokens=s.batch_tokens, n_outputs=outputs,
        unified=s.unified_cache if s.unified_cache is not None else server or n == 1,
        full_window_cache=s.full_window_cache, eager=s.eager, year=s.year, memory_fraction=s.memory_fraction, family=d.scheme.family,
    )  # fmt: skip
    if not gguf:
        return x
    held = _cells(x)
    common = (d.model, held, n, x.micro_batch_tokens)
    kinds = (s.kv_type_k, s.kv_type_v, s.flash_attention)
    peak = llamacpp.compute_bytes(*common, outputs, *kinds)
    inner = peak if outputs == 1 else llamacpp.compute_bytes(*common, 1, *kinds)
    return replace(x, compute_bytes=float(peak), inner_compute_bytes=float(inner))


def scaled(walk: Walk, weights_bytes: float) -> Walk:
    """`walk` with all weight bytes scaled so that they total what the file says."""
    share = weights_bytes / walk.total_bytes
    names = ("embedding", "head", "mixer", "dense", "expert", "shared", "other", "tower", "total")
    return replace(walk, **{f"{n}_bytes": getattr(walk, f"{n}_bytes") * share for n in names})


def bill(deployment: Deployment) -> Bill:
    """The itemised memory of a deployment, one entry per device, the host last when it holds something."""
    x = inputs(deployment)
    devices: list[DeviceBill] = []
    if x.on_gpu:
        for stage in stages(x):
            for rank in range(stage.ranks * max(1, x.data_parallel)):
                index = stage.index * stage.ranks + rank
                lines = [_bill_line(line) for line in device_lines(x, stage)]
                devices.append(_device_bill(x, stage.device, index, lines))
    host = [line for line in map(_bill_line, host_lines(x)) if line.size.high > 0]
    if host and devices and x.machine.devices[0].unified_memory:
        first = devices[0]
        devices[0] = replace(first, lines=first.lines + tuple(host))
    elif host:
        devices.append(DeviceBill("host", _host_capacity(x.machine), tuple(host)))
    size = x.walk.file_bytes
    return Bill(tuple(devices), int(size) if size else None)


def _bill_line(line: Line) -> BillLine:
    best = float(line.best)
    origin = "calibrated" if line.kind in ("compute", "engine") and line.low != line.high else "derived"
    return BillLine(
        line.kind, line.name, Quantity(float(line.low), best, float(line.high), origin), line.source
    )  # type: ignore[arg-type]


def _device_bill(x: Inputs, device: Device, index: int, lines: list[BillLine]) -> DeviceBill:
    capacity = budget_bytes(x, device, index, lines)
    several = x.tensor_parallel * x.pipeline_parallel * x.data_parallel > 1
    kept = tuple(line for line in lines if line.size.high > 0)
    return DeviceBill(f"{device.id}#{index}" if several else device.id, capacity, kept)


def budget_bytes(x: Inputs, device: Device, index: int, lines: Sequence[BillLine] = ()) -> int | None:
    """Bytes that the engine may use on a device: free memory, less what its own knob keeps out of reach."""
    size = usable_bytes(device)
    if index < len(x.machine.free_bytes):
        size = min(size or x.machine.free_bytes[index], x.machine.free_bytes[index])
    if size is None:
        return None
    c = constants()
    if x.engine == "vllm":
        return int(min(size, (device.memory_bytes or size) * (x.memory_fraction or c["vllm"]["fraction"])))
    if x.engine in ("trt-llm", "lmdeploy"):
        key = (
            c["trt-llm"]["free_fraction"] if x.engine == "trt-llm" else c["lmdeploy"]["cache_max_entry_count"]
        )
        free = max(size - sum(line.size.best for line in lines if line.kind != "cache"), 0)
        return int(size - free * (1.0 - (x.memory_fraction or key)))
    return int(size)


def usable_bytes(device: Device) -> int | None:
    """Memory that one process may use on the device: all of it, but on Apple chips what Metal lets it wire."""
    size = device.memory_bytes
    if size is None or device.vendor.lower() != "apple":
        return size
    return int(size * (METAL_SMALL_SHARE if size <= METAL_SMALL_BYTES else METAL_LARGE_SHARE))


def _host_capacity(machine: Machine) -> int | None:
    return (
        machine.host_free_bytes
        or machine.host_memory_bytes
        or (machine.host.memory_bytes if machine.host else None)
    )


# -- what engines leave for the cache ------------------------------------------------------------------------


def pool_bytes(x: Inputs, stage: Stage | None = None) -> Number:
    """Bytes of the cache pool that a pool engine takes on one rank: what its knob leaves after everything else."""
    stage = stage or stages(x)[-1]
    lines = device_lines(x, stage)
    weights = sum(line.best for line in lines if line.kind == "weights")
    other = sum(line.best for line in lines if line.kind in ("compute", "engine", "reserve"))
    total, c = float(stage.device.memory_bytes or 0), constants()
    if x.engine == "sglang":
        return np.maximum(total * (x.memory_fraction or c["sglang"]["fraction"]) - weights, 0.0)
    if x.engine in ("trt-llm", "optimum-nvidia"):
        return np.maximum(total - weights - other, 0.0) * (x.memory_fraction or c["trt-llm"]["free_fraction"])
    if x.engine == "lmdeploy":
        return np.maximum(total - weights - other, 0.0) * (
            x.memory_fraction or c["lmdeploy"]["cache_max_entry_count"]
        )
    key = "fraction" if x.year is None or x.year >= 2026 else "fraction_before_2026"
    return np.maximum(total * (x.memory_fraction or c["vllm"][key]) - weights - other, 0.0)


def kv_capacity_tokens(deployment: Deployment) -> float:
    """Tokens that the cache of a pool engine holds, over all ranks of one replica."""
    x = inputs(deployment)
    stage = stages(x)[-1]
    per_token, _ = cache_total(replace(x, context_tokens=16384, n_sequences=1))
    share = (stage.end - stage.start) / _kv_ranks(x)
    tokens = float(pool_bytes(x, stage) / (per_token * share / 16384))
    block = BLOCK_TOKENS.get(x.engine, 1)
    return tokens // block * block


# -- tables --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TableMemory:
    """Bytes of the fullest accelerator (of the host when there is none) and of the host; what is free there."""

    device_bytes: Number
    host_bytes: Number
    free_bytes: Number  # of the tightest device; negative where it does not fit
    fits: Number  # bool


def table_inputs(table: DeploymentTable) -> Inputs:
    """The numbers behind a table's memory. `extra` may hold `flash_attention`, `n_outputs`, `unified`,
    `compute_bytes` (replayed, per row), `batch_tokens`, `memory_fraction`, `program`."""
    extra = table.extra
    n_outputs = extra.get("n_outputs", None if extra.get("program") == "bench" else table.n_sequences)
    return Inputs(
        walk=table.walk, engine=table.engine, backend=table.backend, machine=table.machine,
        context_tokens=table.context_tokens, prompt_tokens=table.prompt_tokens, n_sequences=table.n_sequences,
        kv_k_bytes=table.kv_k_bytes, kv_v_bytes=table.kv_v_bytes, n_gpu_layers=table.n_gpu_layers,
        n_cpu_expert_layers=table.n_cpu_expert_layers,
        flash_attention=extra.get("flash_attention", True),
        micro_batch_tokens=table.micro_batch_tokens or llamacpp.MICRO_BATCH_TOKENS,
        batch_tokens=extra.get("batch_tokens"), n_outputs=n_outputs, unified=extra.get("unified", True),
        eager=table.eager, year=table.year, memory_fraction=extra.get("memory_fraction"),
        compute_bytes=extra.get("compute_bytes"),
    )  # fmt: skip


def table_memory(table: DeploymentTable) -> TableMemory:
    """The memory of every row of a table, by the same lines as `bill`."""
    x = table_inputs(table)
    tensor, pipeline = np.asarray(table.tensor_parallel), np.asarray(table.pipeline_parallel)
    if tensor.ndim == 0 and pipeline.ndim == 0:
        return _priced(replace(x, tensor_parallel=int(tensor), pipeline_parallel=int(pipeline)))
    shape = np.shape(table.walk.n_layers)
    code = np.broadcast_to(tensor * 1024 + pipeline, shape)
    out = [np.empty(shape), np.empty(shape), np.empty(shape), np.empty(shape, bool)]
    for value in np.unique(code):
        where = np.flatnonzero(code == value)
        part = _priced(_take(x, where, int(value) // 1024, int(value) % 1024, shape))
        for array, column in zip(
            out, (part.device_bytes, part.host_bytes, part.free_bytes, part.fits), strict=True
        ):
            array[where] = column
    return TableMemory(*out)


PER_ROW = (
    "context_tokens", "prompt_tokens", "n_sequences", "kv_k_bytes", "kv_v_bytes", "n_gpu_layers",
    "n_cpu_expert_layers", "n_outputs", "compute_bytes", "inner_compute_bytes",
)  # fmt: skip


def _take(x: Inputs, where: np.ndarray, tensor: int, pipeline: int, shape: tuple[int, ...]) -> Inputs:
    rows = {}
    for name in PER_ROW:
        value = getattr(x, name)
        if np.ndim(value):
            rows[name] = np.broadcast_to(value, shape)[where]
    return replace(x, walk=x.walk.take(where), tensor_parallel=tensor, pipeline_parallel=pipeline, **rows)


def _priced(x: Inputs) -> TableMemory:
    host: Number = sum((line.best for line in host_lines(x)), 0.0)
    host_capacity = _host_capacity(x.machine)
    host_free = np.inf if host_capacity is None else host_capacity - host
    if not x.on_gpu:
        return TableMemory(host, host, host_free, np.asarray(host_free) >= 0)
    unified = x.machine.devices[0].unified_memory
    fullest: Number = 0.0
    tightest: Number = np.inf
    for stage in _distinct(x):
        lines = device_lines(x, stage)
        used = sum((line.best for line in lines), 0.0) + (host if unified else 0.0)
        fullest = np.maximum(fullest, used)
        tightest = np.minimum(tightest, _budget(x, stage, lines) - used)
    free = tightest if unified else np.minimum(tightest, np.where(np.asarray(host) > 0, host_free, np.inf))
    return TableMemory(fullest, host, free, np.asarray(free) >= 0)


def _distinct(x: Inputs) -> list[Stage]:
    return stages(x)


def _budget(x: Inputs, stage: Stage, lines: list[Line]) -> Number:
    """`budget_bytes` for arrays."""
    size = usable_bytes(stage.device)
    if stage.index < len(x.machine.free_bytes):
        free = x.machine.free_bytes[stage.index * stage.ranks]
        size = min(size or free, free)
    if size is None:
        return np.inf
    c = constants()
    if x.engine == "vllm":
        return min(
            float(size), (stage.device.memory_bytes or size) * (x.memory_fraction or c["vllm"]["fraction"])
        )
    if x.engine in ("trt-llm", "lmdeploy"):
        key = (
            c["trt-llm"]["free_fraction"] if x.engine == "trt-llm" else c["lmdeploy"]["cache_max_entry_count"]
        )
        free = np.maximum(size - sum(line.best for line in lines if line.kind != "cache"), 0.0)
        return size - free * (1.0 - (x.memory_fraction or key))
    return float(size)


def max_context(table: DeploymentTable, limit_tokens: Number = 1 << 20) -> Number:
    """The largest context (a multiple of 256, at most `limit_tokens`) at which each row fits; 0 where none does."""
    shape = np.shape(table.walk.n_layers)
    low = np.zeros(shape)
    high = np.broadcast_to(np.asarray(limit_tokens) // 256, shape).astype(float)
    for _ in range(22):
        middle = np.ceil((low + high) / 2)
        fits = table_memory(replace(table, context_tokens=np.maximum(middle, 1) * 256)).fits & (middle > 0)
        low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
        high = np.maximum(high, low)
    return low * 256
