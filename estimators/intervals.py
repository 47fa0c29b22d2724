"""Widths of predictions, from residuals of rows that a fit did not see.

A residual belongs to the tier (`estimators.tiers`) of what its fit knew of it: of the row alone left out, the
device and the model were known; of a model left out, only others like it; of a device left out, its family
or nothing. So a width says how wrong predictions were where exactly as much was known. Residuals of whole
sources left out count in the tier of what the other sources knew: a user is always a new source.

The interval of a situation is three things multiplied, in logs: the scale of its tier (the mean size of the
tier's residuals; no tier that knows less is narrower), how much larger or smaller residuals of its backend,
lineage, family and device are than their tier's (`stretch`: each shrunk by the number of independent units in
the group, and taken over all tiers that lack the same), and the quantiles of residuals so scaled. Scales of
groups are means, for a tail of few devices or sources says next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from estimators import tiers
from estimators.efficiency import GROUPS, widths
from estimators.folds import KINDS, folds, kind, labels, seconds_ratio, source_weights
from estimators.measurements import Rows
from estimators.tiers import LACKS, STRUCTURES, TIERS

MIN_GROUP = 20  # residuals from which a group has a stretch of its own
#: Units (configurations, models on devices, devices by source) at which a group counts as much as its parent.
#: Chosen, as TAIL is, by coverage and interval score (width plus 20 times the misses' distance) of widths learnt
#: without the rows' own models, devices or sources; flat between 10 and 60.
BLEND = 20.0
#: Share of residuals beyond each end. Tails of models and devices never seen rest on few of them, and are too
#: near by nature: a narrower one makes 90% of what other models and devices showed.
TAIL = {"row": 0.05, "model": 0.03, "device": 0.03}
LARGEST = 1.5  # a residual's part in a scale, in logs: beyond a factor of 4.5 something else was measured
#: Tiers in the order of what they know: scales do not fall along these.
CHAINS = (("seen", "model", "structure"), ("kin", "kin-model", "backend", "unseen"))
#: Parts that widths are tried in: of few sources, as many as possible stay.
PARTS = {"source": 10}
N_PARTS = 5

Known = dict[str, dict[str, Any]]
Errors = Mapping[str, np.ndarray]  # log(predicted / measured) by way of leaving rows out
Tiers = Mapping[str, np.ndarray]  # the tier of each row under the same fits


def knowledge(rows: Rows) -> Known:
    """What these rows measured, as `estimators.tiers.tier` asks: shapes by device or family, and structure; and
    how many families by backend and structure."""
    measured: dict[str, dict[str, set[int]]] = {}
    families: dict[str, dict[str, set[int]]] = {}
    backends: dict[str, dict[str, set[str]]] = {}
    shapes = tiers.shape(rows.walk.total_params)
    for s, structure, shape in zip(rows.situations, rows.structure, shapes, strict=True):
        name = STRUCTURES[int(structure)]
        for table, label in ((measured, tiers.device_label(s)), (families, tiers.family_label(s))):
            table.setdefault(label, {}).setdefault(name, set()).add(int(shape))
        backends.setdefault(tiers.backend_label(s), {}).setdefault(name, set()).add(s.family)
    counted = {
        label: {name: len(held[name]) for name in STRUCTURES if name in held}
        for label, held in sorted(backends.items())
    }
    return {"measured": _sorted(measured), "families": _sorted(families), "backends": counted}


def _sorted(table: dict[str, dict[str, set[int]]]) -> dict[str, Any]:
    return {
        label: {name: sorted(held[name]) for name in STRUCTURES if name in held}
        for label, held in sorted(table.items())
    }


def tiers_of(known: Known, rows: Rows) -> np.ndarray:
    """The tier of each row for a fit that knows this."""
    found = np.empty(len(rows), dtype=object)
    groups: dict[Any, list[int]] = {}
    for i, s in enumerate(rows.situations):
        groups.setdefault(s, []).append(i)
    for s, members in groups.items():
        at = np.array(members)
        position = tiers.tier(known, s, rows.structure[at], rows.walk.total_params[at])
        found[at] = np.array(TIERS)[position]
    return found.astype(str)


def left_out(rows: Rows, by: str, n_folds: int) -> np.ndarray:
    """The tier of each row under the fit that left its fold out (`folds.cross_validate`)."""
    fold, found = folds(rows, by, n_folds), np.full(len(rows), "", dtype=object)
    for i in range(n_folds):
        held = fold == i
        found[held] = tiers_of(knowledge(rows.take(~held)), rows.take(held))
    return found.astype(str)


@dataclass(frozen=True)
class Pool:
    """Residuals of one kind of row, by every way of leaving rows out: log(measured / predicted seconds), the
    tier, what it lacks, the weight, the independent unit (of rows, models or devices) and the labels of GROUPS."""

    ratio: np.ndarray
    tier: np.ndarray
    lacks: np.ndarray
    weight: np.ndarray
    unit: np.ndarray
    groups: tuple[np.ndarray, ...]

    @property
    def size(self) -> np.ndarray:
        """How far each lies off."""
        return np.minimum(np.abs(self.ratio), LARGEST)


def intervals(rows: Rows, errors: Errors, known: Tiers, learn: np.ndarray | None = None) -> dict[str, Any]:
    """Factors on predicted seconds that span 90% of these residuals. By kind: `tiers`, with `slow` and `fast` of
    each, and `stretch`: what is lacking -> group -> `by`, the factor on the logarithms of its ends; each with
    how many `rows` and `units` it rests on. Sources rated low are left out, and rows outside the mask `learn`."""
    trusted = rows.trust != "low" if learn is None else (rows.trust != "low") & learn
    what, table = kind(rows), {}
    units, names = _units(rows), _names(rows)
    for one in KINDS:
        keep = np.nonzero(trusted & (what == one))[0]
        if len(keep):
            table[one] = _spread(_pool(rows, errors, known, keep, units, names))
    return table


def _units(rows: Rows) -> dict[str, np.ndarray]:
    """What counts as one independent look: a configuration, a model on a device, a device in a source."""
    devices, shapes = labels(rows, "hardware"), tiers.shape(rows.walk.total_params).astype(int).astype(str)
    joined = {
        "row": (devices, shapes, rows.formats),
        "model": (devices, shapes),
        "device": (devices, rows.source),
    }
    return {k: np.array(["|".join(x) for x in zip(*v, strict=True)]) for k, v in joined.items()}


def _names(rows: Rows) -> tuple[np.ndarray, ...]:
    """The label of each row in each of GROUPS."""
    return tuple(np.array(["|".join(getattr(s, f) for f in by) for s in rows.situations]) for by in GROUPS)


def _pool(
    rows: Rows, errors: Errors, known: Tiers, keep: np.ndarray,
    units: Mapping[str, np.ndarray], names: tuple[np.ndarray, ...],
) -> Pool:  # fmt: skip
    at = {by: keep[np.isfinite(errors[by][keep])] for by in errors}
    place = np.concatenate(list(at.values()))
    weight = np.zeros(len(rows))
    weight[keep] = source_weights(rows.take(keep))
    tier = np.concatenate([known[by][at[by]] for by in errors])
    lacks = np.array([LACKS[t] for t in tier])
    unit = np.select([lacks == name for name in units], [units[name][place] for name in units], "")
    ratio = np.concatenate([seconds_ratio(rows, errors[by])[at[by]] for by in errors])
    return Pool(ratio, tier, lacks, weight[place], unit, tuple(label[place] for label in names))


def _spread(pool: Pool) -> dict[str, Any]:
    """The intervals of one kind."""
    known = _scales(pool)
    like = {one: _stand_in(one, known) for one in TIERS}
    scaled = np.array([known[like[t]] for t in pool.tier])
    stretch, shape = {}, {}
    for lacking in TAIL:
        members = pool.lacks == lacking
        if members.sum() >= MIN_GROUP:
            stretch[lacking], by = _stretches(pool, members, pool.size / scaled)
            standard = pool.ratio[members] / scaled[members] / by[members]
            shape[lacking] = _ends(standard, pool.weight[members], TAIL[lacking])
    found = {}
    for one in TIERS:
        rested = pool.tier == like[one]
        slow, fast = (round(float(x), 3) for x in np.exp(shape[LACKS[like[one]]] * known[like[one]]))
        n_units = len(set(pool.unit[rested]))
        found[one] = {"slow": slow, "fast": fast, "rows": int(rested.sum()), "units": n_units}
    return {"tiers": found, "stretch": stretch}


def _scales(pool: Pool) -> dict[str, float]:
    """The mean size of each tier's residuals; where one that knows less had smaller ones, both have their mean."""
    found: dict[str, float] = {}
    for chain in CHAINS:
        blocks: list[tuple[list[str], float, float]] = []  # tiers, weight, log of their scale
        for one in chain:
            members = pool.tier == one
            if members.sum() < MIN_GROUP:
                continue
            weight = float(pool.weight[members].sum())
            here = (
                [one],
                weight,
                float(np.log(np.average(pool.size[members], weights=pool.weight[members]))),
            )
            while blocks and blocks[-1][2] > here[2]:
                names, heavy, log = blocks.pop()
                here = (
                    names + here[0],
                    heavy + here[1],
                    (log * heavy + here[2] * here[1]) / (heavy + here[1]),
                )
            blocks.append(here)
        found |= {one: float(np.exp(log)) for names, _, log in blocks for one in names}
    return found


