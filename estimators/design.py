"""Which effects the measurements support: a group has one where enough rows of enough sources or models show it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from estimators.efficiency import LATENTS
from estimators.measurements import Rows, features, joined
from estimators.peaks import NOTHING_TO_UNPACK
from estimators.priors import BASES, PRIORS

MIN_ROWS = 8
MIN_KINDS = 2  # of sources or of models
#: Of a family that is measured on one device only: how the deviation of its effect is shared between the family,
#: which the next device inherits, and the device (their squares add up to one).
ONE_DEVICE = (0.8, 0.6)
REFERENCE = {"", "one", "narrow", "cache16"}  # levels that need no effect of their own
DATED = ("ggml",)  # lineages whose builds were measured year after year: only they have effects of time


@dataclass(frozen=True)
class Effect:
    """One column of the regression: an effect of rows whose label is `label` (its base where `by` is
    empty)."""

    latent: str
    by: tuple[str, ...]
    per_year: bool
    label: str
    deviation: float


@dataclass(frozen=True)
class Design:
    """Which effects apply to which rows: for each latent and each term, a column per row (-1: none)."""

    effects: list[Effect]
    columns: dict[str, list[tuple[np.ndarray, np.ndarray]]]
    start: dict[str, np.ndarray]
    blocks: list[np.ndarray]  # positions of the rows of each engine and backend


def design(rows: Rows) -> Design:
    """The columns that these rows support. Groups of the same rows (an engine, and the one device it was measured on)
    keep an effect each: what they reach is shared between them by their deviations, and what has only one of the two
    in common inherits only its part."""
    found = features(rows)
    age = np.array([s.age for s in rows.situations])
    effects: list[Effect] = []
    columns: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {latent: [] for latent in LATENTS}
    start = {}
    labelled: dict[tuple[str, ...], np.ndarray] = {}
    followed = np.isin(found["lineage"], DATED)
    for latent in LATENTS:
        bases, deviation = BASES[latent]
        start[latent] = np.array([bases.get(x, bases["*"]) for x in found["lineage"]], dtype=float)
        columns[latent].append((np.full(len(rows), len(effects)), np.ones(len(rows))))
        effects.append(Effect(latent, (), False, "", deviation))
        matters = _matters(latent, rows)
        families: dict[tuple[bool, bytes], int] = {}
        for by, deviation, per_year in PRIORS[latent]:
            if by not in labelled:
                labelled[by] = joined(found, by)
            codes = np.full(len(rows), -1)
            dated = per_year or "era" in by
            for label, members in _supported(labelled[by], rows, matters & followed if dated else matters):
                group = (per_year, np.packbits(members).tobytes())
                own = deviation
                if "device" in by and (whole := families.get(group)) is not None:
                    own = ONE_DEVICE[1] * effects[whole].deviation
                    effects[whole] = replace(
                        effects[whole], deviation=ONE_DEVICE[0] * effects[whole].deviation
                    )
                elif "family" in by:
                    families.setdefault(group, len(effects))
                codes[members] = len(effects)
                effects.append(Effect(latent, by, per_year, label, own))
            columns[latent].append((codes, age if per_year else np.ones(len(rows))))
    _, block = np.unique(joined(found, ("engine", "backend")), return_inverse=True)
    blocks = [np.nonzero(block == i)[0] for i in range(int(block.max()) + 1)]
    return Design(effects, columns, start, blocks)


def _matters(latent: str, rows: Rows) -> np.ndarray:
    """The rows that a latent can change at all."""
    if latent in ("experts", "experts_compute", "padding", "half"):
        return rows.walk.n_experts > 0
    if latent in ("link", "reduce"):
        return (rows.n_tensor > 1) & ~(rows.gathered & (latent == "reduce"))
    if latent == "unpack":
        return rows.vector_flops < NOTHING_TO_UNPACK
    if latent == "hop":
        return (rows.n_stages > 1) | rows.gathered
    if latent == "passes":
        return np.array([s.lineage == "ggml" for s in rows.situations])
    return rows.server if latent == "request" else np.ones(len(rows), dtype=bool)


def _supported(labels: np.ndarray, rows: Rows, matters: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """(label, its rows) of the groups with enough rows from enough sources or models; others stay at their
    parent."""
    unique, inverse = np.unique(labels, return_inverse=True)
    counts = np.bincount(inverse[matters], minlength=len(unique))
    for i in np.nonzero(counts >= MIN_ROWS)[0]:
        members = (inverse == i) & matters
        n_kinds = max(len(set(rows.source[members])), len(set(rows.model[members])))
        if n_kinds >= MIN_KINDS and not REFERENCE & set(str(unique[i]).split("|")):
            yield str(unique[i]), members
