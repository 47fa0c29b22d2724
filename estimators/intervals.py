"""Widths of predictions, from residuals of rows that a fit did not see.

A residual belongs to the tier (`estimators.tiers`) of what its fit knew of it: of the row alone left out, the
device and the model were known; of a model left out, only others like it; of a device left out, its family
or nothing. So a width says how wrong predictions were where exactly as much was known. Within a tier, groups
run from everything to backend, lineage, family and device; a group's ends are blended with its parent's by
the number of independent units in it, so that a group of few models or devices says little of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np

from estimators import tiers
from estimators.calibration import Rows
from estimators.efficiency import GROUPS, widths
from estimators.folds import KINDS, folds, kind, labels, seconds_ratio, source_weights
from estimators.tiers import STRUCTURES, TIERS

MIN_GROUP = 20  # rows from which a group has widths of its own
#: Units (configurations, models, devices) at which a group counts as much as its parent. Chosen by the
#: interval score (width plus 20 times the misses' distance) of widths learnt without the rows' own models
#: or devices; flat within a factor of two.
BLEND = {"seen": 10.0, "model": 15.0, "structure": 15.0, "kin": 10.0, "kin-model": 20.0, "unseen": 40.0}
#: Share of residuals beyond each end. Ends learnt from few models or devices are too near by nature: a
#: narrower tail makes 90% of what other models and devices showed.
TAIL = {"seen": 0.05, "model": 0.04, "structure": 0.04, "kin": 0.04, "kin-model": 0.04, "unseen": 0.04}
NARROWEST = 0.02  # no end is nearer, in logs

Known = dict[str, dict[str, Any]]
Errors = Mapping[str, np.ndarray]  # log(predicted / measured) by way of leaving rows out
Tiers = Mapping[str, np.ndarray]  # the tier of each row under the same fits


def knowledge(rows: Rows) -> Known:
    """What these rows measured, as `estimators.tiers.tier` asks: shapes by device or family, and structure."""
    measured: dict[str, dict[str, set[int]]] = {}
    families: dict[str, dict[str, set[int]]] = {}
    shapes = tiers.shape(rows.walk.total_params)
    for s, structure, shape in zip(rows.situations, rows.structure, shapes, strict=True):
        name = STRUCTURES[int(structure)]
        for table, label in ((measured, tiers.device_label(s)), (families, tiers.family_label(s))):
            table.setdefault(label, {}).setdefault(name, set()).add(int(shape))
    return {"measured": _sorted(measured), "families": _sorted(families)}


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


def intervals(rows: Rows, errors: Errors, known: Tiers, learn: np.ndarray | None = None) -> dict[str, Any]:
    """Factors on predicted seconds that span 90% of these residuals: kind -> tier -> group -> `slow`,
    `fast`, and how many `rows` and `units` it rests on. Sources rated low are left out, and rows outside
    the mask `learn`."""
    trusted = rows.trust != "low" if learn is None else (rows.trust != "low") & learn
    what, table = kind(rows), {}
    for name in KINDS:
        keep = np.nonzero(trusted & (what == name))[0]
        if not len(keep):
            continue
        at = np.concatenate([keep[np.isfinite(errors[by][keep])] for by in errors])
        ratio = np.concatenate(
            [seconds_ratio(rows, errors[by])[keep[np.isfinite(errors[by][keep])]] for by in errors]
        )
        tier = np.concatenate([known[by][keep[np.isfinite(errors[by][keep])]] for by in errors])
        weight = np.zeros(len(rows))
        weight[keep] = source_weights(rows.take(keep))
        found = {}
        for one in TIERS:
            members = tier == one
            if members.sum() >= MIN_GROUP:
                found[one] = _groups(rows, at[members], ratio[members], weight[at[members]], one)
        table[name] = {one: deepcopy(found[_stand_in(one, found)]) for one in TIERS}
    return table


def _stand_in(tier: str, found: Mapping[str, Any]) -> str:
    """The tier itself, or the nearest one that has rows: rather one that knows less."""
    here = TIERS.index(tier)
    if not found:
        raise ValueError(f"{MIN_GROUP} rows of a kind are the least that say how wide an interval is")
    return min(found, key=lambda other: (abs(TIERS.index(other) - here), -TIERS.index(other)))


def _units(rows: Rows, tier: str) -> np.ndarray:
    """What counts as one independent look at a tier: a configuration, a model's shape, a device."""
    devices, shapes = labels(rows, "hardware"), tiers.shape(rows.walk.total_params).astype(int).astype(str)
    if tier == "seen":
        return np.array(["|".join(x) for x in zip(devices, shapes, rows.formats, strict=True)])
    return shapes if tier in ("model", "structure") else devices


