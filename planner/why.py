"""`plan why MODEL`: the itemised bill of one deployment, where its time goes, what its quality rests on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from estimators.cost import Cost, cost
from estimators.deployment import Deployment, Estimate, Term
from estimators.quantity import Quantity
from planner import answer, columns, units
from planner.answer import Row
from planner.errors import NothingFits
from planner.machines import Target
from planner.near_miss import NearMiss
from planner.request import Request


@dataclass(frozen=True)
class Why:
    """One deployment with everything its numbers are made of."""

    request: Request
    target: Target
    row: Row
    deployment: Deployment
    estimate: Estimate
    holds: bool
    near: tuple[NearMiss, ...]
    longest_context: int  # tokens that would fit on the same machine


def why(request: Request) -> Why:
    """The best deployment of the request's model, taken apart. Errors: NothingFits when no engine here
    loads it."""
    from estimators.estimate import estimate, table_of
    from estimators.memory import max_context

    found = answer.of_model(request)
    if found is None:
        names = ", ".join(request.models)
        raise NothingFits(
            f"no engine for this machine loads {names} for {request.task.name}",
            "plan show MODEL, or another --task",
        )
    target, row, near, holds = found
    deployment = answer.deployment(request, row, target.machine)
    room = int(np.asarray(max_context(table_of(deployment))).flat[0])
    longest = min(room, row.model.max_context or room)
    mine = None if target.is_class else request.mine
    return Why(request, target, row, deployment, estimate(deployment, mine), holds, near, longest)


def text(w: Why) -> str:
    """The whole account for a person; [n] are the sources at the end."""
    notes = _Footnotes()
    parts = [
        _head(w),
        _memory(w, notes),
        _speed(w, notes),
        _quality(w, notes),
        _cost(w),
        _changes(w),
        _machine(w, notes),
    ]
    return "\n\n".join("\n".join(lines) for lines in [*parts, notes.lines()] if lines) + "\n"


class _Footnotes:
    """Numbers sources in the order they are first cited."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def cite(self, source: str) -> str:
        return f"[{self.numbers.setdefault(source, len(self.numbers) + 1)}]" if source else ""

    def lines(self) -> list[str]:
        return (
            ["sources", *(f"  [{n}] {source}" for source, n in self.numbers.items())] if self.numbers else []
        )


def _head(w: Why) -> list[str]:
    row = w.row
    verdict = "holds the limits" if w.holds else "does not hold the limits"
    task = w.request.task.name
    return [
        f"{columns.name(row)} {columns.scheme(row)}, {row.engine} ({row.backend}), {w.target.machine.name}",
        f"{verdict} of {task}: {units.format_rate(w.request.min_tps)} tok/s, first token within "
        f"{units.format_seconds(w.request.max_ttft_s)}, {units.format_tokens(w.request.context)} context",
    ]


def _memory(w: Why, notes: _Footnotes) -> list[str]:
    lines = [f"memory (download {units.format_bytes(w.estimate.bill.file_bytes or w.row.file_bytes)})"]
    for device in w.estimate.bill.devices:
        total = device.total()
        of = f" of {units.format_bytes(device.capacity_bytes)}" if device.capacity_bytes is not None else ""
        lines.append(f"  {device.device}: {_bytes(total)}{of}")
        lines += [
            f"    {line.kind:<8} {_bytes(line.size):>24}  {line.name} {notes.cite(line.source)}"
            for line in device.lines
        ]
    if w.holds and w.longest_context > w.request.context:
        lines.append(f"  room for {units.format_tokens(w.longest_context // 1024 * 1024)} tokens of context")
    return lines


def _bytes(q: Quantity) -> str:
    if q.low == q.high:
        return units.format_bytes(q.best)
    return f"{units.format_bytes(q.best)} ({units.format_bytes(q.low)}-{units.format_bytes(q.high)})"


def _speed(w: Why, notes: _Footnotes) -> list[str]:
    e, r = w.estimate, w.request
    rate = Quantity(1 / e.tpot_s.high, 1 / e.tpot_s.best, 1 / e.tpot_s.low)
    lines = [
        "speed",
        f"  first token  {_seconds(e.ttft_s)} for {r.prompt} tokens, bound by {e.prefill_bottleneck}",
        *_terms(e.prefill_terms),
        f"  each token   {_seconds(e.tpot_s)}, {units.format_range(rate.low, rate.high)} tok/s, "
        f"bound by {e.bottleneck}",
        *_terms(e.decode_terms),
    ]
    if e.floor_tpot_s:
        lines.append(
            f"  physics      no faster than {units.format_seconds(e.floor_ttft_s)} to the first token, "
            f"{units.format_seconds(e.floor_tpot_s)} per token"
        )
    if e.sources:
        lines.append(f"  calibrated on {_few(e.sources)}")
    return lines + [f"  note: {note}" for note in (*_unmeasured(e), *e.notes)]


