"""Deployments to the numbers that the roofline takes: which device, which units, how the work is split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from estimators import formats, memory
from estimators.cpu_kernels import PRESENT_YEAR, decoding_share
from estimators.deployed_walk import as_run, corrected, known_walk
from estimators.deployment import Deployment
from estimators.efficiency import REFERENCE_YEAR, Situation, structure_index
from estimators.engine_memory import POOLS
from estimators.measurements import Rows
from estimators.memory_lines import kv_ranks
from estimators.metrics import drained, running_sequences
from estimators.peaks import Peaks, family, peaks, tier
from estimators.speed import METAL_TILE_TOKENS, VECTOR_TOKENS
from estimators.traits import Traits, traits
from estimators.walk import Number, Walk
from hwdb.device import Device, Machine

#: PCIe 4.0 x16, one direction: what links devices whose link is not known.
PCIE_BYTES_PER_S = 25e9
#: llama.cpp split rows over devices until b1800 (January 2024), layers since; it overlaps micro-batches of
#: different stages since b2400 (March 2024).
LAYER_SPLIT_YEAR, PIPELINE_YEAR = 2024.05, 2024.2
#: llama.cpp keeps latent attention compressed, in prefill too, since April 2025 (ggml-org/llama.cpp#12801);
#: ik_llama.cpp expands it for prompts.
ABSORBED_YEAR = 2025.3
GGML_BATCH = 2048  # llama.cpp -b: no micro-batch is larger


@dataclass(frozen=True, slots=True)
class Layout:
    """How devices share the work, and how much of it one forward pass takes."""

    n_tensor: int
    n_stages: int
    chunk_tokens: float
    eager: bool
    pipelined: bool
    gathered: bool
    server: bool
    plain: bool
    absorbed: bool
    masked: bool
    vector_tokens: float
    tile_tokens: float


@dataclass(frozen=True, slots=True)
class Observation:
    """A deployment, and what was measured of it."""

    deployment: Deployment
    metric: str
    value: float
    source: str
    trust: str = "high"


def main_device(machine: Machine, backend: str) -> Device | None:
    """The device that computes: the host for CPU backends, else the first accelerator."""
    if backend == "cpu" or not machine.devices:
        return machine.host or (machine.devices[0] if machine.devices else None)
    return machine.devices[0]


def situation(d: Deployment, device: Device, split: Layout | None = None) -> Situation:
    """The labels of a deployment (laid out as `split`, where that is known)."""
    placed, split = d.placement, split or layout(d)
    several = placed.tensor_parallel * placed.pipeline_parallel * placed.data_parallel > 1
    return Situation(
        engine=d.engine,
        lineage=traits(d.engine).lineage,
        backend=d.backend,
        family=family(device),
        device=device.id,
        flash="flash" if d.settings.flash_attention else "plain",
        split=("rows" if split.gathered else "many") if several else "one",
        toolchain=d.settings.toolchain,
        tier=tier(device),
        year=build_year(d),
        isa=tuple(device.cpu_isa) if d.backend == "cpu" else (),
    )


def build_year(d: Deployment) -> float:
    """The decimal year of the engine's build. Who asks without a date runs what is current; on GPUs, whose effects of
    time run on past what was measured, the middle of it."""
    if d.settings.year is not None:
        return d.settings.year
    return PRESENT_YEAR if d.backend == "cpu" else REFERENCE_YEAR + 1.0


def layout(d: Deployment) -> Layout:
    """How this engine splits this deployment."""
    engine: Traits = traits(d.engine)
    year = d.settings.year or REFERENCE_YEAR
    placed = d.placement
    tensor, stages = placed.tensor_parallel * placed.data_parallel, placed.pipeline_parallel
    gathered = False
    if engine.lineage == "ggml" and tensor * stages > 1:
        gathered = tensor > 1 or year < LAYER_SPLIT_YEAR
        tensor, stages = (tensor * stages, 1) if gathered else (1, stages)
    elif engine.lineage == "eager" and not engine.tensor_parallel:
        tensor, stages = 1, tensor * stages
    chunk = d.settings.batch_tokens
    if engine.lineage == "ggml":
        chunk = min(d.settings.micro_batch_tokens or int(engine.chunk_tokens), chunk or GGML_BATCH)
    return Layout(
        n_tensor=tensor,
        n_stages=stages,
        chunk_tokens=float(chunk or engine.chunk_tokens),
        eager=engine.eager or d.settings.eager,
        pipelined=stages > 1
        and engine.lineage == "ggml"
        and d.engine != "ik_llama.cpp"  # its rates do not rise with the prompt (DeepSeek-R1, 16 RTX 3090)
        and d.backend == "cuda"
        and year > PIPELINE_YEAR,
        gathered=gathered,
        server=engine.server and d.settings.program == "server",
        plain=engine.lineage == "ggml" and not d.settings.flash_attention,
        absorbed=engine.lineage == "ggml" and d.engine != "ik_llama.cpp" and year > ABSORBED_YEAR,
        masked=engine.lineage == "ggml",
        vector_tokens=VECTOR_TOKENS if engine.lineage == "ggml" and d.backend != "cpu" else 0.0,
        tile_tokens=METAL_TILE_TOKENS if engine.lineage == "ggml" and d.backend == "metal" else 1.0,
    )


def cores_share(device: Device, n_threads: int | None) -> float:
    """Share of a CPU's arithmetic that so many threads reach; more threads than cores add nothing. Fewer clock
    higher and have more cache each. Measured rates are those of as many threads as they were measured with."""
    cores = fast_cores(device)
    if not cores:
        return 1.0
    counted = device.thread_bandwidths[-1][0] if device.thread_bandwidths else cores
    return float((min(n_threads or cores, cores) / counted) ** CORES_SLOPE)


def fast_cores(device: Device) -> int | None:
    """Cores that a CPU's rates count, and that llama.cpp runs on by default."""
    return device.cpu_fast_cores or device.cpu_cores


