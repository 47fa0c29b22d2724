"""Tasks: what people ask of a model, as data (`planner/data/tasks.yaml`, compiled to JSON for a fast start).

`python -m planner.tasks` compiles after an edit; a test holds the two files equal.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from planner.errors import UnknownName

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of use. Lengths in tokens, times in seconds; `slowness` in log-odds of quality per doubling of
    a turn beyond `good_turn_s`; `quality` weighs the kinds of evidence and sums to 1."""

    name: str
    summary: str
    context: int
    prompt: int
    cached: int
    output: int
    min_tps: float
    max_ttft_s: float
    good_turn_s: float
    slowness: float
    quality: tuple[tuple[str, float], ...]
    modalities: tuple[str, ...] = ()


@cache
def load() -> dict[str, Task]:
    """All tasks by name, in the order of the file."""
    raw = json.loads((DATA / "tasks.json").read_text(encoding="utf-8"))
    return {name: _task(name, fields) for name, fields in raw.items()}


def get(name: str) -> Task:
    """The task of this name; UnknownName lists the others."""
    found = load().get(name.strip().lower())
    if found is None:
        raise UnknownName(f"no task is called `{name[:40]}`", f"choose one of {', '.join(load())}")
    return found


def _task(name: str, fields: dict[str, Any]) -> Task:
    weights = tuple(sorted(fields.pop("quality").items()))
    return Task(name=name, quality=weights, modalities=tuple(fields.pop("modalities", ())), **fields)


def compiled() -> str:
    """The JSON text that `tasks.json` must hold: the YAML's content."""
    import yaml

    source = yaml.safe_load((DATA / "tasks.yaml").read_text(encoding="utf-8"))
    return json.dumps(source, indent=1) + "\n"


if __name__ == "__main__":
    (DATA / "tasks.json").write_text(compiled(), encoding="utf-8")
