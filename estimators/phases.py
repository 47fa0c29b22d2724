"""Seconds of prefill and of a decode step for rows of a table: rates of each side, split between them,
terms."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from estimators import formats, host, speed
from estimators.cpu_kernels import decoding_share
from estimators.deployment import Deployment, Placement, Settings
from estimators.efficiency import (
    LATENTS,
    REFERENCE_YEAR,
    SHARES,
    Efficiency,
    Situation,
    evaluate,
    interval,
    load,
)
from estimators.efficiency import place as place_of
from estimators.efficiency import tier as known
from estimators.errors import CannotPrice
from estimators.observation import (
    PCIE_BYTES_PER_S,
    SECOND_NODE,
    bandwidth_bytes_per_s,
    cores_share,
    layout,
    link_bytes_per_s,
    main_device,
    meeting,
    situation,
)
from estimators.peaks import peaks
from estimators.table import BOTTLENECKS, DeploymentTable
from estimators.traits import traits
from estimators.walk import Number, Walk
from hwdb.device import Device


@dataclass(frozen=True, slots=True)
class Side:
    """One processor's calibrated rates: `latents[name]` by (class, structure, cache), peaks by class."""

    device: Device
    bandwidth_bytes_per_s: float
    situation: Situation
    latents: dict[str, np.ndarray]
    matrix: np.ndarray
    vector: np.ndarray
    attention: np.ndarray
    expanded: np.ndarray
    meeting: float = 1.0
    decoding_share: float = 1.0


@dataclass(frozen=True, slots=True)
class Parts:
    """Seconds of one phase on the accelerators and on the host."""

    main: speed.Step
    host_s: Number

    @property
    def total_s(self) -> Number:
        return self.main.total_s + self.host_s


def side(
    held: Efficiency,
    engine: str,
    backend: str,
    labels: Situation,
    device: Device,
    threads: int | None,
    second_node: float = SECOND_NODE,
) -> Side:
    """The rates of `device` under this engine. Raises CannotPrice where its bandwidth or peaks are
    unknown."""
    lineage = traits(engine).lineage
    share = cores_share(device, threads) if backend == "cpu" else 1.0
    build = (labels.year, labels.toolchain)
    flash = labels.flash == "flash"
    found = [peaks(device, lineage, backend, name, share, engine, *build, flash) for name in formats.CLASSES]
    bandwidth = bandwidth_bytes_per_s(device, backend, threads, second_node)
    if not bandwidth:
        raise CannotPrice(f"the memory bandwidth of {device.name} is not known")
    if any(p is None for p in found):
        raise CannotPrice(f"the arithmetic rate of {device.name} is not known")
    classes = [formats.run_as(c, device, lineage) for c in formats.CLASSES]
    products = [labels.product(c, p.expanded_bytes) for c, p in zip(classes, found, strict=True) if p]
    return Side(
        device,
        bandwidth,
        labels,
        evaluate(held, labels, classes, products),
        np.array([p.matrix for p in found if p]),
        np.array([p.vector for p in found if p]),
        np.array([p.attention for p in found if p]),
        np.array([p.expanded_bytes for p in found if p]),
        meeting(device, backend, threads, labels.lineage),
        decoding_share(engine, labels.lineage, backend, labels.year, flash),
    )


def _rates(s: Side, kind: Number, place: Number, **split: Any) -> speed.Rates:
    """Rates for deployments whose format class is `kind` and whose latents stand at `place`."""
    got = {name: s.latents[name].reshape(-1)[place] for name in LATENTS}
    return speed.Rates(
        bandwidth_bytes_per_s=s.bandwidth_bytes_per_s,
        matrix_flops=s.matrix[kind],
        vector_flops=s.vector[kind],
        attention_peak_flops=s.attention[kind],
        expanded_bytes=s.expanded[kind],
        activation_passes=got["passes"],
        **{f"{name}_efficiency": got[name] for name in LATENTS[:7]},
        **{f"{name}_overhead_s": got[name] for name in ("layer", "step", "request", "reduce", "hop")},
        reread_share=got["reread"],
        expert_half_params=got["half"],
        sequence_overhead_s=got["sequence"],
        expert_padding_tokens=got["padding"],
        link_bytes_per_s=link_bytes_per_s(s.device, split.get("n_tensor", 1)) * got["link"],
        expert_launches=traits(s.situation.engine).expert_launches,
        meeting=s.meeting,
        decoding_share=s.decoding_share,
        **split,
    )


