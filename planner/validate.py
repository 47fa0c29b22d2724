"""`plan validate`: predictions beside measurements; error, bias and interval coverage by group."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from planner import rows, scores
from planner.errors import UsageError
from planner.scores import Score, Statistics


@dataclass(frozen=True)
class Group:
    """One group: its dimension and name, and its statistics."""

    by: str
    name: str
    statistics: Statistics


@dataclass(frozen=True)
class Report:
    """What `validate_file` found.

    `overall` counts each figure once; `weighted` gives a source of n figures the weight sqrt(n). `targeted`
    are families (source-weighted, sources of high and medium trust, rows without speculation) beside the
    published targets.
    """

    path: str
    layout: rows.Layout
    overall: Statistics
    weighted: Statistics
    targeted: tuple[Group, ...]
    groups: tuple[Group, ...]
    worst: tuple[Score, ...]
    scores: tuple[Score, ...] = ()


def validate_file(
    path: str | Path,
    by: Sequence[str] = ("engine", "metric"),
    worst: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Predict every row of `path` and compare with what it measured.

    `by` names dimensions (engine, hardware, metric, source, model, quant, family, flag, backend, trust);
    `worst` asks for that many of the largest errors.

    Raises:
        UsageError: an unknown dimension, or no measured figure in the file.
    """
    from planner import predict

    check_dimensions(by)
    file = rows.read(path)
    return report(str(path), file, scores.score(file, predict.price(file, progress)), by, worst)


def check_dimensions(by: Sequence[str]) -> None:
    """Raise UsageError for a dimension that does not exist."""
    for name in by:
        if name not in scores.DIMENSIONS:
            raise UsageError(
                f"cannot group by `{name}`: choose among {', '.join(scores.DIMENSIONS)}",
                "plan validate FILE --by engine,metric",
            )


def report(path: str, file: rows.File, found: Sequence[Score], by: Sequence[str], worst: int = 0) -> Report:
    """The report over scores that exist already."""
    if not found:
        raise UsageError(
            f"{path} holds no measured figure to compare with", "plan predict prices rows without figures"
        )
    groups = [
        Group(dimension, name, scores.statistics(members))
        for dimension in by
        for name, members in scores.grouped(found, dimension).items()
    ]
    trusted = [s for s in found if s.trust != "low" and "speculative" not in s.flags]
    targeted = [
        Group("family", name, scores.statistics(members, weighted=True))
        for name, members in scores.grouped(trusted, "family").items()
    ]
    ranked = sorted((s for s in found if s.error is not None), key=lambda s: -_badness(s))
    return Report(
        path,
        file.layout,
        scores.statistics(found),
        scores.statistics(found, weighted=True),
        tuple(targeted),
        tuple(groups),
        tuple(ranked[:worst]),
        tuple(found),
    )


def _badness(score: Score) -> float:
    """How wrong, whichever way: half as much and twice as much are equally bad."""
    predicted = max(score.predicted or 0.0, 1e-12)
    return max(predicted / score.measured, score.measured / predicted)


HEADINGS = ("n", "predicted", "median", "90th pct", "bias", "in interval")


def cells(s: Statistics) -> tuple[str, ...]:
    """A row of statistics under HEADINGS."""
    return (
        f"{s.n:,}",
        f"{s.share:.1%}",
        percent(s.median),
        percent(s.p90),
        percent(s.bias, signed=True),
        percent(s.coverage),
    )


def percent(value: float | None, signed: bool = False) -> str:
    """A fraction as percent, or a dash."""
    if value is None:
        return "-"
    return f"{value:+.1%}" if signed else f"{value:.1%}"


def _tables(report: Report) -> list[tuple[str, list[tuple[str, ...]]]]:
    """(title, rows) of every table; the first cell of a row is the group's name."""
    overall = [
        ("every figure once", *cells(report.overall)),
        ("a source of n figures as sqrt(n)", *cells(report.weighted)),
    ]
    targeted = [(g.name, *cells(g.statistics), _target(g.name)) for g in report.targeted]
    tables = [("all", overall), ("families, source-weighted, trust high and medium", targeted)]
    for dimension in dict.fromkeys(g.by for g in report.groups):
        members = [g for g in report.groups if g.by == dimension]
        tables.append((f"by {dimension}", [(g.name, *cells(g.statistics)) for g in members]))
    return tables


def _target(name: str) -> str:
    if name not in scores.TARGETS:
        return ""
    median, p90, share = scores.TARGETS[name]
    return f"{median:.0%} / {p90:.0%} / {share:.0%}"


def _headings(title: str) -> tuple[str, ...]:
    target = ("target: median / 90th / share",) if title.startswith("families") else ()
    return (title, *HEADINGS, *target)


def text(report: Report) -> str:
    """Aligned tables for a terminal."""
    parts = []
    for title, body in _tables(report):
        table = [_headings(title), *body]
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        lines = [
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in table
        ]
        parts.append("\n".join(lines))
    if report.worst:
        parts.append("\n".join(["worst first", *map(_worst_line, report.worst)]))
    return "\n\n".join(parts) + "\n"


def _worst_line(s: Score) -> str:
    return (
        f"{s.id or f'line {s.line}'}: predicted {s.predicted:.4g}, measured {s.measured:.4g} "
        f"({percent(s.error, signed=True)}) {s.metric} | {s.hardware} | {s.engine} | {s.model} | {s.quant} "
        f"| {s.source}" + (f" | {', '.join(s.flags)}" if s.flags else "")
    )


def markdown(report: Report) -> str:
    """The same tables in Markdown."""
    parts = []
    for title, body in _tables(report):
        parts.append(markdown_table(_headings(title), body))
    if report.worst:
        parts.append("\n".join(["Worst first:", "", *(f"- {_worst_line(s)}" for s in report.worst)]))
    return "\n\n".join(parts) + "\n"


def markdown_table(headings: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [
        "| " + " | ".join(headings) + " |",
        "|" + "|".join(["---", *["---:"] * (len(headings) - 1)]) + "|",
    ]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in body]
    return "\n".join(lines)


def to_json(report: Report) -> str:
    """Everything but the single scores, as JSON; shares and errors are fractions."""
    document = {
        "schema_version": 1,
        "file": report.path,
        "layout": report.layout,
        "overall": asdict(report.overall),
        "source_weighted": asdict(report.weighted),
        "families": [
            {"name": g.name, "target": scores.TARGETS.get(g.name), **asdict(g.statistics)}
            for g in report.targeted
        ],
        "groups": [{"by": g.by, "name": g.name, **asdict(g.statistics)} for g in report.groups],
        "worst": [asdict(s) for s in report.worst],
    }
    return json.dumps(document, indent=2, sort_keys=False) + "\n"
