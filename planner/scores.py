"""How far predictions were from measurements: one score per measured figure, and statistics over groups of
them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from planner import labels, rows
from planner.asks import Ask
from planner.predict import Priced

#: What each dimension of `--by` reads from a record.
DIMENSIONS = (
    "engine",
    "hardware",
    "metric",
    "source",
    "model",
    "quant",
    "family",
    "flag",
    "backend",
    "trust",
)

#: Families of rows as the accuracy targets name them, with (median, 90th percentile, share predicted).
TARGETS: dict[str, tuple[float, float, float]] = {
    "single-stream decode": (0.08, 0.25, 0.97),
    "prefill": (0.12, 0.40, 0.95),
    "static batch and saturated throughput": (0.15, 0.45, 0.90),
    "serving TPOT": (0.10, 0.35, 0.90),
    "serving TTFT": (0.25, 0.80, 0.90),
    "memory in use": (0.03, 0.10, 0.95),
}

#: The same where the device was never seen in fitting.
UNSEEN_TARGETS: dict[str, tuple[float, float, float]] = {
    "single-stream decode": (0.12, 0.35, 0.95),
    "prefill": (0.18, 0.60, 0.95),
}


@dataclass(frozen=True, slots=True)
class Score:
    """One measured figure beside its prediction (None: not predicted, for `reason`)."""

    line: int
    id: str
    source: str
    trust: str
    hardware: str
    engine: str
    backend: str
    model: str
    quant: str
    metric: str
    family: str
    flags: tuple[str, ...]
    measured: float
    predicted: float | None
    low: float | None
    high: float | None
    reason: str = ""
    rounding: float = 0.0  # half a unit of the last digit printed

    @property
    def error(self) -> float | None:
        """Signed relative error: 0.1 is 10% too much."""
        return None if self.predicted is None else self.predicted / self.measured - 1

    @property
    def covered(self) -> bool | None:
        if self.predicted is None or self.low is None or self.high is None:
            return None
        return self.low <= self.measured + self.rounding and self.measured - self.rounding <= self.high


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of a group. Shares and errors are fractions; None where nothing was predicted."""

    n: int
    predicted: int
    share: float
    median: float | None
    p90: float | None
    bias: float | None
    coverage: float | None
    n_sources: int = 1


def family(kind: rows.Layout, metric: str, ask_client: str, n_sequences: int) -> str:
    """The family of rows whose target a figure counts towards."""
    if kind == "memory":
        return "memory in use"
    if kind == "llamacpp":
        return "llama.cpp memory"
    if kind in ("boundary", "tensors"):
        return "largest batch" if kind == "boundary" else "tensors of files"
    if kind == "serving":
        return "serving TTFT" if metric == "ttft_ms" else "serving TPOT"
    served = n_sequences > 1 and ask_client != "static"
    if metric == "ttft_ms":
        return "serving TTFT" if served else "prefill"
    if metric == "prefill_tps":
        return "prefill"
    if metric == "tpot_ms":
        return "serving TPOT" if served else _decode_family(n_sequences)
    if metric == "decode_tps":
        return _decode_family(n_sequences)
    return "static batch and saturated throughput"


def _decode_family(n_sequences: int) -> str:
    return "single-stream decode" if n_sequences <= 1 else "static batch and saturated throughput"


def score(file: rows.File, priced: Sequence[Priced]) -> list[Score]:
    """One score per measured figure that is a positive number; blank figures are left out."""
    trust = labels.tables()["trust"]
    found = []
    for record, answer in zip(file.records, priced, strict=True):
        for column in rows.MEASURED[file.layout]:
            measured = labels.number(record.fields.get(column, ""))
            if measured is None or measured <= 0:
                continue
            found.append(_one(file.layout, record, answer, column, measured, trust))
    return found


