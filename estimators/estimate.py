"""The one door: what deployments cost. `estimate` prices one with its terms, `price` a whole table, by the
same lines."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from estimators import formats, personal
from estimators.deployed_walk import as_run, corrected, known_walk
from estimators.deployment import Deployment, Estimate, Term, Workload
from estimators.efficiency import load, structure_index
from estimators.metrics import printed
from estimators.observation import kv_bytes, main_device, n_sequences
from estimators.personal import Corrections
from estimators.phases import Parts, Plan, at, floors, phases, tier, width
from estimators.phases import bottleneck as _bottleneck
from estimators.phases import plan as plan_of
from estimators.quantity import Quantity
from estimators.table import BOTTLENECKS, DeploymentTable, PriceTable
from estimators.tiers import sentence
from estimators.walk import Number, Walk

CHUNK = 4096  # deployments priced at once: their arrays stay in the processor's cache


def _rows(t: DeploymentTable, part: slice) -> DeploymentTable:
    """Some rows of a table."""
    walk = Walk(**{f.name: at(getattr(t.walk, f.name), part) for f in fields(Walk)})
    values = {f.name: at(getattr(t, f.name), part) for f in fields(DeploymentTable) if f.name != "walk"}
    return DeploymentTable(walk=walk, **values)


def price(table: DeploymentTable, mine: Corrections | None = None) -> PriceTable:
    """The price of every deployment of a table, sharpened by the user's measurements where given. Raises
    CannotPrice where nothing is known of the device."""
    from estimators import memory

    plan = plan_of(table, load())
    n = len(table)
    columns = {f.name: np.empty(n, dtype=float) for f in fields(PriceTable)}
    for first in range(0, n, CHUNK):
        part = slice(first, min(first + CHUNK, n))
        held = memory.table_memory(_rows(table, part))
        for name, value in _price_part(plan, part).items():
            columns[name][part] = value
        for name in ("device_bytes", "host_bytes", "free_bytes", "fits"):
            columns[name][part] = getattr(held, name)
    if table.extra.get("client"):
        from estimators import serving_table

        if serving_table.applies(table):
            for name, value in serving_table.columns(table).items():
                columns[name][:] = value
    columns["fits"] = columns["fits"] > 0
    for name in ("bottleneck", "prefill_bottleneck"):
        columns[name] = columns[name].astype(np.int8)
    return PriceTable(**columns) if mine is None else personal.table(PriceTable(**columns), plan, mine)


def _price_part(plan: Plan, part: slice) -> dict[str, Number]:
    prefill, decode, rates = phases(plan, part)
    users = at(plan.table.n_sequences, part)
    request = rates.request_overhead_s if plan.server else 0.0
    ttft, tpot = prefill.total_s + request, decode.total_s
    many, tiers = np.asarray(users) > 1, tier(plan, part)
    slow, fast = (
        np.where(many, b, a)
        for a, b in zip(*(width(plan, part, k, tiers) for k in ("decode", "batch")), strict=True)
    )
    slow_first, fast_first = width(plan, part, "prefill", tiers)
    return {
        "ttft_s": ttft,
        "ttft_low_s": ttft * fast_first,
        "ttft_high_s": ttft * slow_first,
        "tpot_s": tpot,
        "tpot_low_s": tpot * fast,
        "tpot_high_s": tpot * slow,
        "prefill_tokens_per_s": at(plan.table.prompt_tokens, part) * users / prefill.total_s,
        "decode_tokens_per_s": users / tpot,
        "decode_low_tokens_per_s": users / (tpot * slow),
        "decode_high_tokens_per_s": users / (tpot * fast),
        "bottleneck": _bottleneck(decode),
        "prefill_bottleneck": _bottleneck(prefill),
    }


#: Share of the accelerators' memory that weights may take where cache and buffers must fit beside them.
WEIGHTS_SHARE = 0.85


def _spilled_expert_layers(d: Deployment, walk: Walk) -> int:
    """Layers whose routed experts do not fit on the accelerators ("as many as do not fit" is a placement of
    -1)."""
    room = WEIGHTS_SHARE * sum(x.memory_bytes or 0 for x in d.machine.devices)
    per_layer = walk.expert_bytes / max(walk.n_moe_layers, 1)
    over = max(walk.total_bytes - walk.embedding_bytes - room, 0.0)
    return int(min(walk.n_moe_layers, np.ceil(over / max(per_layer, 1.0))))


def table_of(d: Deployment) -> DeploymentTable:
    """A table of one deployment."""
    device = main_device(d.machine, d.backend)
    walk = as_run(corrected(known_walk(d.model, d.scheme), d.settings.weights_bytes), d)
    work, placed = d.workload, d.placement
    users = n_sequences(d, walk, device) if device else float(work.n_sequences)
    return DeploymentTable(
        machine=d.machine,
        engine=d.engine,
        backend=d.backend,
        walk=Walk(**{f.name: np.array([getattr(walk, f.name)]) for f in fields(Walk)}),
        format_class=np.array([formats.class_index(d.scheme, walk.hidden_size)]),
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
        tensor_parallel=placed.tensor_parallel * placed.data_parallel,  # attention is split by sequences then
        pipeline_parallel=placed.pipeline_parallel,
        eager=d.settings.eager,
        year=d.settings.year,
        n_threads=d.settings.n_threads,
        micro_batch_tokens=d.settings.micro_batch_tokens,
        extra={
            "flash_attention": d.settings.flash_attention,
            "program": d.settings.program,
            "batch_tokens": d.settings.batch_tokens,
            "toolchain": d.settings.toolchain,
            "repacked": d.settings.repacked,
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
    plan = plan_of(table_of(d), load())
    prefill, decode, rates = phases(plan, slice(0, 1))
    request = float(np.squeeze(rates.request_overhead_s)) if plan.server else 0.0
    return Speed(plan, prefill, decode, request, float(plan.table.n_sequences))


def estimate(d: Deployment, mine: Corrections | None = None) -> Estimate:
    """The price of one deployment with its terms, sharpened by the user's measurements where given. Raises
    CannotPrice."""
    from estimators import memory, serving

    if serving.applies(d):
        return _served(d)
    found = speed_of(d)
    ttft = float(np.squeeze(found.prefill.total_s)) + found.request_s
    tpot = float(np.squeeze(found.decode.total_s))
    users = found.n_sequences
    decode_terms, prefill_terms = _terms(found.decode), _terms(found.prefill)
    first, each = (
        _quantity(ttft, found.plan, "prefill"),
        _quantity(tpot, found.plan, "decode" if users <= 1 else "batch"),
    )
    new = d.workload.prompt_tokens * users
    floor_prefill, floor_step = floors(found.plan, slice(0, 1))
    priced = Estimate(
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
        floor_ttft_s=float(np.squeeze(floor_prefill)),
        floor_tpot_s=float(np.squeeze(floor_step)),
        sources=tuple(load().provenance.get("sources", ())),
    )
    return priced if mine is None else personal.estimate(priced, found.plan, mine)


#: What bounds each part of a served output token.
BOUNDS = {"cache": "memory", "launches": "latency", "links": "link", "prefill": "compute"}


def _served(d: Deployment) -> Estimate:
    """The price of a server under concurrency: other users' prompts and answers are part of each time."""
    from estimators import memory, serving

    found, work = serving.answer(d), d.workload
    first, each, users = found.ttft_s, found.tpot_s, found.n_running
    terms = tuple(
        Term(name, seconds, bound=BOUNDS.get(name, "memory"))  # type: ignore[arg-type]
        for name, seconds in found.parts.items()
        if seconds > 0
    )
    alone = speed_of(d.with_(workload=replace(work, n_sequences=1, client="static")))
    floor_prefill, floor_step = floors(alone.plan, slice(0, 1))
    prompts = Quantity(
        work.prompt_tokens / first.high, work.prompt_tokens / first.best, work.prompt_tokens / first.low,
        first.origin, first.note,
    )  # fmt: skip
    rate = Quantity(users / each.high, users / each.best, users / each.low, each.origin, each.note)
    return Estimate(
        bill=memory.bill(d),
        ttft_s=first,
        tpot_s=each,
        prefill_tokens_per_s=prompts,
        decode_tokens_per_s=rate,
        bottleneck=found.bottleneck,
        prefill_bottleneck=BOTTLENECKS[int(np.squeeze(_bottleneck(alone.prefill)))],
        decode_terms=terms,
        prefill_terms=_terms(alone.prefill),
        floor_ttft_s=float(np.squeeze(floor_prefill)),
        floor_tpot_s=float(np.squeeze(floor_step)),
        sources=(serving.source(),),
    )


def _quantity(best: float, plan: Plan, phase: str) -> Quantity:
    labels = plan.main.situation
    slow, fast = (float(np.squeeze(x)) for x in width(plan, slice(0, 1), phase))
    walk = plan.table.walk
    note = sentence(int(np.squeeze(tier(plan, slice(0, 1)))), labels, int(np.squeeze(structure_index(walk))))
    return Quantity(best * fast, best, best * slow, "calibrated", note)


def _terms(p: Parts) -> tuple[Term, ...]:
    bound = "compute" if bool(np.squeeze(p.main.compute_bound)) else "memory"
    named = (
        ("weights", p.main.weights_s, bound),
        ("experts", p.main.experts_s, bound),
        ("cache", p.main.cache_s, "memory"),
        ("launches", p.main.launches_s, "latency"),
        ("links", p.main.links_s, "link"),
        ("host", p.host_s, "memory"),
    )
    return tuple(
        Term(name, float(np.squeeze(s)), bound=kind)  # type: ignore[arg-type]
        for name, s, kind in named
        if float(np.squeeze(s)) > 0
    )
