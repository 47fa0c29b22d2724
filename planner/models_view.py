"""`plan models`: the catalogue as a list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from planner import columns, stock, tasks, units

if TYPE_CHECKING:
    from modeldb.model import Model
    from planner.tasks import Task


def rows(task: str | None, max_size: str | None, licences: tuple[str, ...]) -> list[dict[str, Any]]:
    """One dictionary per model: by family, or by the low end of its quality for `task`. Parameters are
    counts."""
    from estimators.walk import load_table
    from modeldb import catalogue

    chosen = tasks.get(task) if task is not None else None
    most = units.parse_parameters(max_size, "--max-size") if max_size is not None else None
    allowed = tuple(x.lower() for x in licences)
    table = load_table()
    first: dict[str, int] = {}
    for (model_id, _), position in table.position.items():
        first.setdefault(model_id, position)
    found: list[dict[str, Any]] = []
    for model in catalogue.load().models:
        if model.id not in first or (chosen and not stock.suits(model, chosen.modalities)):
            continue
        total = float(table.walk.total_params[first[model.id]])
        active = float(table.walk.active_params[first[model.id]])
        if (most is not None and total > most) or (licences and not stock.licensed(model, allowed)):
            continue
        found.append(_row(model, total, active, chosen))
    if chosen:
        found.sort(key=lambda r: (-r["quality"]["low"], r["id"]))
    return found


def _row(model: Model, total: float, active: float, task: Task | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": model.id,
        "hf_id": model.hf_id,
        "family": model.family,
        "modality": model.modality,
        "parameters": total,
        "active_parameters": active,
        "max_context": model.max_context,
        "licence": model.licence,
        "released": model.release_date,
        "n_scores": len(model.evidence),
    }
    if task:
        from estimators import quality

        rated = quality.rate(model.id, total, active, "F16", "f16", dict(task.quality))
        row["quality"] = {"low": rated.low, "best": rated.best, "high": rated.high, "origin": rated.origin}
    return row


def text(found: list[dict[str, Any]], person: bool) -> str:
    """A table, one line per model."""
    rated = bool(found) and "quality" in found[0]
    table = [
        ["model", "parameters", "active", "context", "released", "licence", *(["quality"] if rated else [])]
    ]
    for row in found:
        context = row["max_context"]
        table.append(
            [
                row["id"],
                units.format_parameters(row["parameters"]), units.format_parameters(row["active_parameters"]),
                units.format_tokens(context) if context else "-", row["released"][:7] or "-",
                row["licence"] or "-",
                *([_quality(row["quality"])] if rated else []),
            ]
        )  # fmt: skip
    return columns.aligned(table, person)


def _quality(q: dict[str, Any]) -> str:
    return f"{'~' if q['origin'] == 'assumed' else ''}{q['best']:.0f} ({q['low']:.0f}-{q['high']:.0f})"