def _stand_in(tier: str, found: Mapping[str, Any]) -> str:
    """The tier itself, or the nearest one that has rows: rather one that knows less."""
    here = TIERS.index(tier)
    if not found:
        raise ValueError(f"{MIN_GROUP} rows of a kind are the least that say how wide an interval is")
    return min(found, key=lambda other: (abs(TIERS.index(other) - here), -TIERS.index(other)))


def _stretches(pool: Pool, members: np.ndarray, size: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """What each group of these residuals stretches ends by, all its parents' included, and that of each row;
    `size` in units of the tier's scale. Of devices left out a device says nothing: the next one is another."""
    found: dict[str, Any] = {}
    by = np.ones(len(size))
    for group, names in reversed(list(zip(GROUPS, pool.groups, strict=True))):
        if "device" in group and pool.lacks[members][0] == "device":
            continue
        parent = by.copy()
        for name in np.unique(names[members]):
            mine = members & (names == name)
            if mine.sum() < MIN_GROUP:
                continue
            n = len(set(pool.unit[mine]))
            own = np.log(np.average(size[mine] / parent[mine], weights=pool.weight[mine]))
            by[mine] = parent[mine] * np.exp(own * n / (n + BLEND))
            found[str(name)] = {"by": round(float(by[mine][0]), 3), "rows": int(mine.sum()), "units": n}
    return found, by


def _ends(ratio: np.ndarray, weight: np.ndarray, tail: float) -> np.ndarray:
    """(slow, fast) ends of residuals."""
    order = np.argsort(ratio, kind="stable")
    share = (np.cumsum(weight[order]) - 0.5 * weight[order]) / weight.sum()
    fast, slow = np.interp([tail, 1 - tail], share, ratio[order])
    return np.array([max(slow, 0.0), min(fast, 0.0)])


def span(rows: Rows, table: dict[str, Any], tier: np.ndarray) -> np.ndarray:
    """(row, 2): the ends of each row's interval (slow, fast), in logs of a factor on seconds."""
    found, what = np.zeros((len(rows), 2)), kind(rows)
    plain = compact(table)
    known: dict[Any, Any] = {}
    for i, s in enumerate(rows.situations):
        key = (what[i], s.backend, s.lineage, s.family, s.device)
        if key not in known:
            known[key] = widths(plain[what[i]], s)
        at = TIERS.index(tier[i])
        found[i] = np.log([known[key]["slow"][at], known[key]["fast"][at]])
    return found


def compact(table: Mapping[str, Any]) -> dict[str, Any]:
    """The widths without their evidence, as `estimators.efficiency.widths` reads them."""
    return {
        kind: {
            "tiers": {tier: [width["slow"], width["fast"]] for tier, width in held["tiers"].items()},
            "stretch": {
                lacking: {label: group["by"] for label, group in groups.items()}
                for lacking, groups in held["stretch"].items()
            },
        }
        for kind, held in table.items()
    }


def inside(rows: Rows, error: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Whether each measurement lies in its interval."""
    ratio = seconds_ratio(rows, error)
    return (ratio <= ends[:, 0]) & (ratio >= ends[:, 1])


def nested(rows: Rows, errors: Errors, known: Tiers, by: str, also: str = "") -> np.ndarray:
    """`span` of the residuals of one way of leaving rows out, from widths that never saw the row, its model,
    its device or its source (whatever `by` leaves out, and `also` besides)."""
    found = np.full((len(rows), 2), np.nan)
    for here in _parts(rows, by):
        for there in _parts(rows, also) if also else (np.ones(len(rows), dtype=bool),):
            held = here & there
            if held.any():
                learn = ~here & ~there if also else ~here
                table = intervals(rows, errors, known, learn)
                found[held] = span(rows.take(held), table, known[by][held])
    return found


def _parts(rows: Rows, by: str) -> Iterator[np.ndarray]:
    """Masks of rows that share no group."""
    _, unit = np.unique(labels(rows, by), return_inverse=True)
    n_parts = PARTS.get(by, N_PARTS)
    part = (np.random.default_rng(3).permutation(int(unit.max()) + 1) % n_parts)[unit]
    for i in range(n_parts):
        if (part == i).any():
            yield part == i
