"""How a user's own measurements sharpen predictions on the user's own machine. Pure functions, no files.

Of every (device, number of devices, engine, backend, phase) one offset is learnt, on the logarithm of
seconds. Before any measurement it is normal around zero. The variance of a prediction is split: one share is the
machine's own; another that of its kernels for one class of formats; another that of one model in such a format; and
the rest differs from run to run of other lengths. A measured configuration tells of each share that it has in common
with what is predicted. So one row moves other predictions part of the way, five that agree nearly all of it, a row of
the same model and format its own prediction nearly all of it, and none widens an interval.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from estimators import formats
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
#: source covers 90% of the others (benchmarks/personal.py prints it: 90% of decode, 85-87% of prefill, 83-86% of batch
#: rows; their median error falls from 10.2, 21.4 and 11.3% after five rows to 5.1, 13.9 and 8.6% by telling formats
#: and models apart).
WITHIN_SHARE: dict[str, float] = {"decode": 0.5, "prefill": 0.65, "batch": 0.55}
#: Of that, the share which formats of one class have in common; and of what is then left, the share which one model in
#: one class has in common, whatever the size of the work, and at about the same size (chosen likewise).
FORMAT_SHARE: dict[str, float] = {"decode": 0.5, "prefill": 0.5, "batch": 0.25}
MODEL_SHARE, REPEAT_SHARE = 0.5, 0.9
SAME_MODEL = 1e-3  # of the parameters: rotation tables are counted or not
SAME_SIZE = 1.5  # times
#: Standard deviation between two runs of one command on one machine, at least: clocks, heat, other programs.
RUN = 0.02
Z90 = 1.645


@dataclass(frozen=True, slots=True)
class Target:
    """What is predicted: a model, by its parameters, in a class of formats; `size` is the tokens of a prompt, the
    sequences of a batch, 1 of decoding."""

    format: str = ""
    n_params: float = 0.0
    size: float = 0.0


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
    format: str = ""  # class of formats; "" is like no other
    n_params: float = 0.0  # of the model; 0 is like no other
    size: float = 0.0  # as of a `Target`; 0 is like no other

    @property
    def target(self) -> Target:
        """What a row tells most of."""
        return Target(self.format, self.n_params, self.size)

    def likeness(self, other: Target) -> float:
        """Share of the variance within a machine that two configurations have in common."""
        if not self.format or self.format != other.format:
            return 0.0
        share = FORMAT_SHARE[self.phase]
        if not self.n_params or abs(self.n_params - other.n_params) > SAME_MODEL * self.n_params:
            return share
        sizes = sorted((self.size, other.size))
        repeats = 0 < sizes[1] <= SAME_SIZE * sizes[0]
        return share + (1.0 - share) * (REPEAT_SHARE if repeats else MODEL_SHARE)

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


def correction(
    residuals: Iterable[Residual], slow: float, fast: float, target: Target = Target()
) -> Correction:
    """The posterior of one group for one target. `slow` and `fast` are the ends of the prediction's 90% interval, as
    factors on seconds. Noise is that of samples and runs, never read off the rows' disagreement: so more rows never
    widen. (Normal variables: the mean and the variance of one, given others; Rasmussen and Williams, 2006, 2.2.)"""
    rows = list(residuals)
    variance = max(((np.log(slow) - np.log(fast)) / (2 * Z90)) ** 2, 1e-12)
    within = WITHIN_SHARE[rows[0].phase] * variance
    looks = _configurations(rows)
    weights = [np.array([1.0 / (r.noise**2 + RUN**2) for r in members]) for members in looks]
    means = np.array(
        [w @ [r.log_ratio for r in members] / w.sum() for w, members in zip(weights, looks, strict=True)]
    )
    shared = np.array([[a[0].likeness(b[0].target) for b in looks] for a in looks])
    np.fill_diagonal(shared, 1.0)
    covariance = variance - within + within * shared + np.diag([1.0 / w.sum() for w in weights])
    known = variance - within + within * np.array([members[0].likeness(target) for members in looks])
    gain = np.linalg.solve(covariance, known)
    offset = float(gain @ means)
    narrower = float(np.sqrt(np.clip(1.0 - gain @ known / variance, 0.0, 1.0)))
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
    counts = np.broadcast_to(np.asarray(n_devices), np.shape(span.best))
    low, best, high = (np.array(x, dtype=float) for x in (span.low, span.best, span.high))
    for count in np.unique(counts):
        rows = _measured(mine, plan, phase, int(count))
        if rows is None:
            continue
        here = np.broadcast_to((counts == count) & applies, best.shape)
        slow, fast = np.round(high / best, 12), np.round(low / best, 12)  # equal but for the last bit
        targets = _targets(rows)
        like = np.broadcast_to(_positions(targets, plan, phase), best.shape)
        ends = np.stack([slow, fast, like]).reshape(3, -1)
        for one in np.unique(ends[:, np.ravel(here)], axis=1).T:
            found = correction(rows, float(one[0]), float(one[1]), targets[int(one[2])])
            same = here & (slow == one[0]) & (fast == one[1]) & (like == one[2])
            old = np.where(same, best, 0.0)
            low = np.where(same, np.maximum(old * found.fast, floor_s), low)
            best = np.where(same, np.maximum(old * found.factor, floor_s), best)
            high = np.where(same, np.maximum(old * found.slow, floor_s), high)
    return Span(low, best, high), best / np.asarray(span.best)


def _measured(mine: Corrections, plan: Plan, phase: Phase, count: int) -> tuple[Residual, ...] | None:
    """What was measured of a plan's engine on so many of its devices."""
    labels = plan.main.situation
    return mine.groups.get((label(plan.main.device), count, labels.engine, labels.backend, phase))


