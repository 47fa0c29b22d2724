"""What a measurement of memory reads, predicted: one function per figure that logs and benchmarks print."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from estimators.deployment import Deployment
from estimators.engine_memory import CONTEXT, GIB, POOLS, TRANSFORMERS, Line
from estimators.memory import inputs, kv_capacity_tokens, pool_bytes
from estimators.memory_lines import Inputs, cache_total, device_lines, host_lines, stages
from estimators.quantity import Quantity

Metric = Literal[
    "weights_gib", "kv_gib", "compute_buffer_gib", "total_gib", "gpu_mem_gb", "file_gb", "kv_tokens"
]


def observed_bytes(deployment: Deployment, metric: str, offloaded: bool = False) -> Quantity:
    """Bytes (tokens for `kv_tokens`) behind a printed figure.

    weights_gib: every tensor that the loader keeps (`offloaded`: those on accelerators only); kv_gib: cache and
    state, for pool engines the pool of one rank; compute_buffer_gib: all backends' buffers; total_gib and
    gpu_mem_gb: what the devices hold, summed; file_gb: the download; kv_tokens: tokens of the pool.

    Raises ValueError for a metric that is none of these, or a figure that this container leaves open.
    """
    if metric == "kv_tokens":
        return _about(kv_capacity_tokens(deployment), 0.06)
    x = inputs(deployment, replay=metric in ("compute_buffer_gib", "total_gib", "gpu_mem_gb"))
    if metric == "file_gb":
        if x.walk.file_bytes <= 0:
            raise ValueError(
                f"the size of a {deployment.scheme.container} download is not defined by its tensors"
            )
        return _about(x.walk.file_bytes, 0.01)
    if metric == "weights_gib":
        return _about(_weights(x, offloaded), 0.01)
    if metric == "kv_gib":
        if x.engine in POOLS:
            return _about(pool_bytes(x), 0.08)
        cache, state = cache_total(x)
        return Quantity.exact(float(cache + state))
    if metric == "compute_buffer_gib":
        return _sum([line for line in _all_lines(x) if line.kind == "compute"])
    if metric in ("total_gib", "gpu_mem_gb"):
        return _in_use(x)
    raise ValueError(f"metric `{metric}` is not a figure of memory")


def _about(value: float, width: float) -> Quantity:
    return Quantity(value * (1 - width), float(value), value * (1 + width))


def _sum(lines: list[Line]) -> Quantity:
    return Quantity(
        float(sum(line.low for line in lines)),
        float(sum(line.best for line in lines)),
        float(sum(line.high for line in lines)),
        "calibrated",
    )


def _device_lines(x: Inputs) -> list[Line]:
    if not x.on_gpu:
        return host_lines(x)
    ranks = max(1, x.tensor_parallel) * max(1, x.data_parallel)
    return [line for stage in stages(x) for line in device_lines(x, stage) * ranks]


def _all_lines(x: Inputs) -> list[Line]:
    return _device_lines(x) + (host_lines(x) if x.on_gpu else [])


def _weights(x: Inputs, offloaded: bool) -> float:
    if offloaded and np.all(x.walk.expert_bytes > 0) and _overflows(x):
        x = replace(x, n_cpu_expert_layers=x.walk.n_moe_layers)  # the row names no placement: the usual one
    if offloaded and x.on_gpu:
        return float(sum(line.best for line in _device_lines(x) if line.kind == "weights"))
    if offloaded and _overflows(x):
        w = x.walk
        return float(w.mixer_bytes + w.dense_bytes + w.shared_bytes + w.other_bytes + w.head_bytes)
    total = float(x.walk.total_bytes)
    return total - float(x.walk.tower_bytes) if x.gguf else total


def _overflows(x: Inputs) -> bool:
    """Whether the weights exceed the devices (or nobody says what the devices are)."""
    sizes = [device.memory_bytes for device in x.machine.devices]
    return not sizes or None in sizes or x.walk.total_bytes > sum(size for size in sizes if size)


def _in_use(x: Inputs) -> Quantity:
    """What nvidia-smi or the allocator's peak shows, over all devices."""
    if x.engine in POOLS and x.on_gpu:
        pools = [pool_bytes(x, stage) * stage.ranks for stage in stages(x)]
        rest = [line for line in _device_lines(x) if line.kind != "cache"]
        return _wider(_sum(rest), float(sum(pools)))
    lines = _device_lines(x)
    if x.engine in TRANSFORMERS:  # PyTorch's allocator counts tensors, not the driver's context
        lines = [line for line in lines if not line.name.endswith(CONTEXT)]
    return _sum(lines)


def _wider(q: Quantity, extra: float) -> Quantity:
    best = q.best + extra
    return Quantity(0.93 * best, best, 1.07 * best, "calibrated")


__all__ = ["GIB", "Metric", "observed_bytes"]
