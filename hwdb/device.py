"""What a machine is: devices, links and machines, as frozen values without behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["gpu", "apu", "soc", "cpu", "accelerator"]
Basis = Literal["measured", "calibrated", "datasheet", "derived", "assumed"]


@dataclass(frozen=True, slots=True)
class Link:
    """A connection between a device and its peers or its host.

    `bytes_per_s` is the bandwidth of one direction; `latency_s` the time of an empty message.
    """

    name: str
    bytes_per_s: float
    latency_s: float | None = None


@dataclass(frozen=True, slots=True)
class KernelRates:
    """What the bundled runner's kernels reach on this processor, measured by `plan measure`.

    `formats` holds, by format, bytes per second of a decode step's product with weights that stream from memory, and
    FLOP/s of a prompt's. `attention_bytes_per_s` is the rate at which one token attends to a long cache with one and
    with four query heads per key head; `attention_flops` that of a prompt. `layer_s` is what a layer costs beside.
    """

    formats: tuple[tuple[str, float, float], ...]
    attention_bytes_per_s: tuple[float, float]
    attention_flops: float
    layer_s: float


@dataclass(frozen=True, slots=True)
class Device:
    """One processor with its memory. Rates are dense peaks, in base SI units; None means unknown.

    `tensor` rates are those of matrix units with FP32 accumulation (what cuBLAS and vLLM use);
    `fp16_acc16_flops` is the FP16-accumulate rate where it differs (GeForce). `bandwidth_bytes_per_s`
    is the peak of the memory that holds `memory_bytes`.
    """

    id: str
    name: str
    vendor: str
    kind: Kind
    market: str = ""  # consumer, laptop, workstation, datacenter, server, embedded, mac
    architecture: str = ""
    capability: str = ""  # "sm_89", "gfx1100", ...
    memory_bytes: int | None = None
    memory_options_bytes: tuple[int, ...] = ()
    memory_type: str = ""
    unified_memory: bool = False
    bandwidth_bytes_per_s: float | None = None
    fp32_flops: float | None = None
    fp16_flops: float | None = None  # vector units
    fp16_tensor_flops: float | None = None
    fp16_acc16_flops: float | None = None
    bf16_tensor_flops: float | None = None
    fp8_flops: float | None = None
    fp8_acc16_flops: float | None = None  # where it differs (GeForce)
    int8_ops: float | None = None
    fp4_flops: float | None = None
    compute_units: int | None = None  # SMs, CUs, GPU cores
    boost_hz: float | None = None
    power_w: float | None = None
    pcie: Link | None = None
    peer: Link | None = None  # NVLink, Infinity Fabric, ...
    l2_bytes: int | None = None
    l3_bytes: int | None = None
    cpu_cores: int | None = None  # of all sockets
    cpu_isa: tuple[str, ...] = ()
    memory_channels: int | None = None
    release_year: int | None = None
    price_usd: float | None = None
    cloud_usd_per_hour: float | None = None
    laptop: bool = False
    integrated: bool = False
    basis: Basis = "datasheet"
    source: str = ""
    source_date: str = ""
    notes: str = ""
    cpu_sockets: int = 1
    cpu_fast_cores: int | None = None  # of hybrids: those that FP32 counts and llama.cpp runs on
    memory_nodes: int = 1  # of one socket, as shipped: a process's pages lie on one of them
    origins: tuple[tuple[str, str], ...] = ()  # (field, where it comes from), where not `source`
    kernels: KernelRates | None = None
    thread_bandwidths: tuple[tuple[int, float], ...] = ()  # as measured: (threads, bytes/s), ascending


@dataclass(frozen=True, slots=True)
class Machine:
    """Devices that work together, and the host that feeds them.

    `devices` are the accelerators in index order (empty on a CPU-only machine); `host` is the CPU with
    its memory. `free_bytes` has one entry per device where a probe could read it, else is empty.
    """

    name: str
    devices: tuple[Device, ...] = ()
    host: Device | None = None
    host_memory_bytes: int | None = None
    host_free_bytes: int | None = None
    free_bytes: tuple[int, ...] = ()
    operating_system: str = ""
    origin: Literal["detected", "described", "class"] = "described"
    notes: tuple[str, ...] = field(default=())