def _targets(rows: Iterable[Residual]) -> list[Target]:
    """What predictions of a group can be told apart by: first like nothing measured, then formats that were, then
    models in them, then those at sizes that were."""
    told_apart = [r for r in rows if r.format]
    seen = sorted({Target(r.format) for r in told_apart}, key=_order)
    models = sorted({Target(r.format, r.n_params) for r in told_apart if r.n_params}, key=_order)
    repeats = sorted({r.target for r in told_apart if r.n_params and r.size}, key=_order)
    return [Target(), *seen, *models, *repeats]


def _order(target: Target) -> tuple[str, float, float]:
    return target.format, target.n_params, target.size


def _positions(targets: list[Target], plan: Plan, phase: Phase) -> Number:
    """The position in `targets` of the one nearest to each deployment of a table."""
    t = plan.table
    sizes: dict[str, Number] = {"prefill": t.prompt_tokens, "batch": t.n_sequences, "decode": 1.0}
    kind, params, size = (np.asarray(x) for x in (t.format_class, t.walk.total_params, sizes[phase]))
    found = np.zeros(np.broadcast_shapes(kind.shape, params.shape, size.shape), dtype=int)
    for position, target in enumerate(targets[1:], 1):
        same = kind == formats.INDEX[target.format]
        if target.n_params:
            same = same & (abs(params - target.n_params) <= SAME_MODEL * target.n_params)
        if target.size:
            same = same & (np.maximum(size / target.size, target.size / size) <= SAME_SIZE)
        found = np.where(same, position, found)
    return found


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
    rows = _measured(mine, plan, phase, int(np.squeeze(count)))
    if rows is None:
        return q, 1.0
    one = Span(*(np.array([x]) for x in (q.low, q.best, q.high)))
    span, factor = sharpened(mine, plan, phase, count, True, floor_s, one)
    low, best, high = (float(np.squeeze(x)) for x in (span.low, span.best, span.high))
    note = told(max(r.date for r in rows), len(rows))
    return Quantity(low, best, high, "calibrated", note), float(np.squeeze(factor))


def _scaled(terms: tuple[Term, ...], factor: float) -> tuple[Term, ...]:
    return tuple(replace(t, seconds=t.seconds * factor) for t in terms)
