"""Coverage of the 90% intervals, for `benchmarks/accuracy.py`: widths tried on rows that they were not learnt
from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FEWEST = 100  # rows of a family, a tier or a backend that the table shows
TITLES = {
    "row": "rows left out",
    "model": "models left out",
    "hardware": "devices left out",
    "source": "sources left out",
}
BOTH = "sources left out, device in no other"

EXPLAINED = """Widths belong to tiers of what was measured: *seen* the device with this model (or one of
its size), *model* the device with other models of its structure, *structure* the device with hardly any of
them, *kin* relatives of the device with this model (or one of about its size), *kin-model* relatives with
others of its structure, *backend* at least three other families with models of its structure, *unseen*
nothing of the kind. They are learnt from residuals of rows, models, devices and whole sources left out,
each in the tier of what its fit knew; backends, lineages of engines, families and devices stretch them,
each shrunk by how few models or devices it rests on. Below, the widths were learnt without the row, the
model, the device or the source that they are tried on (five parts; ten of sources), so this is what a
stranger's measurement would find. *High / low* is the interval's width, *score* its width in logs plus 20
times the distance of a miss (less is better). A group of one or two devices or sources is covered as they
happen to be. Where others measured the very device and model (*seen*), a stranger's measurement differs
from theirs by more than the rows of one source differ from each other: the interval is a compromise that
most rows of known sources and too few of new ones lie in; `plan calibrate` narrows it to one's own machine."""


def page(truth: Path, crossed: dict[str, list[Any]], folds: int, cache: Path) -> str:
    """The section of docs/accuracy.md; "" without cross-validation."""
    if not all(name in crossed for name in TITLES):
        return ""
    import numpy as np
    from accuracy_crossed import GROUPINGS, _observed, comparable

    from estimators import folds as groups
    from estimators import intervals, observation
    from estimators.tiers import LACKS
    from planner import validate

    seen = [o for o in _observed(str(truth)) if comparable(o)]
    rows, kept = observation.rows([o.observation for o in seen])
    seen = [seen[i] for i in kept]
    fitted_as = {g.name: g.fitted_as for g in GROUPINGS}
    errors = {fitted_as[g.name]: _errors(seen, crossed[g.name]) for g in GROUPINGS}
    tiers = {fitted_as[g.name]: _tiers(str(truth), g, folds, str(cache), seen, rows) for g in GROUPINGS}
    body = []
    for name, title in TITLES.items():
        by = fitted_as[name]
        ends = intervals.nested(rows, errors, tiers, by)
        body += _lines(title, rows, errors[by], ends, tiers[by], groups, intervals)
    ends = intervals.nested(rows, errors, tiers, "source", also="hardware")
    far = np.array([LACKS[t] == "device" for t in tiers["source"]])
    error = np.where(far, errors["source"], np.nan)
    body += _lines(BOTH, rows, error, ends, tiers["source"], groups, intervals)
    headings = (
        "family",
        "left out",
        "group",
        "n",
        "devices",
        "in interval",
        "weighted by source",
        "high / low",
        "score",
    )
    return "\n\n".join(["## Do the intervals hold?", EXPLAINED, validate.markdown_table(headings, body)])


def _errors(seen: Sequence[Any], crossed: Sequence[Any]) -> Any:
    """log(predicted / measured) of each observation when it was left out; NaN where nothing was predicted."""
    import numpy as np

    by_line = {s.line: s for s in crossed}
    found = (by_line.get(o.record.line) for o in seen)
    return np.array([math.log(s.predicted / s.measured) if s and s.predicted else math.nan for s in found])


def _tiers(truth: str, grouping: Any, folds: int, cache: str, seen: Sequence[Any], rows: Any) -> Any:
    """How much the fit that did not see each observation knew of it."""
    import numpy as np
    from accuracy_crossed import _fit, _observed, dealt, number_of_folds

    from estimators import intervals

    n = number_of_folds(grouping, folds)
    fold_of = dealt([grouping.key(o) for o in _observed(truth)], n)
    fold = np.array([fold_of[grouping.key(o)] for o in seen])
    tier = np.full(len(rows), "unseen", dtype="<U9")
    for i in range(n):
        known = _fit((truth, grouping.name, i, n, cache))["known"]
        tier[fold == i] = intervals.tiers_of(known, rows.take(fold == i))
    return tier


def _lines(
    title: str, rows: Any, error: Any, ends: Any, tier: Any, groups: Any, intervals: Any
) -> list[Sequence[str]]:
    import fit_speed
    import numpy as np

    trusted = (rows.trust != "low") & np.isfinite(error)
    held, what = intervals.inside(rows, error, ends), groups.kind(rows)
    missed = fit_speed.interval_score(rows, error, ends)
    device = groups.labels(rows, "hardware")
    backend = np.array([f"{s.backend} {s.lineage}" for s in rows.situations])
    found: list[Sequence[str]] = []
    for kind in groups.KINDS:
        cuts = [("all", what == kind)]
        cuts += [(f"tier {t}", (what == kind) & (tier == t)) for t in np.unique(tier)]
        cuts += [(b, (what == kind) & (backend == b)) for b in np.unique(backend)]
        for label, members in cuts:
            keep = trusted & members
            if keep.sum() < FEWEST:
                continue
            weight = groups.source_weights(rows.take(keep))
            share, weighted = held[keep].mean(), np.average(held[keep], weights=weight)
            wide = math.exp(float(np.average(ends[keep, 0] - ends[keep, 1], weights=weight)))
            n = len(set(device[keep]))
            found.append(
                (
                    kind,
                    title,
                    label,
                    f"{keep.sum():,}",
                    f"{n}",
                    f"{share:.1%}",
                    f"{weighted:.1%}",
                    f"{wide:.2f}",
                    f"{float(np.average(missed[keep], weights=weight)):.2f}",
                )
            )
    return found
