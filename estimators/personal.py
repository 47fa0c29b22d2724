"""How a user's own measurements sharpen predictions on the user's own machine. Pure functions, no files.

Of every (device, number of devices, engine, backend, phase) one offset is learnt, on the logarithm of
seconds. Before any measurement it is normal around zero. The variance of a prediction is split in two: a
share that differs from model to model on one machine, and stays in the interval however much is measured;
and the rest, which is the machine's own. Each configuration measured is one look at the machine's offset,
blurred by the first share. So one row moves a prediction part of the way, five that agree nearly all of it,
and none widens its interval.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from estimators.deployment import Estimate, Term
from estimators.phases import Plan, at, floors
from estimators.quantity import Quantity
from estimators.table import PriceTable
from estimators.walk import Number
from hwdb.device import Device

#: One stream's prompt, one stream's tokens, the tokens of several streams.
Phase = Literal["prefill", "decode", "batch"]
Group = tuple[str, int, str, str, str]  # device, number of devices, engine, backend, phase

#: Share of a prediction's variance (of log seconds) that is a model's and not the machine's. Chosen so that,
#: of public rows on devices left out of the fit, the interval after 1, 2 and 5 rows of one device, engine and
#: source covers 90% of the others (benchmarks/personal.py prints it:
#: 87-90% of decode, 93-94% of prefill, 97% of batch rows).
WITHIN_SHARE: dict[str, float] = {"decode": 0.4, "prefill": 0.5, "batch": 0.4}
#: Standard deviation between two runs of one command on one machine, at least: clocks, heat, other programs.
RUN = 0.02
Z90 = 1.645


@dataclass(frozen=True, slots=True)
class Residual:
    """One measured row: `log_ratio` = log(measured seconds / predicted seconds), `noise` the standard
    deviation of its own samples. Rows with the same `configuration` repeat each other; `date` is the
    measurement's."""

    device: str
    n_devices: int
    engine: str
    backend: str
    phase: Phase
    log_ratio: float
    noise: float = 0.0
    configuration: str = ""
    date: str = ""

    @property
    def group(self) -> Group:
        """What shares one offset."""
        return self.device, self.n_devices, self.engine, self.backend, self.phase


def label(device: Device) -> str:
    """What a device is called here. One whose rates were measured is predicted otherwise than by its datasheet,
    and what was learnt of the one says nothing of the other."""
    return f"{device.id} (measured)" if device.basis == "measured" else device.id


@dataclass(frozen=True, slots=True)
class Correction:
    """What to make of a prediction: seconds times `factor`, within seconds times `fast` and times `slow`.
    `scatter` is the root mean square of what remains of the rows, in logs."""

    factor: float
    slow: float
    fast: float
    n_rows: int
    date: str
    scatter: float

    @property
    def note(self) -> str:
        """Where the number comes from, for a person."""
        return told(self.date, self.n_rows)


def told(date: str, n_rows: int) -> str:
    """`calibrated on your measurements of 2026-11-20 (5 rows)`."""
    return f"calibrated on your measurements of {date or 'no date'} ({n_rows} row{'s' * (n_rows != 1)})"


def correction(residuals: Iterable[Residual], slow: float, fast: float) -> Correction:
    """The posterior of one group. `slow` and `fast` are the ends of the prediction's 90% interval, as factors
    on seconds. Noise is that of samples and runs, never read off the rows' disagreement: so more rows never
    widen."""
    rows = list(residuals)
    variance = max(((np.log(slow) - np.log(fast)) / (2 * Z90)) ** 2, 1e-12)
    within = WITHIN_SHARE[rows[0].phase] * variance
    precision, weighted = 1.0 / (variance - within), 0.0
    for members in _configurations(rows):
        weights = [1.0 / (r.noise**2 + RUN**2) for r in members]
        mean = sum(w * r.log_ratio for w, r in zip(weights, members, strict=True)) / sum(weights)
        weight = 1.0 / (within + 1.0 / sum(weights))
        precision += weight
        weighted += weight * mean
    offset = weighted / precision
    narrower = float(np.sqrt((1.0 / precision + within) / variance))
    factor = float(np.exp(offset))
    scatter = float(np.sqrt(np.mean([(r.log_ratio - offset) ** 2 for r in rows])))
    date = max(r.date for r in rows)
    return Correction(factor, factor * slow**narrower, factor * fast**narrower, len(rows), date, scatter)


def _configurations(rows: Iterable[Residual]) -> list[list[Residual]]:
    found: dict[str, list[Residual]] = {}
    for row in rows:
        found.setdefault(row.configuration, []).append(row)
    return list(found.values())


@dataclass(frozen=True)
class Corrections:
    """Everything that was measured on the user's machines; None in its place means that nothing was."""

    residuals: tuple[Residual, ...]

    @cached_property
    def groups(self) -> dict[Group, tuple[Residual, ...]]:
        """The rows that share an offset."""
        found: dict[Group, list[Residual]] = {}
        for residual in self.residuals:
            found.setdefault(residual.group, []).append(residual)
        return {group: tuple(rows) for group, rows in found.items()}

    def note(self, device: Device, engine: str, backend: str) -> str:
        """Where the speeds of this engine on this device come from; "" where nothing of it was measured."""
        wanted = (label(device), engine, backend)
        rows = [r for r in self.residuals if (r.device, r.engine, r.backend) == wanted]
        return told(max(r.date for r in rows), len(rows)) if rows else ""


@dataclass(frozen=True, slots=True)
class Span:
    """Seconds with their 90% interval, as scalars or arrays."""

    low: Number
    best: Number
    high: Number


