"""The one door: what deployments cost. `estimate` prices one with its terms, `price` a whole table; both run the
same lines."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from estimators import formats, speed
from estimators.deployment import Deployment, Estimate, Placement, Settings, Term, Workload
from estimators.efficiency import LATENTS, Situation, evaluate, interval, load, measured
from estimators.efficiency import place as place_of
from estimators.errors import CannotPrice
from estimators.metrics import printed
from estimators.observation import (
    PCIE_BYTES_PER_S,
    bandwidth_bytes_per_s,
    cores_share,
    corrected,
    known_walk,
    kv_bytes,
    layout,
    link_bytes_per_s,
    main_device,
    n_sequences,
    situation,
)
from estimators.peaks import peaks
from estimators.quantity import Quantity
from estimators.table import BOTTLENECKS, DeploymentTable, PriceTable
from estimators.traits import traits
from estimators.walk import Number, Walk
from hwdb.device import Device, Machine

CHUNK = 4096  # deployments priced at once: their arrays stay in the processor's cache
STREAM_TOKENS = 32  # llama.cpp copies host weights to the GPU for batches of at least this many tokens


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


@dataclass(frozen=True, slots=True)
class Parts:
    """Seconds of one phase on the accelerators and on the host."""

    main: speed.Step
    host_s: Number

    @property
    def total_s(self) -> Number:
        return self.main.total_s + self.host_s


def side(
    machine: Machine, engine: str, backend: str, labels: Situation, device: Device, threads: int | None
) -> Side:
    """The rates of `device` under this engine. Raises CannotPrice where its bandwidth or peaks are unknown."""
    lineage = traits(engine).lineage
    share = cores_share(device, threads) if backend == "cpu" else 1.0
    found = [peaks(device, lineage, backend, name, share) for name in formats.CLASSES]
    bandwidth = bandwidth_bytes_per_s(device, backend, threads)
    if not bandwidth:
        raise CannotPrice(f"the memory bandwidth of {device.name} is not known")
    if any(p is None for p in found):
        raise CannotPrice(f"the arithmetic rate of {device.name} is not known")
    return Side(
        device,
        bandwidth,
        labels,
        evaluate(load(), labels, formats.CLASSES),
        np.array([p.matrix for p in found if p]),
        np.array([p.vector for p in found if p]),
        np.array([p.attention for p in found if p]),
    )


def _rates(s: Side, kind: Number, place: Number, **split: Any) -> speed.Rates:
    """Rates for deployments whose format class is `kind` and whose latents stand at `place`."""
    got = {name: s.latents[name].reshape(-1)[place] for name in LATENTS}
    return speed.Rates(
        bandwidth_bytes_per_s=s.bandwidth_bytes_per_s,
        matrix_flops=s.matrix[kind],
        vector_flops=s.vector[kind],
        attention_peak_flops=s.attention[kind],
        **{f"{name}_efficiency": got[name] for name in LATENTS[:7]},
        **{f"{name}_overhead_s": got[name] for name in ("layer", "step", "request", "reduce", "hop")},
        expert_padding_tokens=got["padding"],
        link_bytes_per_s=link_bytes_per_s(s.device) * got["link"],
        **split,
    )


def portion(walk: Walk, layers: Number, experts: Number, head: Number) -> Walk:
    """The part of a model that keeps these shares of its layers, of its routed experts, and its head or not."""
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


def _plan(t: DeploymentTable) -> Plan:
    one = _as_deployment(t)
    split = layout(one)
    device = main_device(t.machine, t.backend)
    if device is None:
        raise CannotPrice("the machine has neither an accelerator nor a known CPU")
    main = side(t.machine, t.engine, t.backend, situation(one, device), device, t.n_threads)
    host = None
    if t.backend != "cpu" and (
        np.any(np.asarray(t.n_gpu_layers) >= 0) or np.any(np.asarray(t.n_cpu_expert_layers) > 0)
    ):
        if t.machine.host is None:
            raise CannotPrice("part of the model is on the host, whose CPU is not known")
        labels = situation(one.with_(backend="cpu"), t.machine.host)
        host = side(t.machine, t.engine, "cpu", labels, t.machine.host, t.n_threads)
    return Plan(t, main, host, split.eager, split.chunk_tokens, split.pipelined, split.gathered, split.server)


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
        ),  # fmt: skip
    )


def _at(value: Number, part: slice) -> Number:
    return value[part] if isinstance(value, np.ndarray) and value.ndim else value


def phases(plan: Plan, part: slice) -> tuple[Parts, Parts, speed.Rates]:
    """(prefill, one decode step, rates) of the deployments in `part` of the table."""
    t = plan.table
    walk = Walk(**{f.name: _at(getattr(t.walk, f.name), part) for f in fields(Walk)})
    kind = _at(np.asarray(t.format_class), part)
    k, v = _at(t.kv_k_bytes, part), _at(t.kv_v_bytes, part)
    place = place_of(kind, walk, (k + v) / 2)
    tensor, stages = _at(t.tensor_parallel, part), _at(t.pipeline_parallel, part)
    if plan.gathered:
        tensor, stages = tensor * stages, 1
    elif plan.main.situation.lineage == "eager":
        tensor, stages = 1, tensor * stages
    rates = _rates(
        plan.main, kind, place, n_tensor=tensor, n_stages=stages, chunk_tokens=plan.chunk_tokens, eager=plan.eager,
        pipelined=plan.pipelined, gathered=plan.gathered,
    )  # fmt: skip
    prompt, cached, users = _at(t.prompt_tokens, part), _at(t.cached_tokens, part), _at(t.n_sequences, part)
    start = prompt + cached
    stop = start + _at(t.output_tokens, part)
    if plan.host is None:
        prefill = Parts(speed.prefill(walk, rates, prompt, cached, users, k, v), 0.0)
        return prefill, Parts(speed.decode_step(walk, rates, users, start, stop, k, v), 0.0), rates
    near, far = _split(t, walk, part)
    host = _rates(plan.host, kind, place, chunk_tokens=plan.chunk_tokens)
    far_prefill = speed.prefill(far, host, prompt, cached, users, k, v).total_s
    streamed = _streamed_s(far, plan, rates, prompt * users)
    far_prefill = np.where(prompt * users >= STREAM_TOKENS, np.minimum(far_prefill, streamed), far_prefill)
    far_step = speed.decode_step(far, host, users, start, stop, k, v).total_s
    apart = far.n_layers + far.expert_bytes + far.head_bytes > 0
    prefill = Parts(
        speed.prefill(near, rates, prompt, cached, users, k, v), np.where(apart, far_prefill, 0.0)
    )
    decode = Parts(speed.decode_step(near, rates, users, start, stop, k, v), np.where(apart, far_step, 0.0))
    return prefill, decode, rates


def _split(t: DeploymentTable, walk: Walk, part: slice) -> tuple[Walk, Walk]:
    """What the accelerators hold, and what the host holds. Layers beyond the last one are the head."""
    layers = np.asarray(_at(t.n_gpu_layers, part))
    everything = layers < 0
    share = np.where(everything, 1.0, np.minimum(layers / walk.n_layers, 1.0))
    head = np.where(everything | (layers > walk.n_layers), 1.0, 0.0)
    away = np.minimum(_at(t.n_cpu_expert_layers, part) / np.maximum(walk.n_moe_layers, 1.0), 1.0)
    experts = np.minimum(share, 1.0 - away)
    return portion(walk, share, experts, head), portion(walk, 1.0 - share, 1.0 - experts, 1.0 - head)


def _streamed_s(far: Walk, plan: Plan, rates: speed.Rates, tokens: Number) -> Number:
    """Host weights copied over PCIe once per micro-batch and multiplied on the accelerator."""
    link = plan.main.device.pcie
    stored = far.mixer_bytes + far.dense_bytes + far.shared_bytes + far.expert_bytes + far.head_bytes
    copied = stored * np.ceil(tokens / plan.chunk_tokens) / (link.bytes_per_s if link else PCIE_BYTES_PER_S)
    return copied + speed.prefill(far, rates, tokens).total_s


def _rows(t: DeploymentTable, part: slice) -> DeploymentTable:
    """Some rows of a table."""
    walk = Walk(**{f.name: _at(getattr(t.walk, f.name), part) for f in fields(Walk)})
    values = {f.name: _at(getattr(t, f.name), part) for f in fields(DeploymentTable) if f.name != "walk"}
    return DeploymentTable(walk=walk, **values)


def price(table: DeploymentTable) -> PriceTable:
    """The price of every deployment of a table. Raises CannotPrice where nothing is known of the device."""
    from estimators import memory

    plan = _plan(table)
    n = len(table)
    columns = {f.name: np.empty(n, dtype=float) for f in fields(PriceTable)}
    for first in range(0, n, CHUNK):
        part = slice(first, min(first + CHUNK, n))
        held = memory.table_memory(_rows(table, part))
        for name, value in _price_part(plan, part).items():
            columns[name][part] = value
        for name in ("device_bytes", "host_bytes", "free_bytes", "fits"):
            columns[name][part] = getattr(held, name)
    columns["fits"] = columns["fits"] > 0
    for name in ("bottleneck", "prefill_bottleneck"):
        columns[name] = columns[name].astype(np.int8)
    return PriceTable(**columns)


def _price_part(plan: Plan, part: slice) -> dict[str, Number]:
    prefill, decode, rates = phases(plan, part)
    users = _at(plan.table.n_sequences, part)
    request = rates.request_overhead_s if plan.server else 0.0
    ttft, tpot = prefill.total_s + request, decode.total_s
    many = np.asarray(users) > 1
    slow, fast = (
        np.where(many, b, a)
        for a, b in zip(*(interval(load(), plan.main.situation, k) for k in ("decode", "batch")), strict=True)
    )
    slow_first, fast_first = interval(load(), plan.main.situation, "prefill")
    return {
        "ttft_s": ttft,
        "ttft_low_s": ttft * fast_first,
        "ttft_high_s": ttft * slow_first,
        "tpot_s": tpot,
        "tpot_low_s": tpot * fast,
        "tpot_high_s": tpot * slow,
        "prefill_tokens_per_s": _at(plan.table.prompt_tokens, part) * users / prefill.total_s,
        "decode_tokens_per_s": users / tpot,
        "decode_low_tokens_per_s": users / (tpot * slow),
        "decode_high_tokens_per_s": users / (tpot * fast),
        "bottleneck": _bottleneck(decode),
        "prefill_bottleneck": _bottleneck(prefill),
    }


_ORDER = [BOTTLENECKS.index(name) for name in ("weights", "experts", "cache", "launches", "links", "host")]


def _bottleneck(p: Parts) -> Number:
    """Index into BOTTLENECKS of the largest term; weights bound by arithmetic are `compute`."""
    terms = np.broadcast_arrays(
        p.main.weights_s, p.main.experts_s, p.main.cache_s, p.main.launches_s, p.main.links_s, p.host_s
    )
    largest = np.argmax(np.stack(terms), axis=0)
    found = np.array(_ORDER)[largest]
    return np.where((largest <= 1) & p.main.compute_bound, BOTTLENECKS.index("compute"), found)


#: Share of the accelerators' memory that weights may take where cache and buffers must fit beside them.
WEIGHTS_SHARE = 0.85


def _spilled_expert_layers(d: Deployment, walk: Walk) -> int:
    """Layers whose routed experts do not fit on the accelerators ("as many as do not fit" is a placement of -1)."""
    room = WEIGHTS_SHARE * sum(x.memory_bytes or 0 for x in d.machine.devices)
    per_layer = walk.expert_bytes / max(walk.n_moe_layers, 1)
    over = max(walk.total_bytes - walk.embedding_bytes - room, 0.0)
    return int(min(walk.n_moe_layers, np.ceil(over / max(per_layer, 1.0))))


def table_of(d: Deployment) -> DeploymentTable:
    """A table of one deployment."""
    device = main_device(d.machine, d.backend)
    walk = corrected(known_walk(d.model, d.scheme), d.settings.weights_bytes)
    work, placed = d.workload, d.placement
    users = n_sequences(d, walk, device) if device else float(work.n_sequences)
    return DeploymentTable(
        machine=d.machine,
        engine=d.engine,
        backend=d.backend,
        walk=Walk(**{f.name: np.array([getattr(walk, f.name)]) for f in fields(Walk)}),
        format_class=np.array([formats.class_index(d.scheme)]),
        context_tokens=d.settings.context_tokens,
        prompt_tokens=float(max(work.prompt_tokens, 1)),
        output_tokens=float(work.output_tokens),
        cached_tokens=float(work.cached_tokens),
        n_sequences=users,
        kv_k_bytes=kv_bytes(d.settings.kv_type_k),
        kv_v_bytes=kv_bytes(d.settings.kv_type_v),
        n_gpu_layers=-1 if placed.n_gpu_layers is None or d.backend == "cpu" else placed.n_gpu_layers,
        n_cpu_expert_layers=_spilled_expert_layers(d, walk)
        if placed.n_cpu_expert_layers < 0
        else placed.n_cpu_expert_layers,
        tensor_parallel=placed.tensor_parallel,
        pipeline_parallel=placed.pipeline_parallel,
        eager=d.settings.eager,
        year=d.settings.year,
        n_threads=d.settings.n_threads,
        micro_batch_tokens=d.settings.micro_batch_tokens,
        extra={
            "flash_attention": d.settings.flash_attention,
            "program": d.settings.program,
            "batch_tokens": d.settings.batch_tokens,
        },
    )


@dataclass(frozen=True)
class Speed:
    """The speed half of an estimate, as plain floats: seconds of prefill, of one step, of the request."""

    plan: Plan
    prefill: Parts
    decode: Parts
    request_s: float
    n_sequences: float

    def metric(self, name: str, work: Workload) -> float:
        """What a benchmark of this workload prints."""
        table = printed(
            float(np.squeeze(self.prefill.total_s)), float(np.squeeze(self.decode.total_s)), self.request_s,
            self.n_sequences, float(max(work.prompt_tokens, 1)), float(work.output_tokens),
        )  # fmt: skip
        return float(table[name])


def speed_of(d: Deployment) -> Speed:
    """How fast a deployment runs, whether or not it fits. Raises CannotPrice."""
    plan = _plan(table_of(d))
    prefill, decode, rates = phases(plan, slice(0, 1))
    request = float(np.squeeze(rates.request_overhead_s)) if plan.server else 0.0
    return Speed(plan, prefill, decode, request, float(plan.table.n_sequences))


def estimate(d: Deployment) -> Estimate:
    """The price of one deployment, with the terms it is made of. Raises CannotPrice."""
    from estimators import memory

    found = speed_of(d)
    labels = found.plan.main.situation
    ttft = float(np.squeeze(found.prefill.total_s)) + found.request_s
    tpot = float(np.squeeze(found.decode.total_s))
    users = found.n_sequences
    decode_terms, prefill_terms = _terms(found.decode), _terms(found.prefill)
    first, each = (
        _quantity(ttft, labels, "prefill"),
        _quantity(tpot, labels, "decode" if users <= 1 else "batch"),
    )
    new = d.workload.prompt_tokens * users
    return Estimate(
        bill=memory.bill(d),
        ttft_s=first,
        tpot_s=each,
        prefill_tokens_per_s=Quantity(
            new / first.high, new / (ttft - found.request_s), new / first.low, first.origin, first.note
        ),
        decode_tokens_per_s=Quantity(
            users / each.high, users / tpot, users / each.low, each.origin, each.note
        ),
        bottleneck=BOTTLENECKS[int(np.squeeze(_bottleneck(found.decode)))],
        prefill_bottleneck=BOTTLENECKS[int(np.squeeze(_bottleneck(found.prefill)))],
        decode_terms=decode_terms,
        prefill_terms=prefill_terms,
        sources=tuple(load().provenance.get("sources", ())),
    )


def _quantity(best: float, labels: Situation, phase: str) -> Quantity:
    slow, fast = interval(load(), labels, phase)
    note = "" if measured(load(), labels) else f"{labels.device} was never measured with {labels.engine}"
    return Quantity(best * fast, best, best * slow, "calibrated", note)


def _terms(p: Parts) -> tuple[Term, ...]:
    bound = "compute" if bool(np.squeeze(p.main.compute_bound)) else "memory"
    named = (
        ("weights", p.main.weights_s, bound), ("experts", p.main.experts_s, bound), ("cache", p.main.cache_s, "memory"),
        ("launches", p.main.launches_s, "latency"), ("links", p.main.links_s, "link"), ("host", p.host_s, "memory"),
    )  # fmt: skip
    return tuple(
        Term(name, float(np.squeeze(s)), bound=kind)  # type: ignore[arg-type]
        for name, s, kind in named
        if float(np.squeeze(s)) > 0
    )