def _unmeasured(e: Estimate) -> tuple[str, ...]:
    """What of this deployment was never measured; the user's own measurements say so in their own words."""
    return (e.tpot_s.note,) if e.tpot_s.note and not e.notes else ()


def _few(sources: tuple[str, ...]) -> str:
    """Up to three sources by name, more by number: `--json` lists them all."""
    if len(sources) <= 3:
        return ", ".join(sources)
    return f"measurements of {len(sources)} sources (listed by --json)"


def _terms(terms: Iterable[Term]) -> list[str]:
    return [f"    {t.name:<10} {units.format_seconds(t.seconds):>8}  {t.bound}" for t in terms]


def _seconds(q: Quantity) -> str:
    return f"{units.format_seconds(q.best)} ({units.format_seconds(q.low)}-{units.format_seconds(q.high)})"


def _quality(w: Why, notes: _Footnotes) -> list[str]:
    q, model = w.row.quality, w.row.model
    kinds = ", ".join(f"{skill} {share:.0%}" for skill, share in w.request.task.quality)
    lines = [
        "quality",
        f"  {q.best:.0f} ({q.low:.0f}-{q.high:.0f}) of 100 on benchmarks of median difficulty: {kinds}",
        f"  from {q.note}",
    ]
    for e in model.evidence[:6]:
        lines.append(f"    {e.benchmark:<24} {e.score:>6.3g}  {e.kind} {notes.cite(e.source)}")
    if len(model.evidence) > 6:
        lines.append(f"    and {len(model.evidence) - 6} more: plan show {model.id}")
    return lines


def cost_of(w: Why) -> Cost:
    """What one token costs on the devices that the deployment uses."""
    place = w.row.placement
    return cost(
        w.target.machine, place.tensor_parallel * place.pipeline_parallel, w.estimate.decode_tokens_per_s
    )


def _cost(w: Why) -> list[str]:
    found, lines = cost_of(w), ["cost"]
    if found.most_energy_j is not None:
        lines.append(f"  at most {found.most_energy_j:.2g} J per token, at full board power")
    if found.cloud_usd is not None:
        low, high = found.cloud_usd.low * 1e6, found.cloud_usd.high * 1e6
        lines.append(f"  ${low:.2f}-{high:.2f} per million tokens while decoding, rented by the hour")
    if found.purchase_usd is not None:
        lines.append(f"  ${found.purchase_usd:,.0f} to buy the accelerators, list price")
    return lines if len(lines) > 1 else []


def _changes(w: Why) -> list[str]:
    if not w.near:
        return []
    return ["what would change that"] + [
        f"  {miss.scheme.id}: {miss.lacks}; {', or '.join(miss.fixes)}" for miss in w.near
    ]


def _machine(w: Why, notes: _Footnotes) -> list[str]:
    lines = ["machine"]
    for device in dict.fromkeys(
        (*w.target.machine.devices, *((w.target.machine.host,) if w.target.machine.host else ()))
    ):
        facts = []
        if device.memory_bytes:
            facts.append(units.format_bytes(device.memory_bytes))
        if device.bandwidth_bytes_per_s:
            facts.append(f"{device.bandwidth_bytes_per_s / 1e9:.0f} GB/s")
        origin = notes.cite(f"{device.basis}: {device.source}")
        lines.append(f"  {device.name}: {', '.join(facts)} {origin}")
    return lines


def document(w: Why) -> dict[str, Any]:
    """The same as JSON values: base SI units, nothing rounded."""
    from planner.report_json import SCHEMA_VERSION, device, quantity

    e = w.estimate
    return {
        "schema_version": SCHEMA_VERSION,
        "model": w.row.model.id,
        "scheme": w.row.scheme.id,
        "engine": w.row.engine,
        "backend": w.row.backend,
        "kv_type": w.row.kv_type,
        "placement": asdict(w.row.placement),
        "holds": w.holds,
        "bill": [
            {
                "device": d.device,
                "capacity_bytes": d.capacity_bytes,
                "total": quantity(d.total()),
                "lines": [
                    {"kind": x.kind, "name": x.name, "bytes": quantity(x.size), "source": x.source}
                    for x in d.lines
                ],
            }
            for d in e.bill.devices
        ],
        "file_bytes": e.bill.file_bytes,
        "longest_context_tokens": w.longest_context,
        "ttft_s": quantity(e.ttft_s),
        "tpot_s": quantity(e.tpot_s),
        "prefill_terms": [asdict(t) for t in e.prefill_terms],
        "decode_terms": [asdict(t) for t in e.decode_terms],
        "bottleneck": {"decode": e.bottleneck, "prefill": e.prefill_bottleneck},
        "quality": quantity(w.row.quality),
        "cost": asdict(cost_of(w)),
        "evidence": [asdict(x) for x in w.row.model.evidence],
        "near_misses": [{"scheme": n.scheme.id, "lacks": n.lacks, "fixes": list(n.fixes)} for n in w.near],
        "devices": [device(d) for d in w.target.machine.devices],
        "sources": list(e.sources),
        "notes": [*_unmeasured(e), *e.notes],
    }
