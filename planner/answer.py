"""An answer: the rows to show with their reasons, what nearly made it, and where the numbers come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from estimators import quality
from estimators.deployment import Backend, Deployment, Placement, Settings, Workload
from estimators.observation import main_device
from estimators.quantity import Quantity
from estimators.table import BOTTLENECKS, PriceTable
from hwdb.device import Machine
from modeldb.model import Model
from modeldb.scheme import Scheme
from planner import candidates, choice, engines, explain, machines, measured, mixture, near_miss, stock, units
from planner.candidates import Group
from planner.machines import Target
from planner.near_miss import NearMiss
from planner.request import Request


@dataclass(frozen=True)
class Row:
    """One deployment of the answer. Bytes of the fullest device; times of one user; `quality` in percent."""

    model: Model
    scheme: Scheme
    engine: str
    backend: str
    kv_type: str
    placement: Placement
    parameters: float
    active_parameters: float
    device_bytes: float
    capacity_bytes: float
    host_bytes: float
    file_bytes: float
    ttft_s: Quantity
    tpot_s: Quantity
    tokens_per_s: Quantity
    throughput_tokens_per_s: float
    prefill_tokens_per_s: float
    turn_s: float
    quality: Quantity
    bottleneck: str
    prefill_bottleneck: str
    tight: bool  # hardly anything of the device's or of the host's memory is left
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """`rows` best first, all of them; reports print as many as `shown` asks for."""

    request: Request
    target: Target
    rows: tuple[Row, ...]
    near: tuple[NearMiss, ...]
    n_candidates: int
    n_models: int
    left_out: tuple[tuple[str, int], ...]
    notes: tuple[str, ...]


def answer(request: Request) -> Answer:
    """The whole way from a request to its answer. Pure but for the catalogues and, without hardware flags,
    detection."""
    target = machines.resolve(request)
    pairs = stock.build(request)
    groups = candidates.price_all(request, pairs, target.machine) if len(pairs) else []
    if not groups:
        return Answer(request, target, (), (), 0, len(pairs.models), pairs.left_out, target.notes)
    found = choice.board(request, pairs, groups)
    order = [
        i
        for i in choice.choose(found, pairs)
        if not _refused(request, pairs, groups[found.group[i]], int(found.row[i]))
    ]
    spans = [
        _Span(
            request,
            pairs,
            g,
            np.array([found.row[i] for i in order if found.group[i] == k], dtype=np.int64),
            target,
        )
        for k, g in enumerate(groups)
    ]
    rows = [_row(request, pairs, groups[found.group[i]], found, i, spans[found.group[i]]) for i in order]
    reasons = explain.reasons(request, rows)
    near = near_miss.find(request, pairs, groups, found, list(order), target)
    return Answer(
        request, target, tuple(replace(r, reasons=why) for r, why in zip(rows, reasons, strict=True)), near,
        len(found), len(pairs.models), pairs.left_out,
        (*target.notes, *overlong(request, pairs.models), *measured.sentences(target, groups),
         *calibrated(request, groups)),
    )  # fmt: skip


def overlong(request: Request, models: Sequence[Model]) -> tuple[str, ...]:
    """A sentence for each model, asked for by name, whose own context is shorter than what is asked."""
    short = [m for m in models if m.max_context is not None and m.max_context < request.context]
    return tuple(
        f"{m.name or m.id} is made for {units.format_tokens(m.max_context or 0)} of context, not for "
        f"{units.format_tokens(request.context)}"
        for m in short
    )


def calibrated(request: Request, groups: Sequence[Group]) -> tuple[str, ...]:
    """What the user measured of these engines on this machine: one sentence each."""
    found = []
    for g in groups:
        device = main_device(g.machine, g.backend)
        if request.mine is None or device is None or g.machine.origin == "class":
            continue
        if note := request.mine.note(device, g.engine, g.backend):
            found.append(f"speeds of {g.engine} are {note}; --no-calibration leaves them out")
    return tuple(found)


def _refused(request: Request, pairs: stock.Stock, group: Group, row: int) -> str:
    """Why the row's own engine will not run it, or ""."""
    pair = int(group.pair[row])
    model, scheme = pairs.models[pairs.model[pair]], pairs.schemes[pairs.scheme[pair]]
    kv_type = group.kv_types[group.kv[row]]
    place = group.place.one(int(row))
    one = _deployment(request, model, scheme, group.machine, group.engine, group.backend, kv_type, place)
    return str(engines.get(group.engine).refuses(one))


