"""Fits `estimators/data/efficiency.yaml` to public measurements, with cross-validated errors and intervals.

    LLM_PLAN_TRUTH=DIR python benchmarks/fit_speed.py          prints the tables
    LLM_PLAN_TRUTH=DIR python benchmarks/fit_speed.py --quick  leaves models and sources out of it
    LLM_PLAN_TRUTH=DIR python benchmarks/fit_speed.py --write  and writes the calibration (then compiles it)

DIR holds `speed.csv` and `sources.csv`. Rows whose rate is not comparable are left out: speculative
decoding, weights that spilled into host memory by an unknown share, times to first token of a queue.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # many small solves: threads only wait for each other

import csv
import datetime
import sys
from pathlib import Path
from typing import Any

import numpy as np

from estimators import calibration, folds, observation
from estimators.calibration import Rows
from planner import rows as files
from planner.asks import Refusal

EXCLUDED = frozenset({"speculative", "spilled", "offloaded"})
SINGLE = ("decode", "prefill")
TABLES = (
    ("single-stream decode", "decode", False),
    ("prefill", "prefill", False),
    ("static batch and whole runs", "batch", False),
    ("saturated", "batch", True),
)


def observations(folder: Path) -> tuple[list[observation.Observation], np.ndarray, int]:
    """What `speed.csv` measured and can be compared; which are saturated; how many rows there are."""
    trust = {r["source"]: r["trust"] for r in csv.DictReader((folder / "sources.csv").open(encoding="utf-8"))}
    found, saturated, n = [], [], 0
    for record in files.read(folder / "speed.csv").records:
        n += 1
        asked = files.ask(record, "speed")
        if isinstance(asked, Refusal) or EXCLUDED & set(asked.flags) or _queued(asked):
            continue
        value = float(record.fields["value"]) * (asked.n_devices if asked.per_device else 1)
        source = record.fields["source"]
        if source == "localmaxxing" and asked.metric == "ttft_ms":
            continue  # includes a request queue and a cold start
        found.append(observation.Observation(asked.deployment, asked.metric, value, source, trust[source]))
        saturated.append(asked.deployment.workload.client == "burst")
    return found, np.array(saturated), n


def _queued(asked: Any) -> bool:
    """Latencies of requests that waited for others: the serving model's business."""
    work = asked.deployment.workload
    if work.client == "burst":
        return asked.metric in ("tpot_ms", "ttft_ms")
    return work.client in ("closed", "poisson") and work.n_sequences > 1


def line(rows: Rows, error: np.ndarray, keep: np.ndarray) -> str:
    """Rows, weighted median and 90th percentile of the absolute error, and bias."""
    keep = keep & (rows.trust != "low") & np.isfinite(error)
    part = rows.take(keep)
    weight, absolute = folds.source_weights(part), np.abs(np.expm1(error[keep]))
    median, tail = folds.quantile(absolute, weight, 0.5), folds.quantile(absolute, weight, 0.9)
    bias = folds.quantile(error[keep], weight, 0.5)
    return f"{keep.sum():5d} rows  median {median:6.1%}  90th {tail:6.1%}  bias {bias:+6.1%}"


def report(title: str, rows: Rows, error: np.ndarray, saturated: np.ndarray) -> None:
    print(title)
    what = folds.kind(rows)
    for name, kind, full in TABLES:
        keep = (what == kind) & (saturated == full)
        if keep.any():
            print(f"  {name:28s} {line(rows, error, keep)}")


def by_device(rows: Rows, error: np.ndarray) -> None:
    """The median error of each device, and their median and 90th percentile: each device has one vote."""
    devices, what = folds.labels(rows, "hardware"), folds.kind(rows)
    for kind in SINGLE:
        keep = (what == kind) & (rows.trust != "low")
        medians = [np.median(np.abs(np.expm1(error[keep & (devices == d)]))) for d in set(devices[keep])]
        middle, tail = np.median(medians), np.quantile(medians, 0.9)
        count = f"{len(medians):3d} devices, one vote each"
        print(f"  {kind:8s} {count}  median {middle:.1%}  90th {tail:.1%}")


