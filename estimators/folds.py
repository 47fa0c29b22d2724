"""Grouped cross-validation, source-weighted errors, intervals and the noise floor of measurements."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from estimators.calibration import Rows, fit, predict, row_weights
from estimators.efficiency import nearest

KINDS = ("decode", "prefill", "batch")
MIN_GROUP = 40  # rows from which an interval is taken
MIN_DEVICES = 5  # of a group that speaks for devices never measured
THROUGHPUT = (
    "prefill_tps",
    "decode_tps",
    "output_throughput_tps",
    "total_throughput_tps",
    "request_throughput",
)


def kind(rows: Rows) -> np.ndarray:
    """What each row measures: single-stream `decode` or `prefill`, or the throughput of a `batch` or a
    whole run."""
    alone = rows.n_sequences <= 1
    decode = np.isin(rows.metric, ("decode_tps", "tpot_ms")) & alone
    prefill = np.isin(rows.metric, ("prefill_tps", "ttft_ms")) & alone
    return np.where(decode, "decode", np.where(prefill, "prefill", "batch"))


def labels(rows: Rows, by: str) -> np.ndarray:
    """The group of each row: its `hardware`, `model` or `source`; `random` deals rows out evenly."""
    if by == "hardware":
        return np.array([s.device for s in rows.situations])
    if by == "random":
        return np.random.default_rng(0).permutation(len(rows)).astype(str)
    return rows.model if by == "model" else rows.source


def folds(rows: Rows, by: str, n_folds: int) -> np.ndarray:
    """Fold of each row: whole groups, dealt by weight so that folds are even."""
    names, inverse = np.unique(labels(rows, by), return_inverse=True)
    weight = np.bincount(inverse, weights=row_weights(rows), minlength=len(names))
    load, fold = np.zeros(n_folds), np.zeros(len(names), dtype=int)
    for i in np.argsort(-weight, kind="stable"):
        fold[i] = int(load.argmin())
        load[fold[i]] += weight[i]
    return fold[inverse]


def cross_validate(rows: Rows, by: str, n_folds: int, n_processes: int = 1) -> np.ndarray:
    """log(predicted / measured) of each row, predicted from the folds that leave its group out."""
    fold, found = folds(rows, by, n_folds), np.full(len(rows), np.nan)
    jobs = [(rows, fold == i) for i in range(n_folds)]
    if n_processes == 1:
        errors = [_held_out(*job) for job in jobs]
    else:
        with ProcessPoolExecutor(n_processes) as pool:
            errors = list(pool.map(_held_out, *zip(*jobs, strict=True)))
    for (_, held), error in zip(jobs, errors, strict=True):
        found[held] = error
    return found


def _held_out(rows: Rows, held: np.ndarray) -> np.ndarray:
    """log(predicted / measured) of the rows held out, from a fit of the others."""
    table, part = fit(rows.take(~held)), rows.take(held)
    return np.log(predict(table, part) / part.value)


def quantile(values: np.ndarray, weights: np.ndarray, q: float) -> float:
    """Weighted quantile."""
    order = np.argsort(values)
    share = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(len(values) - 1, int(np.searchsorted(share, q)))])


def source_weights(rows: Rows) -> np.ndarray:
    """One over the root of the size of each row's source."""
    _, inverse, counts = np.unique(rows.source, return_inverse=True, return_counts=True)
    return counts[inverse] ** -0.5


def device_weights(rows: Rows) -> np.ndarray:
    """One over the root of the number of rows of each row's device: the next device counts as one of those,
    its rows as theirs."""
    _, inverse, counts = np.unique(labels(rows, "hardware"), return_inverse=True, return_counts=True)
    return counts[inverse] ** -0.5


def seconds_ratio(rows: Rows, error: np.ndarray) -> np.ndarray:
    """log(measured seconds / predicted seconds), from log(predicted / measured) of the metric."""
    return np.where(np.isin(rows.metric, THROUGHPUT), error, -error)


def kin_left(rows: Rows, n_folds: int) -> np.ndarray:
    """Whether the family of each row's device, on its backend, was still in the fit that left the device
    out (`cross_validate` by hardware)."""
    fold = folds(rows, "hardware", n_folds)
    family = np.array(["|".join(getattr(s, f) for f in GROUPS[2]) for s in rows.situations])
    return np.array([bool(np.any((family == family[i]) & (fold != fold[i]))) for i in range(len(rows))])