def _groups(rows: Rows, at: np.ndarray, ratio: np.ndarray, weight: np.ndarray, tier: str) -> dict[str, Any]:
    part = rows.take(at)
    units, ends = _units(part, tier), _ends(ratio, weight, tier)
    found = {"*": _entry(ends, len(ratio), len(set(units)))}
    logs = {"*": ends}
    own_device = tier in ("seen", "model", "structure")
    levels = [by for by in reversed(GROUPS) if own_device or "device" not in by]
    for by in levels:
        names = np.array(["|".join(getattr(s, f) for f in by) for s in part.situations])
        for name in np.unique(names):
            members = names == name
            if members.sum() < MIN_GROUP:
                continue
            n = len(set(units[members]))
            parent = logs[_parent(part.situations[int(np.argmax(members))], by, logs)]
            share = n / (n + BLEND[tier])
            ends = share * _ends(ratio[members], weight[members], tier) + (1 - share) * parent
            logs[str(name)] = ends
            found[str(name)] = _entry(ends, int(members.sum()), n)
    return found


def _parent(situation: Any, by: Sequence[str], found: Mapping[str, Any]) -> str:
    """The label of the next wider group that has ends."""
    wider = list(GROUPS[GROUPS.index(tuple(by)) + 1 :])
    for group in wider:
        label = "|".join(getattr(situation, f) for f in group)
        if label in found:
            return label
    return "*"


def _ends(ratio: np.ndarray, weight: np.ndarray, tier: str) -> np.ndarray:
    """(slow, fast) ends of a group's residuals, in logs."""
    order = np.argsort(ratio, kind="stable")
    share = (np.cumsum(weight[order]) - 0.5 * weight[order]) / weight.sum()
    fast, slow = np.interp([TAIL[tier], 1 - TAIL[tier]], share, ratio[order])
    return np.array([max(slow, NARROWEST), min(fast, -NARROWEST)])


def _entry(ends: np.ndarray, n: int, units: int) -> dict[str, Any]:
    slow, fast = (round(float(x), 3) for x in np.exp(ends))
    return {"slow": slow, "fast": fast, "rows": n, "units": units}


def span(rows: Rows, table: dict[str, Any], tier: np.ndarray) -> np.ndarray:
    """(row, 2): the ends of each row's interval (slow, fast), in logs of a factor on seconds."""
    found, what = np.zeros((len(rows), 2)), kind(rows)
    plain = {
        k: {t: {x: (w["slow"], w["fast"]) for x, w in groups.items()} for t, groups in by_tier.items()}
        for k, by_tier in table.items()
    }
    known: dict[Any, Any] = {}
    for i, s in enumerate(rows.situations):
        key = (what[i], s.backend, s.lineage, s.family, s.device)
        if key not in known:
            known[key] = widths(plain[what[i]], s)
        at = TIERS.index(tier[i])
        found[i] = np.log([known[key]["slow"][at], known[key]["fast"][at]])
    return found


def inside(rows: Rows, error: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Whether each measurement lies in its interval."""
    ratio = seconds_ratio(rows, error)
    return (ratio <= ends[:, 0]) & (ratio >= ends[:, 1])


def nested(
    rows: Rows, errors: Errors, known: Tiers, by: str, n_folds: int = 5, tier: np.ndarray | None = None
) -> np.ndarray:
    """`span` of the residuals of one way of leaving rows out, from widths that never saw the row, its model
    or its device (whatever `by` leaves out). `tier` where that way is none of those learnt from."""
    tried = known[by] if tier is None else tier
    found = np.full((len(rows), 2), np.nan)
    for learn in _parts(rows, by, n_folds):
        table = intervals(rows, errors, known, learn)
        found[~learn] = span(rows.take(~learn), table, tried[~learn])
    return found


def _parts(rows: Rows, by: str, n_folds: int) -> Iterator[np.ndarray]:
    _, unit = np.unique(labels(rows, by), return_inverse=True)
    part = (np.random.default_rng(3).permutation(int(unit.max()) + 1) % n_folds)[unit]
    for i in range(n_folds):
        yield part != i