def of_model(request: Request) -> tuple[Target, Row, tuple[NearMiss, ...], bool] | None:
    """The best deployment of the request's models, fitting or not: (target, row, near misses, holds the
    limits). None when no engine of this machine can load any of them."""
    target = machines.resolve(request)
    pairs = stock.build(request)
    groups = candidates.price_all(request, pairs, target.machine) if len(pairs) else []
    if not groups:
        return None
    found = choice.board(request, pairs, groups)
    best = choice.nearest(found)
    group = groups[found.group[best]]
    span = _Span(request, pairs, group, np.array([found.row[best]]), target)
    near = near_miss.find(request, pairs, groups, found, [], target) if not found.answers[best] else ()
    return target, _row(request, pairs, group, found, best, span), near, bool(found.answers[best])


class _Span:
    """Intervals of some rows of a group: the best estimate on the central machine, and the interval that 90%
    of the machines of the target fall into."""

    def __init__(
        self, request: Request, pairs: stock.Stock, group: Group, rows: candidates.Integers, target: Target
    ) -> None:
        part = group.take(rows)
        self.central = part.price
        on_all = _on_all(request, pairs, part, target) if target.is_class and len(rows) else []
        self.prices = on_all or [part.price]
        self.position = {int(row): i for i, row in enumerate(rows)}

    def quantity(self, row: int, best: str, low: str, high: str) -> Quantity:
        i = self.position[row]
        middle = _at(self.central, best, i)
        ends = mixture.interval(
            [(_at(price, low, i), _at(price, best, i), _at(price, high, i)) for price in self.prices]
        )
        return Quantity(min(ends[0], middle), middle, max(ends[1], middle), "calibrated")


def _on_all(request: Request, pairs: stock.Stock, part: Group, target: Target) -> list[PriceTable]:
    """Prices on every machine of the class whose rates are known."""
    from estimators.errors import CannotPrice

    prices = []
    for machine in target.spread():
        try:
            prices.append(candidates.reprice(request, pairs, part, machine))
        except CannotPrice:
            continue
    return prices


def _row(
    request: Request, pairs: stock.Stock, group: Group, found: choice.Board, here: int, span: _Span
) -> Row:
    row = int(found.row[here])
    price, pair = group.price, int(group.pair[row])
    tpot = span.quantity(row, "tpot_s", "tpot_low_s", "tpot_high_s")
    rated = found.n_scores[here]
    return Row(
        model=pairs.models[pairs.model[pair]],
        scheme=pairs.schemes[pairs.scheme[pair]],
        engine=group.engine,
        backend=group.backend,
        kv_type=group.kv_types[group.kv[row]],
        placement=group.place.one(row),
        parameters=float(np.asarray(pairs.walk.total_params)[pair]),
        active_parameters=float(np.asarray(pairs.walk.active_params)[pair]),
        device_bytes=_at(price, "device_bytes", row),
        capacity_bytes=_at(price, "device_bytes", row) + _at(price, "free_bytes", row),
        host_bytes=_at(price, "host_bytes", row),
        file_bytes=float(np.asarray(pairs.walk.file_bytes)[pair] or np.asarray(pairs.walk.total_bytes)[pair]),
        ttft_s=span.quantity(row, "ttft_s", "ttft_low_s", "ttft_high_s"),
        tpot_s=tpot,
        tokens_per_s=Quantity(1 / tpot.high, 1 / tpot.best, 1 / tpot.low, tpot.origin),
        throughput_tokens_per_s=_at(price, "decode_tokens_per_s", row),
        prefill_tokens_per_s=_at(price, "prefill_tokens_per_s", row),
        turn_s=float(found.turn_s[here]),
        quality=Quantity(
            float(quality.score(found.quality_low[here])),
            float(quality.score(found.quality[here])),
            float(quality.score(found.quality_high[here])),
            "calibrated" if rated else "assumed",
            f"{rated:.0f} published scores" if rated else "no published score: size, date and relatives",
        ),
        bottleneck=BOTTLENECKS[int(_at(price, "bottleneck", row))],
        prefill_bottleneck=BOTTLENECKS[int(_at(price, "prefill_bottleneck", row))],
        tight=bool(found.tight[here]),
    )  # fmt: skip


def _at(price: PriceTable, name: str, row: int) -> float:
    return float(np.asarray(getattr(price, name))[row])


def deployment(request: Request, row: Row, machine: Machine) -> Deployment:
    """The row as one deployment, for the bill and for the engine's command."""
    return _deployment(
        request, row.model, row.scheme, machine, row.engine, row.backend, row.kv_type, row.placement
    )


def _deployment(
    request: Request,
    model: Model,
    scheme: Scheme,
    machine: Machine,
    engine: str,
    backend: str,
    kv: str,
    place: Placement,
) -> Deployment:
    workload = Workload(
        request.prompt,
        request.output,
        request.cached,
        request.users,
        "closed" if request.users > 1 else "static",
    )
    settings = Settings(context_tokens=request.context, kv_type_k=kv, kv_type_v=kv)
    return Deployment(model, scheme, machine, engine, cast(Backend, backend), place, workload, settings)
