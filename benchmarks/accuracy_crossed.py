"""Cross-validation for `benchmarks/accuracy.py`: every row predicted by constants that were fitted without it."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

Scores = dict[str, list[Any]]


def _shuffled(line: int) -> str:
    """A label by which rows are dealt to folds at random, the same ones every time."""
    return hashlib.md5(str(line).encode(), usedforsecurity=False).hexdigest()


def _device(o: Any) -> str:
    from estimators.observation import main_device

    d = o.observation.deployment
    device = main_device(d.machine, d.backend)
    return device.id if device else d.machine.name


@dataclass(frozen=True)
class Grouping:
    """One way to leave rows out: `key` of an observed row, and how `fit_speed` calls it."""

    name: str
    key: Callable[[Any], str]
    fitted_as: str


GROUPINGS = (
    Grouping("row", lambda o: _shuffled(o.record.line), "random"),
    Grouping("hardware", _device, "hardware"),
    Grouping("model", lambda o: o.observation.deployment.model.base, "model"),
    Grouping("source", lambda o: o.observation.source, "source"),
)


def dealt(keys: Sequence[str], folds: int) -> dict[str, int]:
    """The fold of each group: the largest first, each to the fold with the fewest rows."""
    counts, load = Counter(keys), [0] * folds
    found = {}
    for key, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        found[key] = load.index(min(load))
        load[found[key]] += n
    return found


def comparable(observed: Any) -> bool:
    """Rows that calibration may learn from: weights on the accelerators, no speculation, nobody queued."""
    import fit_speed

    if observed.observation.source == "localmaxxing" and observed.ask.metric == "ttft_ms":
        return False
    return not (fit_speed.EXCLUDED & set(observed.ask.flags)) and not fit_speed._queued(observed.ask)


@contextmanager
def calibrated(fitted: dict[str, Any]) -> Iterator[None]:
    """Predict with these fitted effects instead of the shipped ones, and know only what was fitted."""
    from estimators import efficiency, estimate, phases

    shipped_load, shipped = efficiency.load, efficiency.load()
    held = efficiency.Efficiency(fitted["latents"], shipped.intervals, shipped.provenance | fitted["known"])
    for module in (efficiency, estimate, phases):
        module.load = lambda *_: held  # type: ignore
    try:
        yield
    finally:
        for module in (efficiency, estimate, phases):
            module.load = shipped_load  # type: ignore


@cache
def _observed(truth: str) -> list[Any]:
    from planner.observations import observe

    return observe(Path(truth) / "speed.csv", speculative=True)


def _served(truth: str, name: str, left_out: set[str]) -> list[Any]:
    """Servers under load that a fit without these devices or models may learn from."""
    import served_throughput

    from estimators.observation import main_device

    def label(o: Any) -> str:
        d = o.deployment
        device = main_device(d.machine, d.backend)
        return {"hardware": device.id if device else "", "model": d.model.base}.get(name, o.source)

    return [o for o in served_throughput.observations(Path(truth)) if label(o) not in left_out]


def _fit(job: tuple[str, str, int, int, str]) -> dict[str, Any]:
    """The calibration of all rows but those of one fold, kept in the cache."""
    truth, name, fold, folds, folder = job
    path = Path(folder) / f"{name}-{fold}of{folds}.json"
    if path.exists():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    from estimators import calibration, intervals, observation

    key = next(g.key for g in GROUPINGS if g.name == name)
    everything = _observed(truth)
    fold_of = dealt([key(o) for o in everything], folds)
    kept = [o.observation for o in everything if fold_of[key(o)] != fold and comparable(o)]
    table, _ = observation.rows(kept + _served(truth, name, {k for k, f in fold_of.items() if f == fold}))
    latents = calibration.compact(calibration.fit(table))
    fitted = {"latents": latents, "known": intervals.knowledge(table)}
    path.write_text(json.dumps(fitted), encoding="utf-8")
    return fitted


def _answers(job: tuple[str, str, int, int, str]) -> dict[int, Any]:
    """Predictions of one fold's rows, by line, from a fit of the others."""
    from planner import predict, pricing

    truth, name, fold, folds, _ = job
    start, fitted = time.perf_counter(), _fit(job)
    key = next(g.key for g in GROUPINGS if g.name == name)
    everything = _observed(truth)
    fold_of = dealt([key(o) for o in everything], folds)
    with calibrated(fitted):
        found = {
            o.record.line: predict.price_ask(o.ask, pricing.price)
            for o in everything
            if fold_of[key(o)] == fold
        }
    print(f"without fold {fold} of {name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return found


def number_of_folds(grouping: Grouping, folds: int) -> int:
    """How many folds: as asked, or (0) as many as the calibration's own."""
    import fit_speed

    return folds or fit_speed.GROUPINGS[grouping.fitted_as]


def speed(truth: Path, folds: int, cache_folder: Path, jobs: int, only: Sequence[str] = ()) -> Scores:
    """Scores of each grouping: every speed row predicted by a fit that saw no row of its group. `folds` 0:
    as many as the calibration's own."""
    from planner import predict, pricing, rows, scores

    cache_folder.mkdir(parents=True, exist_ok=True)
    chosen = [g for g in GROUPINGS if not only or g.name in only]
    number = {g.name: number_of_folds(g, folds) for g in chosen}
    todo = [
        (str(truth), g.name, i, number[g.name], str(cache_folder))
        for g in chosen
        for i in range(number[g.name])
    ]
    _observed(str(truth))
    with ProcessPoolExecutor(jobs) as pool:
        answers = dict(zip(todo, pool.map(_answers, todo), strict=True))
    file = rows.read(truth / "speed.csv")
    seen = {o.record.line for o in _observed(str(truth))}
    rest = {
        r.line: predict.price_ask(rows.ask(r, file.layout), pricing.price)
        for r in file.records
        if r.line not in seen
    }
    found: Scores = {}
    for g in chosen:
        known = dict(rest)
        for job in todo:
            if job[1] == g.name:
                known |= answers[job]
        found[g.name] = scores.score(file, [known[r.line] for r in file.records])
    return found


#: Which residuals the intervals of each way of leaving servers out come from.
TIER_OF = {"row": "seen", "model": "model", "hardware": "device", "source": "device"}


@cache
def _servers(truth: str) -> dict[str, dict[tuple[str, int, str], tuple[float, float, float]]]:
    """Predicted / measured and the factors of its ends, by (file, line, metric), of every way of leaving servers
    under load out of a fit of the serving constants, and of what their intervals are learnt from."""
    import fit_serving
    import numpy as np

    from estimators import serving_fit

    fitted, _ = fit_serving.observations(Path(truth))
    places = fit_serving.places(Path(truth))
    devices, sources = (np.array([x[k] for x in fitted.labels]) for k in ("device", "source"))
    models = fit_serving.models_of(fitted)
    groups = {"row": fitted.configuration, "model": models, "hardware": devices, "source": sources}
    errors = {
        name: serving_fit.cross_validate(fitted, group, 10 if name == "row" else None)
        for name, group in groups.items()
    }
    learnt = fit_serving.learnt(fitted, *(errors[name] for name in ("row", "model", "hardware")))
    found: dict[str, dict[tuple[str, int, str], tuple[float, float, float]]] = {}
    for name, group in groups.items():
        ends = fit_serving.nested(fitted, learnt, TIER_OF[name], group)
        held = found[name] = {}
        for position, (metric, error) in enumerate(zip(("ttft", "tpot"), errors[name], strict=True)):
            for i, (kind, line) in enumerate(places):
                if not np.isnan(error[i]):
                    fast, slow = (float(x) for x in ends[position, i])
                    held[kind, line, f"{metric}_ms"] = float(np.exp(error[i])), fast, slow
    return found


def serving(truth: Path, shipped: Sequence[Any]) -> Scores:
    """Scores of serving.csv under serving constants fitted anew without the configuration, the model or the
    device. Rows without a fit of their own (engines that share the closed form) keep the shipped one."""
    if not (truth / "serving.csv").exists():
        return {}
    found = _servers(str(truth))
    ways = ("row", "model", "hardware")
    return {w: [_again(s, found[w].get(("serving", s.line, s.metric))) for s in shipped] for w in ways}


def queued(truth: Path, crossed: Scores) -> Scores:
    """Scores of speed.csv with its bursts and closed loops under serving constants fitted anew."""
    if not (truth / "serving.csv").exists():
        return crossed
    found = _servers(str(truth))
    return {
        way: [_again(s, found.get(way, {}).get(("speed", s.line, s.metric))) for s in rows]
        for way, rows in crossed.items()
    }


def _again(score: Any, ratio: tuple[float, float, float] | None) -> Any:
    """A score with another prediction: predicted / measured and the factors of its ends."""
    if ratio is None or not ratio[0] > 0:
        return score
    best = score.measured * ratio[0]
    return replace(score, predicted=best, low=best * ratio[1], high=best * ratio[2])


#: Figures of memory that are sums over tensors or cells: no constant is fitted to them.
EXACT = ("weights_gib", "kv_gib", "file_gb", "kv_tokens")


def memory(shipped: Sequence[Any]) -> list[Any]:
    """Scores of memory.csv with what engines take besides tensors fitted anew without the row's model: per
    engine, backend and figure the median of measured minus predicted over the other models is added, and the
    interval's ends leave as many of their measured / predicted outside as those of speed do where a model was never
    seen."""
    from estimators.intervals import TAIL
    from planner import scores

    groups: dict[tuple[str, ...], list[Any]] = defaultdict(list)
    for s in shipped:
        fitted = "" if s.metric in EXACT else s.backend
        groups[s.engine, s.metric, fitted].append(s)
    found = []
    for (_, metric, _), members in groups.items():
        for model in sorted({s.model for s in members}):
            others = [s for s in members if s.model != model and s.predicted and s.trust != "low"]
            for s in (s for s in members if s.model == model):
                if not s.predicted or len(others) < 8 or "speculative" in s.flags:
                    found.append(s)
                    continue
                moved = (
                    0.0
                    if metric in EXACT
                    else scores.quantile([o.measured - o.predicted for o in others], 0.5)
                )
                best = max(s.predicted + moved, 0.1 * s.predicted)
                ratios = [o.measured / max(o.predicted + moved, 0.1 * o.predicted) for o in others]
                low, high = (scores.quantile(ratios, q) for q in (TAIL["model"], 1 - TAIL["model"]))
                found.append(
                    replace(s, predicted=best, low=best * min(low, 0.998), high=best * max(high, 1.002))
                )
    return sorted(found, key=lambda s: s.line)
