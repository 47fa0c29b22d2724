"""Many deployments at once: one machine, one engine and one backend, as a struct of arrays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from estimators.walk import Number, Walk
from hwdb.device import Machine

#: What `PriceTable.bottleneck` and `PriceTable.prefill_bottleneck` index.
BOTTLENECKS: tuple[str, ...] = (
    "weights", "experts", "cache", "compute", "attention", "head", "launches", "links", "host",
)  # fmt: skip


@dataclass(frozen=True)
class DeploymentTable:
    """Deployments that share a machine, an engine and a backend. Each field holds one number per deployment,
    or one number for all of them; all broadcast to the shape of `walk.n_layers`.

    `format_class` is the class of the weights' kernels (`estimators.formats.class_index(scheme)`),
    `kv_k_bytes` and `kv_v_bytes` are bytes per cached element (`modeldb.formats.kv(id).bits_per_weight /
    8`). `n_gpu_layers` < 0 means all of them, and the head.
    """

    machine: Machine
    engine: str
    backend: str
    walk: Walk
    format_class: Number  # index into estimators.formats.CLASSES
    context_tokens: Number = 4096
    prompt_tokens: Number = 512
    output_tokens: Number = 128
    cached_tokens: Number = 0
    n_sequences: Number = 1
    kv_k_bytes: Number = 2.0
    kv_v_bytes: Number = 2.0
    n_gpu_layers: Number = -1
    n_cpu_expert_layers: Number = 0
    tensor_parallel: Number = 1
    pipeline_parallel: Number = 1
    eager: bool = False
    year: float | None = None
    n_threads: int | None = None
    micro_batch_tokens: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)  # flash_attention, program, n_outputs, unified ...

    def __len__(self) -> int:
        return int(getattr(self.walk.n_layers, "size", 1))


@dataclass(frozen=True)
class PriceTable:
    """Prices of a `DeploymentTable`: seconds, tokens per second and bytes, one number per deployment.

    The `_low` and `_high` columns are the ends of a 90% interval. `fits` compares the best estimate of each
    device's memory with its capacity. `bottleneck` indexes `BOTTLENECKS`.
    """

    ttft_s: Number
    ttft_low_s: Number
    ttft_high_s: Number
    tpot_s: Number
    tpot_low_s: Number
    tpot_high_s: Number
    prefill_tokens_per_s: Number
    decode_tokens_per_s: Number  # over all sequences
    decode_low_tokens_per_s: Number
    decode_high_tokens_per_s: Number
    device_bytes: Number  # of the fullest accelerator (of the host when there is none)
    host_bytes: Number
    free_bytes: Number  # capacity of that device minus its bytes
    fits: Number  # bool
    bottleneck: Number  # int8
    prefill_bottleneck: Number  # int8