def _one(
    kind: rows.Layout,
    record: rows.Record,
    answer: Priced,
    column: str,
    measured: float,
    trust: dict[str, str],
) -> Score:
    fields = record.fields
    metric = fields.get("metric") or column
    quantity = answer.quantities.get(column)
    ask = answer.ask
    client, sequences = "static", labels.count(fields.get("batch_or_concurrency", ""), 1)
    if isinstance(ask, Ask):
        client, sequences = ask.deployment.workload.client, ask.deployment.workload.n_sequences
    source = fields.get("source", "") or ("llama.cpp" if kind == "llamacpp" else "not stated")
    engine, backend = fields.get("engine", "") or "llama.cpp", fields.get("backend", "")
    if isinstance(ask, Ask):  # files spell them in more than one way
        engine, backend = ask.deployment.engine, ask.deployment.backend
    return Score(
        line=record.line,
        id=fields.get("id", ""),
        source=source,
        trust=trust.get(source, "medium"),
        hardware=fields.get("hardware_canonical", "") or "not stated",
        engine=engine,
        backend=backend,
        model=fields.get("model_canonical", "") or fields.get("model", "") or "not stated",
        quant=fields.get("quant") or fields.get("scheme") or fields.get("precision") or "not stated",
        metric=metric,
        family=family(kind, metric, client, sequences),
        flags=ask.flags if isinstance(ask, Ask) else (),
        measured=measured,
        predicted=quantity.best if quantity else None,
        low=quantity.low if quantity else None,
        high=quantity.high if quantity else None,
        reason=answer.reason,
        rounding=half_digit(fields[column]),
    )


def half_digit(text: str) -> float:
    """Half a unit of the last decimal printed: `4.58` is 4.575 to 4.585; a whole number is itself."""
    decimals = text.strip().partition(".")[2]
    return 0.5 * 10.0 ** -len(decimals) if decimals.isdigit() else 0.0


def weights(scores: Sequence[Score]) -> list[float]:
    """Weight of each score: a source with n figures counts as sqrt(n), shared evenly by its figures, so
    that one large benchmark does not drown the rest."""
    counts = Counter(s.source for s in scores)
    return [1 / math.sqrt(counts[s.source]) for s in scores]


def quantile(values: Sequence[float], share: float, weight: Sequence[float] | None = None) -> float:
    """Weighted quantile: the smallest value below or at which at least `share` of the weight lies."""
    order = sorted(range(len(values)), key=values.__getitem__)
    each = [1.0] * len(values) if weight is None else list(weight)
    goal, so_far = share * sum(each) - 1e-12, 0.0
    for i in order:
        so_far += each[i]
        if so_far >= goal:
            return values[i]
    return values[order[-1]]


def statistics(scores: Sequence[Score], weighted: bool = False) -> Statistics:
    """Statistics of these scores, each counted once or by the weight of its source."""
    each = weights(scores) if weighted else [1.0] * len(scores)
    done = [(s, w) for s, w in zip(scores, each, strict=True) if s.error is not None]
    share = sum(w for _, w in done) / sum(each) if scores else 0.0
    n_sources = len({s.source for s in scores})
    if not done:
        return Statistics(len(scores), 0, share, None, None, None, None, n_sources)
    errors = [s.error or 0.0 for s, _ in done]
    weight = [w for _, w in done]
    held = [(s.covered, w) for s, w in done if s.covered is not None]
    coverage = sum(w for inside, w in held if inside) / sum(w for _, w in held) if held else None
    absolute = [abs(e) for e in errors]
    return Statistics(
        n=len(scores),
        predicted=len(done),
        share=share,
        median=quantile(absolute, 0.5, weight),
        p90=quantile(absolute, 0.9, weight),
        bias=quantile(errors, 0.5, weight),
        coverage=coverage,
        n_sources=n_sources,
    )


def grouped(scores: Iterable[Score], by: str) -> dict[str, list[Score]]:
    """Scores by one dimension, the largest group first. By `flag`, a score is in the group of each of its
    flags."""
    groups: dict[str, list[Score]] = defaultdict(list)
    for s in scores:
        keys = (s.flags or ("none",)) if by == "flag" else (str(getattr(s, by)) or "not stated",)
        for key in keys:
            groups[key].append(s)
    return dict(sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])))