def portion(walk: Walk, layers: Number, experts: Number, head: Number) -> Walk:
    """The part of a model that keeps these shares of its layers, of its routed experts, and its head or
    not."""
    values = {f.name: getattr(walk, f.name) for f in fields(Walk)}
    for name in ("mixer", "dense", "shared", "other"):
        values[f"{name}_bytes"] = values[f"{name}_bytes"] * layers
        if name != "other":
            values[f"{name}_params"] = values[f"{name}_params"] * layers
    values["head_bytes"], values["head_params"] = walk.head_bytes * head, walk.head_params * head
    values["expert_bytes"], values["expert_params"] = (
        walk.expert_bytes * experts,
        walk.expert_params * experts,
    )
    values["n_moe_layers"] = walk.n_moe_layers * experts
    for name in (
        "n_layers", "attention_flops_full", "attention_flops_window", "decode_attention_flops", "kv_k_full",
        "kv_v_full", "kv_k_window", "kv_v_window", "index_elements", "state_elements",
    ):  # fmt: skip
        values[name] = values[name] * layers
    return Walk(**values)


@dataclass(frozen=True)
class Plan:
    """What a table's deployments share: its sides, and how the engine splits work."""

    table: DeploymentTable
    main: Side
    host: Side | None
    eager: bool
    chunk_tokens: float
    pipelined: bool
    gathered: bool
    server: bool
    plain: bool
    absorbed: bool
    masked: bool
    vector_tokens: float
    tile_tokens: float


def plan(t: DeploymentTable, held: Efficiency) -> Plan:
    """What the rows share, under a calibration. Raises CannotPrice where nothing is known of the device."""
    one = _as_deployment(t)
    split = layout(one)
    device = main_device(t.machine, t.backend)
    if device is None:
        raise CannotPrice("the machine has neither an accelerator nor a known CPU")
    main = side(held, t.engine, t.backend, situation(one, device), device, t.n_threads)
    far = None
    if t.backend != "cpu" and (
        np.any(np.asarray(t.n_gpu_layers) >= 0) or np.any(np.asarray(t.n_cpu_expert_layers) > 0)
    ):
        far = _far_side(one, t, held)
    shared = {f.name: getattr(split, f.name) for f in fields(split) if f.name not in ("n_tensor", "n_stages")}
    return Plan(t, main, far, **shared)


def _far_side(one: Deployment, t: DeploymentTable, held: Efficiency) -> Side:
    """The host's rates beside an accelerator; its kernels are those of llama.cpp's kind in every engine."""
    if t.machine.host is None:
        raise CannotPrice("part of the model is on the host, whose CPU is not known")
    labels = replace(situation(one.with_(backend="cpu"), t.machine.host), lineage="ggml")
    alone = side(held, t.engine, "cpu", labels, t.machine.host, t.n_threads, second_node=1.0)
    reached = host.rates(t.engine)
    return replace(
        alone,
        bandwidth_bytes_per_s=host.reached_bytes_per_s(alone.bandwidth_bytes_per_s, t.machine.host, reached),
        matrix=alone.matrix * reached.compute_share * host.tile_gain(t.engine, t.machine.host),
    )


def _as_deployment(t: DeploymentTable) -> Deployment:
    """A deployment with what the table's rows share (its model is never looked at)."""
    return Deployment(
        model=None,  # type: ignore[arg-type]
        scheme=None,  # type: ignore[arg-type]
        machine=t.machine,
        engine=t.engine,
        backend=t.backend,  # type: ignore[arg-type]
        placement=Placement(
            tensor_parallel=int(np.max(t.tensor_parallel)), pipeline_parallel=int(np.max(t.pipeline_parallel))
        ),
        settings=Settings(
            eager=t.eager,
            year=t.year,
            n_threads=t.n_threads,
            micro_batch_tokens=t.micro_batch_tokens,
            flash_attention=t.extra.get("flash_attention", True),
            program=t.extra.get("program", "server"),
            batch_tokens=t.extra.get("batch_tokens"),
            toolchain=t.extra.get("toolchain", ""),
        ),
    )