#: 32 threads of a Xeon 6980P reach 2.4 times less than its 128 in prompts, 43 1.9, 64 1.5 (ik_llama-github-data); one
#: thread of four to sixteen cores 2.6 to 7 times less than all (t-mac-docs).
CORES_SLOPE = 0.85


#: What one core can pull from memory, and what share of an Apple chip's bandwidth its CPU cores reach
#: together (M1 Max: 102 GB/s of one core, 243 of 400 GB/s of all; AnandTech, 2021-10-25). Other cores: one
#: Zen 4 desktop core reads the weights of ik_llama.cpp's single-thread runs at 51 GB/s.
CORE_BYTES_PER_S, APPLE_CORE_BYTES_PER_S, APPLE_CPU_SHARE = 55e9, 100e9, 0.6


#: Share of a further node's memory that a process reaches whose pages lie where they were first touched, on one
#: (fitted for second sockets of hosts beside accelerators, `data/host.json`: 0.19).
SECOND_NODE = 0.2
#: What a read test finds of the datasheet bandwidth that efficiencies are shares of: decoding itself reaches 71 of a
#: Ryzen 9 7950X's 83 GB/s and 109 of the 128 that Strix Halo's cores have, and llama.cpp's 16-bit weights stream as
#: fast as a read test does (two cores of a Zen 5 server, 46-48 GB/s both).
READ_SHARE = 0.85


def bandwidth_bytes_per_s(
    device: Device, backend: str, n_threads: int | None, second_node: float = SECOND_NODE
) -> float | None:
    """Peak bandwidth that the processors in use can reach, or None where it is not known."""
    whole = device.bandwidth_bytes_per_s
    nodes = device.cpu_sockets * device.memory_nodes
    if whole and device.kind == "cpu" and device.basis == "measured":
        whole /= READ_SHARE
    elif whole and device.kind == "cpu" and nodes > 1:
        whole *= (1.0 + (nodes - 1) * second_node) / nodes
    if backend != "cpu" or not whole or (device.basis == "measured" and not n_threads):
        return whole
    if device.thread_bandwidths:
        counts, rates = zip(*device.thread_bandwidths, strict=True)
        return float(np.interp(n_threads or counts[-1], counts, rates)) / READ_SHARE
    apple = device.id.startswith("apple")
    n_cores = min(n_threads or device.cpu_cores or 1024, device.cpu_cores or 1024)
    reachable = whole * (APPLE_CPU_SHARE if apple else 1.0)
    return min(reachable, n_cores * (APPLE_CORE_BYTES_PER_S if apple else CORE_BYTES_PER_S))


