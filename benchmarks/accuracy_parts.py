"""What the remaining error is made of, for `benchmarks/accuracy.py`: repeats of one measurement, and the share
of held-out errors that goes with a device, a model, a software version or a source."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# errors beyond a factor of four count as one, or a few rows would be all there is to see
CLIP = math.log(4.0)
WORST = 5
FAMILIES = ("single-stream decode", "prefill", "static batch and saturated throughput")


@dataclass(frozen=True)
class Row:
    """One held-out error, log(predicted / measured), with what it may go with."""

    score: Any
    error: float
    weight: float
    device: str
    model: str
    version: str
    source: str
    configuration: str


#: What an error may go with, in the order in which it is taken out.
FACTORS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("device", lambda r: r.device),
    ("model", lambda r: r.model),
    ("software version", lambda r: r.version),
    ("source", lambda r: r.source),
)


def rows(truth: Path, found: Sequence[Any]) -> list[Row]:
    """The held-out errors of trusted rows without speculation, with their labels."""
    from accuracy_crossed import _device, _observed

    from planner import scores

    observed = {o.record.line: o for o in _observed(str(truth))}
    kept = [
        s
        for s in found
        if s.predicted and s.line in observed and s.trust != "low" and "speculative" not in s.flags
    ]
    made = []
    for family in FAMILIES:
        members = [s for s in kept if s.family == family]
        for s, weight in zip(members, scores.weights(members), strict=True):
            o = observed[s.line]
            d = o.observation.deployment
            run = f"{d.engine}|{d.backend}|{_device(o)}|{len(d.machine.devices)}"
            made.append(
                Row(
                    s, max(-CLIP, min(CLIP, math.log(s.predicted / s.measured))), weight, run,
                    f"{d.engine}|{d.backend}|{d.model.base}",
                    f"{run}|{_version(d.settings)}",
                    f"{s.source}|{d.engine}|{d.backend}", _configuration(o),
                )
            )  # fmt: skip
    return made


def _version(settings: Any) -> str:
    """The software as far as rows tell: a tenth of a year, the toolchain, the attention kernels."""
    year = settings.year and round(settings.year, 1)
    return f"{year}|{settings.toolchain}|{settings.flash_attention}"


def _configuration(o: Any) -> str:
    """Everything that is the same between repeats: all but the date, the build and who measured."""
    d = o.observation.deployment
    set_to = (d.settings.kv_type_k, d.settings.kv_type_v, d.settings.flash_attention, d.settings.n_threads)
    what = (d.model.id, d.scheme.id, d.machine.name, len(d.machine.devices), d.engine, d.backend)
    return str((what, d.placement, set_to, d.workload, o.ask.metric))


def shares(members: Sequence[Row]) -> tuple[float, dict[str, float]]:
    """(mean squared error, share of it that goes with each factor), one factor after the other.

    A factor's share is how much less the squared error is when each row is moved by the mean error of the
    *others* of its group (shrunk by one row's worth): what chance alone would explain counts for nothing.
    """
    weight = [m.weight for m in members]
    left = [m.error for m in members]
    total = _mean([e * e for e in left], weight)
    now, found = total, {}
    for name, key in FACTORS:
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for m, e in zip(members, left, strict=True):
            sums[key(m)][0] += e
            sums[key(m)][1] += 1
        moved = [
            e - (sums[key(m)][0] - e) / (sums[key(m)][1] - 1 + 1.0)
            for m, e in zip(members, left, strict=True)
        ]
        then = _mean([e * e for e in moved], weight)
        if then < now:
            found[name], now, left = (now - then) / total, then, moved
        else:
            found[name] = 0.0
    found["not explained by these"] = now / total
    return total, found


def repeats(members: Sequence[Row], key: Callable[[Row], str]) -> tuple[int, float, float]:
    """Of rows that share a key with another: (how many, mean squared distance of the measurements from each
    other's mean, mean squared held-out error of ours), in logs."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for m in members:
        groups[key(m)].append(m)
    squares, ours, weight = [], [], []
    for group in groups.values():
        if len(group) > 1:
            logs = [math.log(m.score.measured) for m in group]
            mean = statistics.fmean(logs)
            scale = len(group) / (len(group) - 1)
            squares += [scale * min((x - mean) ** 2, CLIP**2) for x in logs]
            ours += [m.error**2 for m in group]
            weight += [m.weight for m in group]
    return len(squares), _mean(squares, weight), _mean(ours, weight)


#: Which measurements repeat each other: the same build and measurer, or the same configuration whoever and whenever.
REPEATS: tuple[Callable[[Row], str], ...] = (
    lambda r: f"{r.configuration}|{r.version}|{r.source}",
    lambda r: r.configuration,
)


def _typical(variance: float) -> str:
    """A mean squared error of logarithms as a percentage."""
    return f"{math.exp(math.sqrt(variance)) - 1:.0%}"


def _mean(values: Sequence[float], weight: Sequence[float]) -> float:
    return sum(v * w for v, w in zip(values, weight, strict=True)) / sum(weight) if values else math.nan


EXPLAINED = """The mean squared error (of logarithms; a factor of four at most) of rows that a fit did not see,
split: the share that goes with the device (under its engine), with the model, with the software version
on the device, and with the source, taken out in this order; each by the mean error of the *other* rows of
its group, so that chance explains nothing."""

NOISE = """How far repeats of one measurement lie from each other, beside our held-out error on the same rows:
of one build and measurer, and of one configuration by anyone at any date. What differs between repeats of
one build is noise; what differs between builds is the software's version, of which a row tells the year at
best."""

LEFT_OUT = {
    "row": "rows left out",
    "model": "models left out",
    "hardware": "devices left out",
    "source": "sources left out",
}


def page(truth: Path, crossed: dict[str, list[Any]]) -> str:
    """The section of docs/accuracy.md; "" without cross-validation."""
    from planner import validate

    body: list[Sequence[str]] = []
    noise: list[Sequence[str]] = []
    worst: list[str] = []
    for name, title in LEFT_OUT.items():
        everything = rows(truth, crossed[name]) if name in crossed else []
        for family in FAMILIES:
            members = [m for m in everything if m.score.family == family]
            if len(members) < 100:
                continue
            total, found = shares(members)
            each = (f"{share:.0%}" for share in found.values())
            body.append((family, title, f"{len(members):,}", _typical(total), *each))
            if name == "row":
                noise.append((family, *_noise(members)))
                worst += [f"**{family}**", "", *_worst(members), ""]
    if not body:
        return ""
    headings = ("family", "basis", "n", "typical error", *(name for name, _ in FACTORS), "unexplained")
    heard = ("rows", "repeats", "ours")
    pairs = [f"{what}: {x}" for what in ("one build", "any build") for x in heard]
    parts = ["## What the remaining error is made of", EXPLAINED, validate.markdown_table(headings, body)]
    parts += [NOISE, validate.markdown_table(("family", *pairs), noise)]
    parts += [
        "The rows that a fit without them misses most, with what went with the same device:",
        "\n".join(worst),
    ]
    return "\n\n".join(parts).rstrip()


def _noise(members: Sequence[Row]) -> Sequence[str]:
    cells: list[str] = []
    for key in REPEATS:
        n, between, ours = repeats(members, key)
        cells += [f"{n:,}", _typical(between), _typical(ours)] if n else ["0", "-", "-"]
    return cells


def _worst(members: Sequence[Row]) -> list[str]:
    """The rows with the largest errors, beside the median error of others with the same device and source."""
    ranked = sorted(members, key=lambda m: -abs(math.log(m.score.predicted / m.score.measured)))
    lines = []
    for m in ranked[:WORST]:
        s = m.score
        others = [o.error for o in members if o.device == m.device and o.source == m.source and o is not m]
        beside = (
            f"{math.expm1(statistics.median(others)):+.0%} on {len(others)} others" if others else "alone"
        )
        lines.append(
            f"- {s.id or f'line {s.line}'}: predicted {s.predicted:.4g}, measured {s.measured:.4g} {s.metric}; "
            f"{s.model}, {s.quant}, {s.engine}, {s.hardware}; {beside} of this device and source"
        )
    return lines


def noise_floor(truth: Path) -> list[tuple[str, int, int, float, float]]:
    """How far measurements of one configuration lie from their median: per kind of repetition, the number of
    configurations, of rows, and the median and 90th percentile of the relative distance."""
    from accuracy_crossed import _observed

    from planner import scores

    groups: dict[str, list[Any]] = defaultdict(list)
    for o in _observed(str(truth)):
        if "speculative" not in o.ask.flags:
            groups[_configuration(o)].append(o.observation)
    table = []
    for name, wanted in (("any source and build", 1), ("two sources or more", 2)):
        members = [g for g in groups.values() if len(g) > 1 and len({o.source for o in g}) >= wanted]
        far = [abs(o.value / statistics.median(x.value for x in g) - 1) for g in members for o in g]
        if far:
            table.append((name, len(members), len(far), scores.quantile(far, 0.5), scores.quantile(far, 0.9)))
    return table