def coverage(title: str, rows: Rows, error: np.ndarray, table: dict[str, Any] | None, tier: Any) -> None:
    """How often the 90% interval held, of every kind, backend and lineage with at least 100 rows. Without a
    table, the widths of one half of the devices are tried on the other."""
    trusted = (rows.trust != "low") & np.isfinite(error)
    if table is not None:
        held = folds.covered(rows, error, table, tier)
    else:
        held, half = np.zeros(len(rows), dtype=bool), _halves(rows)
        for side in (False, True):
            learn, test = np.nonzero(half == side)[0], np.nonzero(half != side)[0]
            own = folds.intervals(rows.take(learn), [error[learn]], error[learn], tier[learn] == "kin")
            held[test] = folds.covered(rows.take(test), error[test], own, tier[test])
    what = folds.kind(rows)
    group = np.array([f"{k} {s.backend} {s.lineage}" for k, s in zip(what, rows.situations, strict=True)])
    print(f"coverage by {title}")
    for name in (*folds.KINDS, *np.unique(group[trusted])):
        keep = trusted & ((what == name) | (group == name))
        if keep.sum() >= 100:
            weight = folds.source_weights(rows.take(keep))
            share = float(np.average(held[keep], weights=weight))
            print(
                f"  {name:24s} {keep.sum():5d} rows  {held[keep].mean():5.1%} of rows, {share:5.1%} weighted"
            )


def _halves(rows: Rows) -> np.ndarray:
    """The devices in two halves, dealt at random."""
    devices, inverse = np.unique(folds.labels(rows, "hardware"), return_inverse=True)
    return (np.random.default_rng(1).permutation(len(devices)) % 2 == 1)[inverse]


def main() -> None:
    folder = Path(os.environ.get("LLM_PLAN_TRUTH", ""))
    if not os.environ.get("LLM_PLAN_TRUTH") or not (folder / "speed.csv").exists():
        sys.exit("set LLM_PLAN_TRUTH to the folder of speed.csv")
    seen_all, saturated, n = observations(folder)
    rows, kept = observation.rows(seen_all)
    saturated = saturated[kept]
    print(f"{n} rows, {len(seen_all)} comparable, {len(rows)} priced")
    for kind, (count, median, tail) in folds.noise_floor(rows).items():
        print(f"  repeats of one configuration, {kind}: {count} rows, median {median:.1%}, 90th {tail:.1%}")
    table = calibration.fit(rows)
    report("fitted", rows, np.log(calibration.predict(table, rows) / rows.value), saturated)
    errors = {}
    groupings = (("random", 6), ("hardware", 14), ("model", 8), ("source", 10))
    for by, n_folds in groupings[:2] if "--quick" in sys.argv else groupings:
        errors[by] = folds.cross_validate(rows, by, n_folds, n_processes=2)
        report(f"cross-validated by {by}", rows, errors[by], saturated)
        if by == "hardware":
            by_device(rows, errors[by])
    known = [errors[by] for by in ("random", "model") if by in errors]
    kin = folds.kin_left(rows, dict(groupings)["hardware"])
    intervals = folds.intervals(rows, known, errors["hardware"], kin)
    away = np.where(kin, "kin", "unseen")
    for by, error in errors.items():
        if by != "source":
            coverage(by, rows, error, intervals, away if by == "hardware" else np.full(len(rows), "seen"))
    coverage("hardware, widths from other devices", rows, errors["hardware"], None, away)
    if "--write" in sys.argv:
        write(rows, table, intervals)


def write(rows: Rows, table: dict[str, Any], intervals: dict[str, Any]) -> None:
    """Writes the YAML and compiles it."""
    import json

    import yaml

    from estimators import compile as compiling
    from estimators import efficiency

    known = sorted({f"{s.backend}|{s.lineage}|{s.device}" for s in rows.situations})
    raw = {
        "provenance": {
            "fitted": datetime.date.today().isoformat(),
            "rows": len(rows),
            "sources": sorted(set(rows.source.tolist())),
            "measured": known,
            "families": sorted({f"{s.backend}|{s.lineage}|{s.family}" for s in rows.situations}),
        },
        "intervals": intervals,
        "latents": table,
    }
    head = "# Written by benchmarks/fit_speed.py from public measurements. Do not edit.\n"
    text = yaml.safe_dump(raw, sort_keys=False, width=110, default_flow_style=None, allow_unicode=True)
    compiling.SOURCE.write_text(head + text, encoding="utf-8")
    compiled = json.dumps(compiling.compile_efficiency(), separators=(",", ":"), sort_keys=True)
    efficiency.COMPILED.write_text(compiled + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