def intervals(rows: Rows, seen: Sequence[np.ndarray], unseen: np.ndarray, kin: np.ndarray) -> dict[str, Any]:
    """Factors on predicted seconds that span 90% of cross-validated residuals, per kind and group.

    `seen` are residuals of rows whose device the fit knew (one array per way of leaving rows out), `unseen`
    of rows whose device was left out, `kin` tells where the fit still knew its family. Groups run from
    backend and lineage to device (known devices only); `*` is everything. Sources rated low are left out.
    """
    table: dict[str, Any] = {}
    trusted = (rows.trust != "low") & np.isfinite(unseen)
    what = kind(rows)
    for name in KINDS:
        keep = trusted & (what == name)
        if not keep.any():
            continue
        part, left = rows.take(keep), unseen[keep]
        twice = rows.take(np.concatenate([np.nonzero(keep)[0]] * len(seen)))
        ratio = seconds_ratio(twice, np.concatenate([error[keep] for error in seen]))
        known = _groups(twice, ratio, source_weights(twice), "seen")
        ratio, near = seconds_ratio(part, left), kin[keep]
        close = known
        if near.any():
            relatives = part.take(near)
            close = _groups(relatives, ratio[near], device_weights(relatives), "kin")
        close = _no_narrower(close, known)
        anyone = _groups(part, ratio, device_weights(part), "unseen")
        table[name] = {"seen": known, "kin": close, "unseen": _no_narrower(anyone, known, close)}
    return table


def _no_narrower(unseen: dict[str, Any], *known: dict[str, Any]) -> dict[str, Any]:
    """A device never measured is never better known than a measured one of its group: a group that has an
    interval for those has one here."""
    wide = {}
    shared = {label for groups in known for label in groups if label.count("|") <= 1}
    for label in sorted(unseen.keys() | shared):
        width = unseen.get(label) or unseen.get(label.split("|")[0]) or unseen["*"]
        all_of_them = [width, *(groups[label] for groups in known if label in groups)]
        slow, fast = max(w["slow"] for w in all_of_them), min(w["fast"] for w in all_of_them)
        wide[label] = width | {"slow": slow, "fast": fast}
    return wide


def covered(rows: Rows, error: np.ndarray, table: dict[str, Any], tier: np.ndarray) -> np.ndarray:
    """Whether each row lies in the interval that `table` states for a device of its `tier`."""
    ratio, what = seconds_ratio(rows, error), kind(rows)
    widths = np.array(
        [nearest(table[k], str(t), s) for k, t, s in zip(what, tier, rows.situations, strict=True)]
    )
    return (ratio <= np.log(widths[:, 0])) & (ratio >= np.log(widths[:, 1]))


GROUPS = (
    ("backend",),
    ("backend", "lineage"),
    ("backend", "lineage", "family"),
    ("backend", "lineage", "device"),
)


def _groups(rows: Rows, ratio: np.ndarray, weight: np.ndarray, phase: str) -> dict[str, Any]:
    found = {"*": _width(ratio, weight)}
    devices = labels(rows, "hardware")
    for by in GROUPS if phase == "seen" else GROUPS[:-1]:
        names = np.array(["|".join(getattr(s, f) for f in by) for s in rows.situations])
        for name in np.unique(names):
            members = names == name
            enough = phase == "seen" or len(set(devices[members])) >= MIN_DEVICES
            if members.sum() >= MIN_GROUP and enough:
                found[str(name)] = _width(ratio[members], weight[members])
    return found


def _width(ratio: np.ndarray, weight: np.ndarray) -> dict[str, float]:
    slow, fast = quantile(ratio, weight, 0.95), quantile(ratio, weight, 0.05)
    return {
        "slow": round(float(np.exp(max(slow, 0.02))), 3),
        "fast": round(float(np.exp(min(fast, -0.02))), 3),
        "rows": len(ratio),
    }


def noise_floor(rows: Rows) -> dict[str, tuple[int, float, float]]:
    """Per kind: how many rows repeat another row's configuration (same device, engine, model, format,
    workload and metric, any date or source), and the median and 90th percentile of |value / median of its
    repeats - 1|."""
    found = {}
    what = kind(rows)
    settings = zip(
        (f"{s.engine}|{s.backend}|{s.device}" for s in rows.situations), rows.model, rows.formats,
        rows.n_tensor, rows.n_stages, rows.n_sequences, rows.prompt_tokens, rows.output_tokens,
        rows.cached_tokens, rows.metric, rows.kv_bytes, strict=True,
    )  # fmt: skip
    groups: dict[Any, list[int]] = {}
    for i, key in enumerate(settings):
        groups.setdefault(key, []).append(i)
    for name in KINDS:
        spread = [
            abs(rows.value[i] / np.median(rows.value[members]) - 1)
            for members in groups.values()
            if len(members) > 1
            for i in members
            if what[i] == name and rows.trust[i] != "low"
        ]
        if spread:
            found[name] = (len(spread), float(np.median(spread)), float(np.quantile(spread, 0.9)))
    return found
