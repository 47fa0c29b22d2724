"""What is priced: a model in a scheme, on a machine, under an engine with its settings, for a workload."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from estimators.quantity import Quantity
from hwdb.device import Machine
from modeldb.model import Model
from modeldb.scheme import Scheme

Backend = Literal["cuda", "rocm", "metal", "vulkan", "sycl", "cpu", "neuron", "hpu", "cann", "other"]
Program = Literal["server", "bench"]  # a server limits its outputs, a benchmark does not


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the weights live.

    `n_gpu_layers` counts whole layers on the accelerators (None: all, and the head); `n_cpu_expert_layers`
    counts MoE layers whose routed experts stay in host memory. `tensor_parallel` splits each tensor,
    `pipeline_parallel` splits layers over devices, `expert_parallel` splits experts, `data_parallel` repeats attention.
    """

    n_gpu_layers: int | None = None
    n_cpu_expert_layers: int = 0
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    expert_parallel: int = 1
    data_parallel: int = 1


@dataclass(frozen=True, slots=True)
class Workload:
    """Who asks what: `prompt_tokens` new tokens after `cached_tokens` already in the cache, then `output_tokens`,
    for `n_sequences` at once. `client` says how requests arrive when there are several."""

    prompt_tokens: int = 512
    output_tokens: int = 128
    cached_tokens: int = 0
    n_sequences: int = 1
    client: Literal["static", "burst", "closed", "poisson"] = "static"  # burst: n_sequences requests at once
    prompts_per_user: int = 10
    requests_per_s: float | None = None
    output_spread: float = 1.0  # the longest answer over the mean one: a ragged queue drains slowly


@dataclass(frozen=True, slots=True)
class Settings:
    """Engine settings that change memory or speed. None means the engine's own default."""

    context_tokens: int = 4096  # per sequence
    kv_type_k: str = "f16"
    kv_type_v: str = "f16"
    flash_attention: bool = True
    batch_tokens: int | None = None  # llama.cpp -b; max_num_batched_tokens elsewhere
    micro_batch_tokens: int | None = None  # llama.cpp -ub
    unified_cache: bool | None = None
    full_window_cache: bool = False
    latent_cache: bool | None = None  # MLA: keep the latent (True) or keys and values of every head
    eager: bool = False  # no CUDA graphs
    n_threads: int | None = None
    memory_fraction: float | None = None
    program: Program = "server"
    n_outputs: int | None = None
    engine_version: str = ""
    repacked: bool = False  # host weights interleaved for the CPU (ik_llama.cpp -rtr, _R4): no GPU reads them
    toolchain: str = ""  # what it was built with where that matters: amdvlk, rocwmma, rocblas (no hipBLASLt)
    year: float | None = None
    # as the file says, where its scheme is only a name (UD-, private mixes)
    weights_bytes: float | None = None


@dataclass(frozen=True)
class Deployment:
    """One thing to price."""

    model: Model
    scheme: Scheme
    machine: Machine
    engine: str
    backend: Backend
    placement: Placement = field(default_factory=Placement)
    workload: Workload = field(default_factory=Workload)
    settings: Settings = field(default_factory=Settings)

    def with_(self, **changes: object) -> Deployment:
        return replace(self, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class BillLine:
    """One item of memory on one device. `kind` groups: weights, cache, compute, engine, reserve."""

    kind: Literal["weights", "cache", "compute", "engine", "reserve"]
    name: str
    size: Quantity  # bytes
    source: str = ""


@dataclass(frozen=True)
class DeviceBill:
    """What one device (or the host, `device="host"`) holds. `capacity_bytes` is what may be used there."""

    device: str
    capacity_bytes: int | None
    lines: tuple[BillLine, ...]

    def total(self) -> Quantity:
        """Bytes: the lines summed (interval ends add too, which is conservative)."""
        return Quantity(
            sum(line.size.low for line in self.lines),
            sum(line.size.best for line in self.lines),
            sum(line.size.high for line in self.lines),
        )


@dataclass(frozen=True)
class Bill:
    """The itemised memory of a deployment, one entry per device, the host last when it holds something."""

    devices: tuple[DeviceBill, ...]
    file_bytes: int | None = None  # what is downloaded, where the container defines it

    def fits(self) -> bool:
        return all(d.capacity_bytes is None or d.total().best <= d.capacity_bytes for d in self.devices)


@dataclass(frozen=True)
class Term:
    """One term of a roofline: where its seconds come from."""

    name: str  # "weights", "attention", "head", "experts on host", "launches", "all-reduce", ...
    seconds: float
    flops: float = 0.0
    bytes: float = 0.0
    bound: Literal["compute", "memory", "latency", "link"] = "memory"


@dataclass(frozen=True)
class Estimate:
    """The price of a deployment. Times in seconds, rates in tokens per second.

    `tpot_s` is per output token of one sequence; `decode_tokens_per_s` is over all sequences.
    `bottleneck` names the largest term of decode, `prefill_bottleneck` that of prefill.
    """

    bill: Bill
    ttft_s: Quantity
    tpot_s: Quantity
    prefill_tokens_per_s: Quantity
    decode_tokens_per_s: Quantity
    bottleneck: str
    prefill_bottleneck: str
    decode_terms: tuple[Term, ...] = ()
    prefill_terms: tuple[Term, ...] = ()
    floor_ttft_s: float = 0.0  # physics: nothing is faster
    floor_tpot_s: float = 0.0
    sources: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
