"""What a row of a measurement file asks: a deployment and a metric, or the reason why it cannot be priced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from estimators.deployment import Deployment

Metric = Literal[
    # speed
    "decode_tps", "prefill_tps", "output_throughput_tps", "total_throughput_tps", "request_throughput",
    "ttft_ms", "tpot_ms", "serving",
    # memory
    "weights_gib", "kv_gib", "compute_buffer_gib", "total_gib", "gpu_mem_gb", "file_gb", "kv_tokens",
    "llamacpp", "boundary", "tensors",
]  # fmt: skip

#: Remarks that set a row apart; `validate` reports them as groups and calibration may leave them out.
Flag = Literal[
    "no-drafts",  # the row's source measured without speculation
    "speculative",  # predicted without speculation: the measured rate is not comparable
    "offloaded",  # part of the weights in host memory, as the row says
    "spilled",  # part of the weights in host memory because they do not fit; the row does not say how much
    "size-corrected",  # the scheme is an approximation and the file's size was reported
    "approximate-scheme",  # the scheme is an approximation and no size was reported
    "assumed-lengths",  # the row prints no prompt or output length
    "assumed-host",  # the host's memory bandwidth is not stated
    "saturated",  # every request at once, batch set by the cache that fits
    "disaggregated",
    "assumed-workers",  # prefill and decode workers apart, and the row does not say how many
    "shape-inferred",
    "decimal-gb",  # the row says that its GB are 1e9 bytes
]


@dataclass(frozen=True)
class Ask:
    """The price wanted. `prefill` is the deployment of the prefill workers when they are separate.

    `n_devices` is the whole system (all replicas and workers). `per_device` rows divide throughput by it.
    `concurrency` counts users of the whole system, `workers` and `prefill_workers` its replicas.
    """

    deployment: Deployment
    metric: Metric
    flags: tuple[Flag, ...] = ()
    notes: tuple[str, ...] = ()
    prefill: Deployment | None = None
    workers: int = 1
    prefill_workers: int = 1
    n_devices: int = 1
    per_device: bool = False
    concurrency: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a row has no price, in one line."""

    reason: str