def at(value: Number, part: slice) -> Number:
    return value[part] if isinstance(value, np.ndarray) and value.ndim else value


def phases(plan: Plan, part: slice) -> tuple[Parts, Parts, speed.Rates]:
    """(prefill, one decode step, rates) of the deployments in `part` of the table."""
    t = plan.table
    walk = Walk(**{f.name: at(getattr(t.walk, f.name), part) for f in fields(Walk)})
    kind = at(np.asarray(t.format_class), part)
    k, v = at(t.kv_k_bytes, part), at(t.kv_v_bytes, part)
    place = place_of(kind, walk, (k + v) / 2)
    tensor, stages = at(t.tensor_parallel, part), at(t.pipeline_parallel, part)
    if plan.gathered:
        tensor, stages = tensor * stages, 1
    elif plan.main.situation.lineage == "eager" and not traits(t.engine).tensor_parallel:
        tensor, stages = 1, tensor * stages
    rates = _rates(
        plan.main, kind, place, n_tensor=tensor, n_stages=stages, chunk_tokens=plan.chunk_tokens,
        eager=plan.eager, pipelined=plan.pipelined, gathered=plan.gathered, plain=plan.plain,
        absorbed=plan.absorbed, masked=plan.masked, vector_tokens=plan.vector_tokens,
        tile_tokens=plan.tile_tokens,
    )  # fmt: skip
    prompt, cached, users = at(t.prompt_tokens, part), at(t.cached_tokens, part), at(t.n_sequences, part)
    start = prompt + cached
    stop = start + at(t.output_tokens, part)
    if plan.host is None:
        prefill = Parts(speed.prefill(walk, rates, prompt, cached, users, k, v), 0.0)
        return prefill, Parts(speed.decode_step(walk, rates, users, start, stop, k, v), 0.0), rates
    near, far = _split(t, walk, part)
    there = _rates(
        plan.host, kind, place, chunk_tokens=plan.chunk_tokens, plain=plan.plain, absorbed=plan.absorbed,
        masked=plan.masked,
    )  # fmt: skip
    faster = there.experts_compute_efficiency * host.rates(t.engine).experts_share
    there = replace(there, experts_compute_efficiency=np.minimum(faster, 1.0))
    far_prefill = speed.prefill(far, there, prompt, cached, users, k, v).total_s
    far_prefill = _shortest(far_prefill, far, plan, rates, prompt * users)
    far_step = speed.decode_step(far, there, users, start, stop, k, v).total_s
    far_step = far_step + _hops(near, far, walk) * host.rates(t.engine).hop_s
    apart = far.n_layers + far.expert_bytes + far.head_bytes > 0
    prefill = Parts(
        speed.prefill(near, rates, prompt, cached, users, k, v), np.where(apart, far_prefill, 0.0)
    )
    decode = Parts(speed.decode_step(near, rates, users, start, stop, k, v), np.where(apart, far_step, 0.0))
    return prefill, decode, rates


def _ideal(s: Side | None) -> Side | None:
    """A side whose kernels reach every peak and cost nothing to launch."""
    if s is None:
        return None
    latents = {
        n: np.full_like(v, 1.0 if n in SHARES and n != "reread" else 0.0) for n, v in s.latents.items()
    }
    return replace(
        s, latents=latents, vector=np.full_like(s.vector, np.inf), expanded=np.zeros_like(s.expanded)
    )


def floors(plan: Plan, part: slice) -> tuple[Number, Number]:
    """Seconds of prefill and of one decode step that no kernel beats: bytes at peak bandwidth or
    operations at peak rate, whichever takes longer (the soft maximum is at most 2^(1/4) above that)."""
    main = _ideal(plan.main)
    assert main is not None
    prefill, decode, _ = phases(replace(plan, main=main, host=_ideal(plan.host)), part)
    return prefill.total_s / 2**0.25, decode.total_s / 2**0.25


def _split(t: DeploymentTable, walk: Walk, part: slice) -> tuple[Walk, Walk]:
    """What the accelerators hold, and what the host holds. Layers beyond the last one are the head."""
    layers = np.asarray(at(t.n_gpu_layers, part))
    everything = layers < 0
    share = np.where(everything, 1.0, np.minimum(layers / walk.n_layers, 1.0))
    head = np.where(everything | (layers > walk.n_layers), 1.0, 0.0)
    away = np.minimum(at(t.n_cpu_expert_layers, part) / np.maximum(walk.n_moe_layers, 1.0), 1.0)
    experts = np.minimum(share, 1.0 - away)
    return portion(walk, share, experts, head), portion(walk, 1.0 - share, 1.0 - experts, 1.0 - head)


