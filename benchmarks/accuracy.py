"""Measures the error of every prediction against public measurements, and writes it down.

    LLM_PLAN_TRUTH=DIR python benchmarks/accuracy.py            # in-sample only, minutes
    python benchmarks/accuracy.py --truth DIR --folds 5         # and grouped cross-validation
    python benchmarks/accuracy.py --truth DIR --folds 5 --cache CACHE --jobs 2

DIR holds speed.csv, memory.csv, serving.csv and llamacpp_memory.csv. Cross-validation leaves out groups
of devices, of models and of sources, fits the calibration to the rest, and predicts what was left out
through the same code as `plan predict`. Fits are kept in CACHE, so that an interrupted run goes on.
Writes docs/accuracy.md, docs/seed-table.md and docs/pictures/*.png; nothing in those files is typed by
hand.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

FILES = ("speed", "memory", "serving", "llamacpp_memory")


def _shuffled(line: int) -> str:
    """A label by which rows are dealt to folds at random, the same ones every time."""
    return hashlib.md5(str(line).encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Grouping:
    """One way to leave rows out: `key` of an observed row, and what it tells."""

    name: str
    key: Callable[[Any], str]
    tells: str


GROUPINGS = (
    Grouping("row", lambda o: _shuffled(o.record.line), "other rows of devices, models and sources seen"),
    Grouping("hardware", lambda o: o.observation.deployment.machine.name, "a device never seen"),
    Grouping("model", lambda o: o.observation.deployment.model.base, "a model never seen, on devices seen"),
    Grouping("source", lambda o: o.observation.source, "somebody else's measurements"),
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
    """Predict with these fitted effects instead of the shipped ones, and know only the devices fitted."""
    from estimators import efficiency, estimate, phases

    shipped_load, shipped = efficiency.load, efficiency.load()
    known = {name: fitted[name] for name in ("measured", "families")}
    held = efficiency.Efficiency(fitted["latents"], shipped.intervals, shipped.provenance | known)
    for module in (efficiency, estimate, phases):
        module.load = lambda *_: held  # type: ignore
    try:
        yield
    finally:
        for module in (efficiency, estimate, phases):
            module.load = shipped_load  # type: ignore


def _fit(job: tuple[str, str, int, int, str]) -> str:
    """Fits one fold (all rows but those of the fold) and keeps the effects. Returns the path."""
    truth, grouping, fold, folds, cache = job
    path = Path(cache) / f"{grouping}-{fold}of{folds}.json"
    if path.exists():
        return str(path)
    from estimators import calibration, observation
    from planner.observations import observe

    key = next(g.key for g in GROUPINGS if g.name == grouping)
    everything = list(observe(Path(truth) / "speed.csv", speculative=True))
    fold_of = dealt([key(o) for o in everything], folds)
    kept = [o for o in everything if fold_of[key(o)] != fold and comparable(o)]
    table, _ = observation.rows([o.observation for o in kept])
    start = time.perf_counter()
    latents = calibration.fit(table)
    labels = table.situations
    fitted = {
        "latents": calibration.compact(latents),
        "measured": sorted({f"{s.backend}|{s.lineage}|{s.device}" for s in labels}),
        "families": sorted({f"{s.backend}|{s.lineage}|{s.family}" for s in labels}),
    }
    path.write_text(json.dumps(fitted), encoding="utf-8")
    print(f"fitted without fold {fold} of {grouping} in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return str(path)


def cross_validate(truth: Path, folds: int, cache: Path, jobs: int) -> dict[str, list[Any]]:
    """Scores of each grouping: every speed row predicted by a fit that saw no row of its group."""
    from planner import predict, pricing, rows, scores
    from planner.observations import of_file

    cache.mkdir(parents=True, exist_ok=True)
    todo = [(str(truth), g.name, fold, folds, str(cache)) for g in GROUPINGS for fold in range(folds)]
    with ProcessPoolExecutor(jobs) as pool:
        paths = list(pool.map(_fit, todo))
    file = rows.read(truth / "speed.csv")
    observed = {o.record.line: o for o in of_file(file, speculative=True)}
    found: dict[str, list[Any]] = {}
    for grouping in GROUPINGS:
        answers: dict[int, Any] = {}
        fold_of = dealt([grouping.key(o) for o in observed.values()], folds)
        for fold in range(folds):
            path = paths[todo.index((str(truth), grouping.name, fold, folds, str(cache)))]
            with calibrated(json.loads(Path(path).read_text(encoding="utf-8"))):
                for line, row in observed.items():
                    if fold_of[grouping.key(row)] == fold:
                        answers[line] = predict.price_ask(row.ask, pricing.price)
        priced = [
            answers.get(r.line) or predict.price_ask(rows.ask(r, file.layout), pricing.price)
            for r in file.records
        ]
        found[grouping.name] = scores.score(file, priced)
    return found


def in_sample(truth: Path) -> dict[str, list[Any]]:
    """Scores of each file under the shipped calibration."""
    from planner import predict, rows, scores

    found = {}
    for name in FILES:
        if not (truth / f"{name}.csv").exists():
            continue
        file = rows.read(truth / f"{name}.csv")
        start = time.perf_counter()
        found[name] = scores.score(file, predict.price(file))
        print(f"{name}: {len(file.records)} rows in {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return found


def noise_floor(truth: Path) -> list[tuple[str, int, int, float, float]]:
    """How far measurements of one configuration lie from their median: per kind of repetition, the number of
    configurations, of rows, and the median and 90th percentile of the relative distance."""
    import statistics
    from collections import defaultdict

    from planner import scores
    from planner.observations import observe

    groups: dict[Any, list[Any]] = defaultdict(list)
    for o in observe(truth / "speed.csv"):
        d = o.observation.deployment
        set_to, work = d.settings, d.workload
        settings = (set_to.kv_type_k, set_to.kv_type_v, set_to.flash_attention, set_to.n_threads)
        what = (d.model.id, d.scheme.id, d.machine.name, len(d.machine.devices))
        groups[(what, d.engine, d.backend, d.placement, settings, work, o.ask.metric)].append(o.observation)
    table = []
    for name, wanted in (("any source and build", 1), ("two sources or more", 2)):
        members = [g for g in groups.values() if len(g) > 1 and len({o.source for o in g}) >= wanted]
        far = [abs(o.value / statistics.median(x.value for x in g) - 1) for g in members for o in g]
        if far:
            table.append((name, len(members), len(far), scores.quantile(far, 0.5), scores.quantile(far, 0.9)))
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    default = os.environ.get("LLM_PLAN_TRUTH")
    parser.add_argument("--truth", default=default, help="folder of the measurements")
    parser.add_argument("--folds", type=int, default=0, help="folds of each grouping; 0: in-sample only")
    parser.add_argument("--cache", type=Path, default=None, help="keeps fits between runs")
    parser.add_argument("--jobs", type=int, default=1, help="fits at once")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="where the pages go")
    options = parser.parse_args(arguments)
    if not options.truth or not (Path(options.truth) / "speed.csv").exists():
        parser.error("no measurements: give --truth DIR or set LLM_PLAN_TRUTH to a folder with speed.csv")
    import accuracy_pages as pages

    truth = Path(options.truth)
    cache = options.cache or Path(tempfile.mkdtemp(prefix="llm-plan-accuracy-"))
    shipped = in_sample(truth)
    crossed = cross_validate(truth, options.folds, cache, options.jobs) if options.folds else {}
    options.out.mkdir(parents=True, exist_ok=True)
    pages.write(options.out, shipped, crossed, options.folds, noise_floor(truth))
    print(f"wrote {options.out / 'accuracy.md'} and {options.out / 'seed-table.md'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