def sharpened(
    mine: Corrections,
    plan: Plan,
    phase: Phase,
    n_devices: Number,
    applies: Number,
    floor_s: Number,
    span: Span,
) -> tuple[Span, Number]:
    """(seconds, their factor), corrected where the group was measured and `applies`. Nothing goes below
    `floor_s`."""
    labels = plan.main.situation
    counts = np.broadcast_to(np.asarray(n_devices), np.shape(span.best))
    low, best, high = (np.array(x, dtype=float) for x in (span.low, span.best, span.high))
    for count in np.unique(counts):
        rows = mine.groups.get((label(plan.main.device), int(count), labels.engine, labels.backend, phase))
        if rows is None:
            continue
        here = np.broadcast_to((counts == count) & applies, best.shape)
        slow, fast = np.round(high / best, 12), np.round(low / best, 12)  # equal but for the last bit
        ends = np.stack([slow, fast]).reshape(2, -1)
        for one in np.unique(ends[:, np.ravel(here)], axis=1).T:
            found = correction(rows, float(one[0]), float(one[1]))
            same = here & (slow == one[0]) & (fast == one[1])
            old = np.where(same, best, 0.0)
            low = np.where(same, np.maximum(old * found.fast, floor_s), low)
            best = np.where(same, np.maximum(old * found.factor, floor_s), best)
            high = np.where(same, np.maximum(old * found.slow, floor_s), high)
    return Span(low, best, high), best / np.asarray(span.best)


def _applies(plan: Plan, part: slice) -> tuple[Number, Number]:
    """(number of devices, whether every layer is on them) of the table's deployments."""
    t = plan.table
    whole = (np.asarray(at(t.n_gpu_layers, part)) < 0) & (np.asarray(at(t.n_cpu_expert_layers, part)) == 0)
    count = np.asarray(at(t.tensor_parallel, part)) * np.asarray(at(t.pipeline_parallel, part))
    return count, whole | (t.backend == "cpu")


def table(prices: PriceTable, plan: Plan, mine: Corrections) -> PriceTable:
    """Prices of a table with what was measured on this machine."""
    count, applies = _applies(plan, slice(None))
    floor_first, floor_each = floors(plan, slice(None))
    first = Span(prices.ttft_low_s, prices.ttft_s, prices.ttft_high_s)
    each = Span(prices.tpot_low_s, prices.tpot_s, prices.tpot_high_s)
    many = np.asarray(plan.table.n_sequences) > 1
    first, later = sharpened(mine, plan, "prefill", count, applies, floor_first, first)
    each, slower = sharpened(mine, plan, "decode", count, applies & ~many, floor_each, each)
    each, again = sharpened(mine, plan, "batch", count, applies & many, floor_each, each)
    users = plan.table.n_sequences
    return replace(
        prices,
        ttft_s=first.best,
        ttft_low_s=first.low,
        ttft_high_s=first.high,
        tpot_s=each.best,
        tpot_low_s=each.low,
        tpot_high_s=each.high,
        prefill_tokens_per_s=prices.prefill_tokens_per_s / later,
        decode_tokens_per_s=prices.decode_tokens_per_s / (slower * again),
        decode_low_tokens_per_s=users / each.high,
        decode_high_tokens_per_s=users / each.low,
    )


def estimate(found: Estimate, plan: Plan, mine: Corrections) -> Estimate:
    """The price of one deployment with what was measured on this machine, and the sentence that says so."""
    count, applies = _applies(plan, slice(0, 1))
    if not np.all(applies):
        return found
    floor_first, floor_each = (float(np.squeeze(x)) for x in floors(plan, slice(0, 1)))
    phase: Phase = "batch" if np.squeeze(plan.table.n_sequences) > 1 else "decode"
    first, later = _quantity(found.ttft_s, mine, plan, "prefill", count, floor_first)
    each, slower = _quantity(found.tpot_s, mine, plan, phase, count, floor_each)
    changes = (("first token", first, found.ttft_s), ("each token", each, found.tpot_s))
    notes = [f"{what} {q.note}" for what, q, old in changes if q is not old]
    if not notes:
        return found
    users = found.decode_tokens_per_s.best * found.tpot_s.best
    new = float(np.squeeze(plan.table.prompt_tokens)) * users
    rate = found.prefill_tokens_per_s.best / later
    return replace(
        found,
        ttft_s=first,
        tpot_s=each,
        prefill_tokens_per_s=Quantity(
            min(new / first.high, rate), rate, max(new / first.low, rate), first.origin, first.note
        ),
        decode_tokens_per_s=Quantity(
            users / each.high, users / each.best, users / each.low, each.origin, each.note
        ),
        prefill_terms=_scaled(found.prefill_terms, later),
        decode_terms=_scaled(found.decode_terms, slower),
        floor_ttft_s=floor_first,
        floor_tpot_s=floor_each,
        notes=(*found.notes, *notes),
    )


def _quantity(
    q: Quantity, mine: Corrections, plan: Plan, phase: Phase, count: Number, floor_s: float
) -> tuple[Quantity, float]:
    labels = plan.main.situation
    rows = mine.groups.get(
        (label(plan.main.device), int(np.squeeze(count)), labels.engine, labels.backend, phase)
    )
    if rows is None:
        return q, 1.0
    one = Span(*(np.array([x]) for x in (q.low, q.best, q.high)))
    span, factor = sharpened(mine, plan, phase, count, True, floor_s, one)
    low, best, high = (float(np.squeeze(x)) for x in (span.low, span.best, span.high))
    note = told(max(r.date for r in rows), len(rows))
    return Quantity(low, best, high, "calibrated", note), float(np.squeeze(factor))


def _scaled(terms: tuple[Term, ...], factor: float) -> tuple[Term, ...]:
    return tuple(replace(t, seconds=t.seconds * factor) for t in terms)
