"""Rows of measurement files as observations: what calibration fits to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from estimators.observation import Observation
from planner import labels, rows
from planner.asks import Ask


@dataclass(frozen=True)
class Observed:
    """An observation with the row it comes from."""

    record: rows.Record
    ask: Ask
    observation: Observation


def observe(path: str | Path, speculative: bool = False) -> list[Observed]:
    """Every speed row of `path` with a positive value that can be expressed as a deployment.

    Rows with speculative decoding are left out unless asked for: their rate is not that of the deployment.
    """
    return list(of_file(rows.read(path), speculative))


def of_file(file: rows.File, speculative: bool = False) -> Iterable[Observed]:
    """The same over a file that is read already."""
    trust = labels.tables()["trust"]
    for record in file.records:
        value = labels.number(record.fields.get("value", ""))
        if value is None or value <= 0:
            continue
        ask = rows.ask(record, file.layout)
        if not isinstance(ask, Ask) or ("speculative" in ask.flags and not speculative):
            continue
        source = record.fields.get("source", "") or "not stated"
        if ask.per_device:
            value *= ask.n_devices
        found = Observation(ask.deployment, ask.metric, value, source, trust.get(source, "medium"))
        yield Observed(record, ask, found)
