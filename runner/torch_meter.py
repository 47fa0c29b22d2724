"""A metered request on a PyTorch device: time to the first token, time of each further one, bytes, peak memory."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from runner import torch_device as devices
from runner.meter import SPREAD, StepCounts, prefill_flops, step_counts

if TYPE_CHECKING:
    from runner.torch_backend import TorchEngine


@dataclass(frozen=True)
class GpuReport:
    """Seconds, bytes and FLOPs; `token_s` are the times of single decode steps by the device's clock. `peak_bytes` is
    the most that tensors took (None where PyTorch does not count), weights and cache included."""

    n_prompt: int
    ttft_s: float
    token_s: tuple[float, ...]
    first: StepCounts
    last: StepCounts
    weight_bytes: int
    cache_allocated_bytes: int
    peak_bytes: int | None
    prefill_flops: float
    conditions: devices.GpuConditions
    remarks: tuple[str, ...] = field(default=())

    @property
    def tpot_s(self) -> float:
        return float(np.median(self.token_s))

    @property
    def decode_bytes_per_s(self) -> float:
        return (self.first.bytes_touched + self.last.bytes_touched) / 2 / self.tpot_s

    @property
    def prefill_flops_per_s(self) -> float:
        return self.prefill_flops / self.ttft_s

    @property
    def overhead_bytes(self) -> int | None:
        """Peak beyond weights and cache."""
        if self.peak_bytes is None:
            return None
        return self.peak_bytes - self.weight_bytes - self.cache_allocated_bytes


def run(engine: TorchEngine, prompt: list[int], n_decode: int) -> GpuReport:
    """Prefill `prompt` twice (the first does not count), then decode `n_decode` tokens greedily on the device."""
    engine.rewind(0)
    engine.prefill(prompt)
    engine.decode_times(prompt[0], 2)
    engine.rewind(0)
    devices.synchronize(engine.device)
    devices.reset_peak(engine.device)
    watch = devices.GpuWatch(engine.device)
    started = time.perf_counter()
    token = int(np.argmax(engine.prefill(prompt)))
    ttft = time.perf_counter() - started
    times = engine.decode_times(token, n_decode)
    conditions = watch.conditions()
    remarks = list(conditions.remarks())
    low, high = np.percentile(times, [25, 75])
    if len(times) > 3 and high - low > SPREAD * np.median(times):
        remarks.append(f"times of a token spread by {(high - low) / np.median(times):.0%}")
    return GpuReport(
        n_prompt=len(prompt),
        ttft_s=ttft,
        token_s=tuple(times),
        first=step_counts(engine, len(prompt) + 1),  # type: ignore[arg-type]
        last=step_counts(engine, len(prompt) + n_decode),  # type: ignore[arg-type]
        weight_bytes=engine.meter.weight_bytes,
        cache_allocated_bytes=engine.meter.cache_bytes,
        peak_bytes=devices.peak_bytes(engine.device),
        prefill_flops=prefill_flops(engine, len(prompt)),  # type: ignore[arg-type]
        conditions=conditions,
        remarks=tuple(remarks),
    )