def _streamed_s(far: Walk, plan: Plan, rates: speed.Rates, tokens: Number) -> Number:
    """Host weights copied over PCIe once per micro-batch and multiplied on the accelerator."""
    link = plan.main.device.pcie
    always = far.mixer_bytes + far.dense_bytes + far.shared_bytes + far.head_bytes
    link_bytes = (link.bytes_per_s if link else PCIE_BYTES_PER_S) * host.rates(plan.table.engine).link_share
    chunk = host.chunk(plan.table.engine, _year(plan), plan.chunk_tokens)
    copies = np.ceil(tokens / chunk)
    stored = always + far.expert_bytes * speed.touched_share(far, tokens / copies)
    copied = stored * copies / (link_bytes * np.sqrt(rates.n_tensor))  # one host memory feeds them all
    return copied + speed.prefill(far, replace(rates, chunk_tokens=chunk), tokens).total_s


def _year(plan: Plan) -> float:
    return plan.table.year if plan.table.year is not None else REFERENCE_YEAR + 1.0


def _shortest(computed_s: Number, far: Walk, plan: Plan, rates: speed.Rates, tokens: Number) -> Number:
    """Seconds of the host's part of a prefill: computed there, or streamed to the accelerator."""
    engine, device = plan.table.engine, plan.main.device
    if device.unified_memory or plan.table.extra.get("repacked", False):
        return computed_s
    if engine == "ktransformers":
        if _year(plan) < host.LAYERWISE_YEAR:
            return computed_s
        return np.minimum(computed_s, _streamed_s(far, plan, rates, tokens))
    streamed = _streamed_s(far, plan, rates, tokens)
    chosen = np.minimum(computed_s, streamed) if engine == "ik_llama.cpp" else streamed
    return np.where(tokens >= host.STREAM_TOKENS, chosen, computed_s)


def _hops(near: Walk, far: Walk, walk: Walk) -> Number:
    """Times per step that work is handed to the host: per layer whose experts alone are there, else once."""
    away = far.expert_params / np.maximum(walk.expert_params, 1.0) * walk.n_moe_layers
    return np.maximum(away - far.n_layers, 0.0) + np.where(far.n_layers > 0, 1.0, 0.0)


def tier(plan: Plan, part: slice) -> Number:
    """How much of each deployment was measured: positions in `estimators.tiers.TIERS`."""
    walk = Walk(**{f.name: at(getattr(plan.table.walk, f.name), part) for f in fields(Walk)})
    return known(load(), plan.main.situation, walk)


def width(plan: Plan, part: slice, kind: str, tiers: Number | None = None) -> tuple[Number, Number]:
    """(slow, fast) factors on seconds of the 90% interval of `kind`: split deployments have their own."""
    seen = interval(load(), plan.main.situation, kind, tier(plan, part) if tiers is None else tiers)
    if plan.host is None:
        return seen
    layers, experts = at(plan.table.n_gpu_layers, part), at(plan.table.n_cpu_expert_layers, part)
    apart = (np.asarray(layers) >= 0) | (np.asarray(experts) > 0)
    own = host.interval(kind, plan.host.device.basis == "assumed")
    slow, fast = np.maximum(own[0], seen[0]), np.minimum(own[1], seen[1])
    return np.where(apart, slow, seen[0]), np.where(apart, fast, seen[1])


_ORDER = [BOTTLENECKS.index(name) for name in ("weights", "experts", "cache", "launches", "links", "host")]


def bottleneck(p: Parts) -> Number:
    """Index into BOTTLENECKS of the largest term; weights bound by arithmetic are `compute`."""
    terms = np.broadcast_arrays(
        p.main.weights_s, p.main.experts_s, p.main.cache_s, p.main.launches_s, p.main.links_s, p.host_s
    )
    largest = np.argmax(np.stack(terms), axis=0)
    found = np.array(_ORDER)[largest]
    return np.where((largest <= 1) & p.main.compute_bound, BOTTLENECKS.index("compute"), found)