def device_peaks(
    d: Deployment, device: Device, format_class: str, labels: Situation | None = None
) -> Peaks | None:
    """The peaks of one device for this deployment's kernels."""
    share = cores_share(device, d.settings.n_threads) if d.backend == "cpu" else 1.0
    lineage, build = traits(d.engine).lineage, labels or situation(d, device)
    flash = build.flash == "flash"
    return peaks(
        device, lineage, d.backend, format_class, share, d.engine, build.year, build.toolchain, flash
    )


#: Threads that meet after an operation as fast as at any smaller number: beyond, each adds as much again (they
#: count up one cache line that travels between them).
FREE_THREADS = 16


def meeting(device: Device, backend: str, n_threads: int | None, lineage: str = "ggml") -> float:
    """How much longer than for a few threads a CPU's threads take to meet after each operation of ggml."""
    if backend != "cpu" or lineage != "ggml":
        return 1.0
    n = min(n_threads or fast_cores(device) or 1, device.cpu_cores or 1 << 30)
    return max(1.0, n / FREE_THREADS)


def link_bytes_per_s(device: Device, n_devices: Number = 1) -> Number:
    """Bandwidth to a peer, one direction. A bridge joins two cards: more of them meet over PCIe, and so do
    GeForce cards, for which it is sold apart and seldom fitted."""
    link = device.peer or device.pcie
    if device.pcie and device.peer and "bridge" in device.peer.name and device.id.startswith("geforce"):
        link = device.pcie
    elif device.pcie and device.peer and "bridge" in device.peer.name:
        return np.where(np.asarray(n_devices) > 2, device.pcie.bytes_per_s, device.peer.bytes_per_s)[()]
    return link.bytes_per_s if link else PCIE_BYTES_PER_S


def kv_bytes(kind: str) -> float:
    """Bytes of one cached element."""
    from modeldb import formats as stored

    return stored.kv(kind).bits_per_weight / 8


#: trtllm-bench tunes its largest batch to the cache, up to this (tensorrt_llm/bench/build/tuning.py).
TRTLLM_BATCH = 4096


def _cache_room(d: Deployment, w: Walk, device: Device) -> float:
    """Bytes that all devices together leave for the cache, by the engine's own knob where it has one."""
    placed = d.placement
    n_devices = placed.tensor_parallel * placed.pipeline_parallel * placed.data_parallel
    if d.engine not in POOLS:
        fraction = d.settings.memory_fraction or 0.9
        return n_devices * ((device.memory_bytes or 0.0) * fraction - 3e9) - w.total_bytes
    held = memory.inputs(d, replay=False)
    ranks = float(np.squeeze(kv_ranks(held))) * placed.pipeline_parallel * placed.data_parallel
    return float(np.squeeze(memory.pool_bytes(held))) * min(n_devices, ranks)


def n_sequences(d: Deployment, w: Walk, device: Device) -> float:
    """Sequences that run at once, on average: as asked, or, when a queue is drained, as many as the cache
    holds; the longest answers of a ragged queue end it with few."""
    work = d.workload
    if work.client == "closed":
        return drained(float(work.n_sequences), work.n_sequences * work.prompts_per_user, work.output_spread)
    if work.client != "burst" or not device.memory_bytes:
        return float(work.n_sequences)
    # TensorRT-LLM admits a request when its whole answer has room, the others when its prompt has
    answered = work.output_tokens * (1.0 if d.engine == "trt-llm" else 0.75)
    grown = work.cached_tokens + work.prompt_tokens + answered
    k, v = kv_bytes(d.settings.kv_type_k), kv_bytes(d.settings.kv_type_v)
    sequence = (w.kv_k_full * k + w.kv_v_full * v) * grown
    sequence += (w.kv_k_window * k + w.kv_v_window * v) * min(grown, w.window_tokens) + 4.0 * w.state_elements
    room = _cache_room(d, w, device)
    engine = traits(d.engine)
    large = device.memory_bytes > 70e9 and not device.id.startswith("a100")  # as vLLM tells devices apart
    modern = d.engine == "vllm" and large and (d.settings.year or REFERENCE_YEAR) > 2025.3
    limit = TRTLLM_BATCH if d.engine == "trt-llm" else 1024 if modern else engine.max_sequences
    running = float(running_sequences(work.n_sequences, room, sequence, limit))
    return drained(running, work.n_sequences, work.output_spread)


