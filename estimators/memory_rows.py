"""What a measurement of memory reads, predicted: one function per figure that logs and benchmarks print."""

from __future__ import annotations

from typing import Literal

from estimators.deployment import Deployment
from estimators.engine_memory import (
    CONTEXT,
    LLAMACPP,
    POOLS,
    TRANSFORMERS,
    Line,
    constants,
    context_line,
)
from estimators.memory import inputs, kv_capacity_tokens, pool_bytes
from estimators.memory_inputs import Inputs, stages
from estimators.memory_lines import cache_total, device_lines, host_lines
from estimators.quantity import Quantity

Metric = Literal[
    "weights_gib", "kv_gib", "compute_buffer_gib", "total_gib", "gpu_mem_gb", "file_gb", "kv_tokens"
]


VLLM_COUNTS_ALL_SINCE = 2025.0  # vLLM 0.6.5/0.7: memory outside PyTorch is profiled too


def observed_bytes(deployment: Deployment, metric: str, offloaded: bool = False) -> Quantity:
    """Bytes (tokens for `kv_tokens`) behind a printed figure.

    weights_gib: every tensor that the loader keeps (`offloaded`: those on accelerators only); kv_gib: cache
    and state, for pool engines the pool of one rank; compute_buffer_gib: all backends' buffers; total_gib and
    gpu_mem_gb: what the devices hold, summed; file_gb: the download; kv_tokens: tokens of the pool.

    Raises ValueError for a metric that is none of these, or a figure that this container leaves open.
    """
    best = _best(deployment, metric, offloaded)
    low, high = constants()["intervals"][_group(deployment.engine, metric, offloaded)][:2]
    return Quantity(best * low, best, best * high, "calibrated")


def _group(engine: str, metric: str, offloaded: bool) -> str:
    """The rows whose spread is this figure's interval."""
    if metric == "weights_gib":
        own = "weights ik_llama.cpp" if engine == "ik_llama.cpp" else "weights"
        return "weights offloaded" if offloaded else own
    if metric == "kv_gib" or metric == "kv_tokens":
        return "cache pool" if engine in POOLS else "cache"
    if metric == "compute_buffer_gib":
        return "compute ik_llama.cpp" if engine == "ik_llama.cpp" else "compute"
    if metric == "file_gb":
        return "file"
    kinds = (
        ({"chatglm.cpp"}, "use chatglm.cpp"),
        (LLAMACPP, "use llama.cpp"),
        (POOLS, "use pool"),
        ({"transformers", "litgpt"}, "use transformers"),
        ({"mlx"}, "use mlx"),
    )
    return next((name for engines, name in kinds if engine in engines), "use other")


def _best(deployment: Deployment, metric: str, offloaded: bool) -> float:
    if metric == "kv_tokens":
        return kv_capacity_tokens(deployment)
    x = inputs(deployment, replay=metric in ("compute_buffer_gib", "total_gib", "gpu_mem_gb"))
    if metric == "file_gb":
        if x.walk.file_bytes <= 0:
            raise ValueError(
                f"the size of a {deployment.scheme.container} download is not defined by its tensors"
            )
        return float(x.walk.file_bytes)
    if metric == "weights_gib":
        return _weights(x, offloaded)
    if metric == "kv_gib":
        return float(pool_bytes(x)) if x.engine in POOLS else float(sum(cache_total(x)))
    if metric == "compute_buffer_gib":
        return float(sum(line.best for line in _all_lines(x) if line.kind == "compute"))
    if metric in ("total_gib", "gpu_mem_gb"):
        return _in_use(x)
    raise ValueError(f"metric `{metric}` is not a figure of memory")


def _device_lines(x: Inputs) -> list[Line]:
    if not x.on_gpu:
        return host_lines(x)
    ranks = max(1, x.tensor_parallel) * max(1, x.data_parallel)
    return [line for stage in stages(x) for line in device_lines(x, stage) * ranks]


def _all_lines(x: Inputs) -> list[Line]:
    return _device_lines(x) + (host_lines(x) if x.on_gpu else [])


def _weights(x: Inputs, offloaded: bool) -> float:
    if offloaded and x.on_gpu:
        return float(sum(line.best for line in _device_lines(x) if line.kind == "weights"))
    total = float(x.walk.total_bytes)
    return total - float(x.walk.tower_bytes) if x.gguf else total


def _beyond_the_pool(x: Inputs) -> float:
    """vLLM of 2024 sized its pool by PyTorch's own memory alone: the context and the graphs came on top."""
    if x.engine != "vllm" or x.year is None or x.year >= VLLM_COUNTS_ALL_SINCE:
        return 0.0
    graphs = 0.0 if x.eager else constants()["vllm"]["graphs"]["best"]
    return x.tensor_parallel * (float(context_line(x.backend).best) + graphs)


def _in_use(x: Inputs) -> float:
    """What nvidia-smi or the allocator's peak shows, over all devices."""
    lines = _device_lines(x)
    if x.engine in POOLS and x.on_gpu:
        pools = sum(float(pool_bytes(x, stage)) * stage.ranks for stage in stages(x))
        return pools + float(sum(line.best for line in lines if line.kind != "cache")) + _beyond_the_pool(x)
    if x.gguf and x.backend == "vulkan" and x.on_gpu and x.machine.devices[0].unified_memory:
        # pinned host buffers, the embedding's too, count as the device's memory
        lines = lines + host_lines(x)
    if x.engine in TRANSFORMERS:  # PyTorch's allocator counts tensors, not the driver's context
        lines = [line for line in lines if not line.name.endswith(CONTEXT)]
    return float(sum(line.best for line in lines))
