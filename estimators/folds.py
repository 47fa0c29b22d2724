"""Grouped cross-validation, source-weighted errors and the noise floor of measurements."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from estimators.calibration import fit, predict
from estimators.measurements import Rows, row_weights

KINDS = ("decode", "prefill", "batch")
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


def seconds_ratio(rows: Rows, error: np.ndarray) -> np.ndarray:
    """log(measured seconds / predicted seconds), from log(predicted / measured) of the metric."""
    return np.where(np.isin(rows.metric, THROUGHPUT), error, -error)


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
