"""The itemised memory of deployments, one line per item and device; one arithmetic for one and for many.

`bill` prices one deployment (with llama.cpp's compute buffer replayed exactly); `table_memory` prices a
`DeploymentTable` with the closed form of that buffer; both sum the lines of `estimators.memory_lines`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from estimators import ik_llamacpp
from estimators import llamacpp_memory as llamacpp
from estimators.deployed_walk import corrected, known_walk
from estimators.deployment import Bill, BillLine, Deployment, DeviceBill
from estimators.engine_memory import BLOCK_TOKENS, LLAMACPP, Line, constants
from estimators.memory_inputs import EXACT_WIDTH, Inputs, Stage, stages
from estimators.memory_lines import cache_total, cells_of, device_lines, host_lines, kv_ranks, shared
from estimators.quantity import Origin, Quantity
from estimators.walk import Number
from hwdb.device import Device, Machine
from modeldb.architectures import LAYOUTS, Layout

if TYPE_CHECKING:
    from estimators.table import DeploymentTable

SGLANG_BEFORE_POOL = ("context and workspaces", "communication")  # held when SGLang measures what is free
IK_WIDTH = 0.25  # of ik_llama.cpp's buffers: options that logs do not print (-amb, -fmoe) move them
UNCHECKED_WIDTH = 0.15  # of compute buffers in architectures whose graph was not compared with llama.cpp's
# Metal lets one process wire 2/3 of memory up to 36 GiB, 3/4 above (recommendedMaxWorkingSetSize)
METAL_SMALL_BYTES, METAL_SMALL_SHARE, METAL_LARGE_SHARE = 36 << 30, 2 / 3, 3 / 4


# -- one deployment ------------------------------------------------------------------------------------------


def inputs(deployment: Deployment, replay: bool = True) -> Inputs:
    """The numbers behind a deployment's bill; without `replay`, llama.cpp's buffer is the closed form."""
    d, s, p = deployment, deployment.settings, deployment.placement
    walk = corrected(known_walk(d.model, d.scheme), s.weights_bytes)
    gguf = d.engine in LLAMACPP
    if gguf:
        walk = llamacpp.as_cached(walk, d.model, d.engine, s.year, s.latent_cache)
    if d.engine == "ik_llama.cpp":
        walk = ik_llamacpp.as_stored(walk, d.model, d.scheme, s.latent_cache is not False)
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
        flash_attention=s.flash_attention,
        micro_batch_tokens=s.micro_batch_tokens or llamacpp.MICRO_BATCH_TOKENS,
        batch_tokens=s.batch_tokens, n_outputs=outputs,
        unified=s.unified_cache if s.unified_cache is not None else server or n == 1,
        full_window_cache=s.full_window_cache, eager=s.eager, year=s.year, memory_fraction=s.memory_fraction,
        family=d.scheme.family, max_context=d.model.max_context,
    )  # fmt: skip
    return _replayed(x, deployment) if gguf and replay else x


def _replayed(x: Inputs, d: Deployment) -> Inputs:
    """`x` with llama.cpp's compute buffers as its allocator would lay them out."""
    held, s = cells_of(x), d.settings
    if d.engine == "ik_llama.cpp":
        away = bool(np.any(np.asarray(x.n_cpu_expert_layers) > 0))
        sizes = ik_llamacpp.buffers(
            x.walk, d.model, d.scheme, held, x.micro_batch_tokens, x.flash_attention, x.on_gpu, away
        )
        return replace(
            x,
            compute_bytes=sizes.peak,
            inner_compute_bytes=sizes.inner,
            host_compute_bytes=sizes.host,
            compute_width=IK_WIDTH,
        )
    common = (d.model, held, max(1, d.workload.n_sequences), x.micro_batch_tokens)
    kinds = (s.kv_type_k, s.kv_type_v, s.flash_attention)
    peak = llamacpp.compute_bytes(*common, x.n_outputs, *kinds)
    inner = peak if x.n_outputs == 1 else llamacpp.compute_bytes(*common, 1, *kinds)
    width = EXACT_WIDTH if LAYOUTS.get(d.model.architecture, Layout()).exact else UNCHECKED_WIDTH
    return replace(x, compute_bytes=float(peak), inner_compute_bytes=float(inner), compute_width=width)


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
    origin: Origin = (
        "calibrated" if line.kind in ("compute", "engine") and line.low != line.high else "derived"
    )
    return BillLine(
        line.kind, line.name, Quantity(float(line.low), best, float(line.high), origin), line.source
    )


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
        total = visible_bytes(device) or size
        return int(min(size, total * (x.memory_fraction or c["vllm"]["fraction"])))
    if x.engine in ("trt-llm", "lmdeploy"):
        key = (
            c["trt-llm"]["free_fraction"] if x.engine == "trt-llm" else c["lmdeploy"]["cache_max_entry_count"]
        )
        free = max(size - sum(line.size.best for line in lines if line.kind != "cache"), 0)
        return int(size - free * (1.0 - (x.memory_fraction or key)))
    return int(size)


def usable_bytes(device: Device) -> int | None:
    """Memory that one process may use: all of the device's, on Apple chips what Metal lets it wire."""
    size = device.memory_bytes
    if size is None or device.vendor.lower() != "apple":
        return size
    return int(size * (METAL_SMALL_SHARE if size <= METAL_SMALL_BYTES else METAL_LARGE_SHARE))


