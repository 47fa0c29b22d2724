"""Measurements under load as arrays: loads, labels, seconds, and what each row weighs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from estimators.serving_model import Load, Worker
from estimators.serving_rates import Labels, label
from estimators.walk import Walk


@dataclass(frozen=True)
class Rows:
    """Measurements: the loads as arrays, and for each row its labels (with `model`, `device`, `source`), its seconds,
    and a name of its configuration. `whole_s` are those of a whole batch without a queue, which has no TTFT and TPOT:
    such rows teach what kernels reach, and nobody judges them. `weights` shares one measurement among its copies."""

    load: Load
    labels: Sequence[Labels]
    ttft_s: np.ndarray
    tpot_s: np.ndarray
    configuration: np.ndarray
    weights: np.ndarray
    whole_s: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def servers(self) -> np.ndarray:
        """Which rows are of servers under load."""
        return np.isnan(self.whole_s)

    @cached_property
    def parts(self) -> tuple[tuple[np.ndarray, Load], tuple[np.ndarray, Load]]:
        """(positions, loads) of servers and of batches."""
        served, batched = np.flatnonzero(self.servers), np.flatnonzero(~self.servers)
        return (served, _taken(self.load, served)), (batched, _taken(self.load, batched))

    def take(self, keep: np.ndarray) -> Rows:
        """The rows under this mask, or at these positions."""
        at = np.flatnonzero(keep) if keep.dtype == bool else keep
        rest = {n: getattr(self, n)[at] for n in ("ttft_s", "tpot_s", "configuration", "weights", "whole_s")}
        return Rows(_taken(self.load, at), [self.labels[int(i)] for i in at], **rest)


def _taken(value: Any, at: np.ndarray) -> Any:
    """The same dataclass of arrays at these positions."""
    if isinstance(value, Load | Worker | Walk):
        return replace(value, **{f.name: _taken(getattr(value, f.name), at) for f in fields(value)})
    return value[at]


def copies(ttft_s: np.ndarray, tpot_s: np.ndarray) -> np.ndarray:
    """1 / how often each measurement occurs."""
    pairs = [(str(a), str(b)) for a, b in zip(ttft_s.tolist(), tpot_s.tolist(), strict=True)]
    count = Counter(pairs)
    return np.array([1.0 / count[p] for p in pairs])


def labelled(rows: Rows, terms: set[tuple[str, ...]]) -> dict[tuple[str, ...], np.ndarray]:
    """The label of every row under each choice of features."""
    return {by: np.array([label(x, by) for x in rows.labels]) for by in terms}


def joined(first: Rows, second: Rows) -> Rows:
    """The rows of both."""

    def both(a: Any, b: Any) -> Any:
        if isinstance(a, Load | Worker | Walk):
            return replace(a, **{f.name: both(getattr(a, f.name), getattr(b, f.name)) for f in fields(a)})
        return np.concatenate([a, b])

    rest = {
        f.name: both(getattr(first, f.name), getattr(second, f.name))
        for f in fields(Rows)
        if f.name != "labels"
    }
    return Rows(labels=[*first.labels, *second.labels], **rest)