def rows(observations: Iterable[Observation]) -> tuple[Rows, list[int]]:
    """The observations as arrays, and the positions of those that could be expressed (a device without
    bandwidth or peak, or a deployment partly on the host, cannot)."""
    kept: list[int] = []
    columns: dict[str, list[Any]] = {f.name: [] for f in fields(Rows) if f.name != "walk"}
    walks: list[Walk] = []
    for position, seen in enumerate(observations):
        one = _row(seen)
        if one is None:
            continue
        kept.append(position)
        walks.append(one.pop("walk"))
        for name, value in one.items():
            columns[name].append(value)
    table = Walk(**{f.name: np.array([getattr(w, f.name) for w in walks], dtype=float) for f in fields(Walk)})
    situations = columns.pop("situations")
    return Rows(situations=situations, walk=table, **{k: np.array(v) for k, v in columns.items()}), kept


def _row(seen: Observation) -> dict[str, Any] | None:
    d = seen.deployment
    device = main_device(d.machine, d.backend)
    if device is None or not device.bandwidth_bytes_per_s or seen.value <= 0:
        return None
    if d.placement.n_cpu_expert_layers or (d.placement.n_gpu_layers is not None and d.backend != "cpu"):
        return None
    name = formats.class_of(d.scheme, d.model.hidden_size)
    lineage = traits(d.engine).lineage
    name = formats.run_as(name, device, lineage)
    split = layout(d)
    labels = situation(d, device, split)
    peak = device_peaks(d, device, name, labels)
    if peak is None:
        return None
    w = as_run(corrected(known_walk(d.model, d.scheme), d.settings.weights_bytes), d)
    kv = (kv_bytes(d.settings.kv_type_k) + kv_bytes(d.settings.kv_type_v)) / 2
    return {
        "walk": w,
        "situations": labels,
        "formats": name,
        "structure": int(structure_index(w)),
        "cache": int(kv < 1.5),
        "heads": int(w.head_dim > 128),
        "bandwidth_bytes_per_s": bandwidth_bytes_per_s(device, d.backend, d.settings.n_threads),
        "matrix_flops": peak.matrix,
        "vector_flops": peak.vector,
        "attention_flops": peak.attention,
        "expanded_bytes": peak.expanded_bytes,
        "link_bytes_per_s": float(link_bytes_per_s(device, split.n_tensor)),
        "n_tensor": float(split.n_tensor),
        "n_stages": float(split.n_stages),
        "chunk_tokens": split.chunk_tokens,
        "eager": split.eager,
        "pipelined": split.pipelined,
        "expert_launches": traits(d.engine).expert_launches,
        "meeting": meeting(device, d.backend, d.settings.n_threads, lineage),
        "decoding_share": decoding_share(d.engine, lineage, d.backend, labels.year, labels.flash == "flash"),
        "gathered": split.gathered,
        "server": split.server,
        "plain": split.plain,
        "absorbed": split.absorbed,
        "masked": split.masked,
        "vector_tokens": split.vector_tokens,
        "tile_tokens": split.tile_tokens,
        "n_sequences": n_sequences(d, w, device),
        "prompt_tokens": float(d.workload.prompt_tokens),
        "output_tokens": float(d.workload.output_tokens),
        "cached_tokens": float(d.workload.cached_tokens),
        "kv_bytes": kv,
        "metric": seen.metric,
        "value": float(seen.value),
        "source": seen.source,
        "trust": seen.trust,
        "model": d.model.base or d.model.id,
    }