def visible_bytes(device: Device) -> float | None:
    """What CUDA reports as the device's memory: less than the datasheet's, much less where ECC takes its part."""
    if device.memory_bytes is None or device.vendor.lower() != "nvidia":
        return device.memory_bytes
    inline = device.market in ("datacenter", "workstation") and device.memory_type.startswith("GDDR")
    return device.memory_bytes * float(constants()["visible"]["inline_ecc" if inline else "share"])


def _host_capacity(machine: Machine) -> int | None:
    return (
        machine.host_free_bytes
        or machine.host_memory_bytes
        or (machine.host.memory_bytes if machine.host else None)
    )


# -- what engines leave for the cache ------------------------------------------------------------------------


def pool_bytes(x: Inputs, stage: Stage | None = None) -> Number:
    """Bytes of the cache pool that a pool engine takes on one rank: what its knob leaves after the rest."""
    stage = stage or stages(x)[-1]
    lines = device_lines(x, stage)
    weights = sum(line.best for line in lines if line.kind == "weights")
    other = sum(line.best for line in lines if line.kind in ("compute", "engine", "reserve"))
    total, c = float(stage.device.memory_bytes or 0), constants()
    if x.engine not in ("trt-llm", "optimum-nvidia", "lmdeploy"):  # theirs were fitted on the whole
        total = float(visible_bytes(stage.device) or 0)
    if x.engine == "sglang":
        static = sum(line.best for line in lines if line.name in SGLANG_BEFORE_POOL)
        return np.maximum(total * (x.memory_fraction or c["sglang"]["fraction"]) - weights - static, 0.0)
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
    share = (stage.end - stage.start) / kv_ranks(x)
    tokens = float(pool_bytes(x, stage) / (per_token * share / 16384))
    block = BLOCK_TOKENS.get(x.engine, 1)
    return tokens // block * block


def max_sequences(deployment: Deployment, tokens_each: int) -> int:
    """How many sequences of so many tokens the pool holds at once (TensorRT-LLM sets some more aside)."""
    more = constants()["trt-llm"]["reserved_tokens_per_sequence"] if deployment.engine == "trt-llm" else 0
    return int(kv_capacity_tokens(deployment) // (tokens_each + more))


# -- tables --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TableMemory:
    """Bytes of the fullest accelerator (of the host when there is none) and of the host; what is left."""

    device_bytes: Number
    host_bytes: Number
    free_bytes: Number  # of the tightest device; negative where it does not fit
    fits: Number  # bool


def table_inputs(table: DeploymentTable) -> Inputs:
    """The numbers behind a table's memory. `extra` may hold `flash_attention`, `n_outputs`, `unified`,
    `compute_bytes` (replayed, per row), `batch_tokens`, `memory_fraction`, `program`."""
    extra = table.extra
    walk = llamacpp.table_as_cached(table.walk) if table.engine in LLAMACPP else table.walk
    n_outputs = extra.get("n_outputs", None if extra.get("program") == "bench" else table.n_sequences)
    return Inputs(
        walk=walk, engine=table.engine, backend=table.backend, machine=table.machine,
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
    values = np.unique(code)
    if len(values) == 1:
        return _priced(
            replace(x, tensor_parallel=int(values[0]) // 1024, pipeline_parallel=int(values[0]) % 1024)
        )
    for value in values:
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
    sums = shared(x)
    host: Number = sum((line.best for line in host_lines(x, sums)), 0.0)
    host_capacity = _host_capacity(x.machine)
    host_free = np.inf if host_capacity is None else host_capacity - host
    if not x.on_gpu:
        return TableMemory(host, host, host_free, np.asarray(host_free) >= 0)
    unified = x.machine.devices[0].unified_memory
    fullest: Number = 0.0
    tightest: Number = np.inf
    for stage in stages(x):
        lines = device_lines(x, stage, sums)
        used = sum((line.best for line in lines), 0.0) + (host if unified else 0.0)
        fullest = np.maximum(fullest, used)
        tightest = np.minimum(tightest, _budget(x, stage, lines) - used)
    free = tightest if unified else np.minimum(tightest, np.where(np.asarray(host) > 0, host_free, np.inf))
    return TableMemory(fullest, host, free, np.asarray(free) >= 0)


def _budget(x: Inputs, stage: Stage, lines: list[Line]) -> Number:
    """`budget_bytes` for arrays."""
    size = usable_bytes(stage.device)
    if stage.index * stage.ranks < len(x.machine.free_bytes):
        free = x.machine.free_bytes[stage.index * stage.ranks]
        size = min(size or free, free)
    if size is None:
        return np.inf
    c = constants()
    if x.engine == "vllm":
        total = visible_bytes(stage.device) or size
        return min(float(size), total * (x.memory_fraction or c["vllm"]["fraction"]))
    if x.engine in ("trt-llm", "lmdeploy"):
        key = (
            c["trt-llm"]["free_fraction"] if x.engine == "trt-llm" else c["lmdeploy"]["cache_max_entry_count"]
        )
        free = np.maximum(size - sum(line.best for line in lines if line.kind != "cache"), 0.0)
        return size - free * (1.0 - (x.memory_fraction or key))
    return float(size)


def max_context(table: DeploymentTable, limit_tokens: Number = 1 << 20) -> Number:
    """The largest context (a multiple of 256, at most `limit_tokens`) that fits in each row; 0: none does."""
    shape = np.shape(table.walk.n_layers)
    low = np.zeros(shape)
    high = np.broadcast_to(np.asarray(limit_tokens) // 256, shape).astype(float)
    for _ in range(22):
        middle = np.ceil((low + high) / 2)
        fits = table_memory(replace(table, context_tokens=np.maximum(middle, 1) * 256)).fits & (middle > 0)
        low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
        high = np.maximum(high, low)
    return low * 256
