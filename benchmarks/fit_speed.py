"""Fits `estimators/data/efficiency.yaml` to public measurements, with cross-validated errors and intervals.

    LLM_PLAN_TRUTH=DIR python benchmarks/fit_speed.py          prints the tables
    LLM_PLAN_TRUTH=DIR python benchmarks/fit_speed.py --quick  leaves models and sources out, and the intervals
    LLM_PLAN_TRUTH=DIR python benchmarks/fit_speed.py --write  and writes the calibration (then compiles it)

DIR holds `speed.csv`, `sources.csv` and `serving.csv` (`served_throughput`). Rows whose rate is not comparable are
left out: speculative decoding, weights that spilled into host memory by an unknown share, times to first token of a
queue.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # many small solves: threads only wait for each other

import csv
import datetime
from pathlib import Path
from typing import Any

import numpy as np
import served_throughput
import truth_folder

from estimators import calibration, folds, observation
from estimators import intervals as widths
from estimators.measurements import Rows
from estimators.tiers import LACKS
from planner import rows as files
from planner.asks import Refusal

EXCLUDED = frozenset({"speculative", "spilled", "offloaded"})
GROUPINGS = {"random": 6, "hardware": 14, "model": 8, "source": 10}  # ways to leave rows out, with folds
TABLES = (
    ("single-stream decode", "decode", False),
    ("prefill", "prefill", False),
    ("static batch and whole runs", "batch", False),
    ("saturated", "batch", True),
)


def observations(folder: Path) -> tuple[list[observation.Observation], np.ndarray, int]:
    """What was measured and can be compared: `speed.csv`, then servers under load (of low trust: in no table); which
    are saturated; how many rows `speed.csv` has."""
    with (folder / "sources.csv").open(encoding="utf-8") as file:
        trust = {r["source"]: r["trust"] for r in csv.DictReader(file)}
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
    served = served_throughput.observations(folder)
    return found + served, np.array(saturated + [False] * len(served)), n


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


def one_vote(rows: Rows, error: np.ndarray, by: str) -> None:
    """The median error of each device, model or source, and their median and 90th percentile: each has one
    vote, since the next one is one of those."""
    names, what = folds.labels(rows, by), folds.kind(rows)
    for kind in folds.KINDS:
        keep = (what == kind) & (rows.trust != "low") & np.isfinite(error)
        medians = [np.median(np.abs(np.expm1(error[keep & (names == d)]))) for d in set(names[keep])]
        middle, tail = np.median(medians), np.quantile(medians, 0.9)
        count = f"{len(medians):3d} of {by}, one vote each"
        print(f"  {kind:8s} {count}  median {middle:6.1%}  90th {tail:6.1%}")


def coverage(title: str, rows: Rows, error: np.ndarray, ends: np.ndarray, tier: np.ndarray) -> None:
    """How often the 90% interval held, how wide it was (high / low, geometric mean) and its score: of every kind,
    tier, and backend and lineage with at least 100 rows."""
    trusted = (rows.trust != "low") & np.isfinite(error)
    missed = interval_score(rows, error, ends)
    held, what = widths.inside(rows, error, ends), folds.kind(rows)
    device = folds.labels(rows, "hardware")
    group = np.array([f"{k} {s.backend} {s.lineage}" for k, s in zip(what, rows.situations, strict=True)])
    tiers = np.array([f"{k} {t}" for k, t in zip(what, tier, strict=True)])
    print(f"coverage by {title}")
    for label, names in ((what, folds.KINDS), (tiers, np.unique(tiers)), (group, np.unique(group))):
        for name in names:
            keep = trusted & (label == name)
            if keep.sum() < 100:
                continue
            weight = folds.source_weights(rows.take(keep))
            share = float(np.average(held[keep], weights=weight))
            wide = float(np.exp(np.average(ends[keep, 0] - ends[keep, 1], weights=weight)))
            few = len(set(device[keep]))
            note = f"  of {few} device{'s' * (few > 1)}" if few <= 2 else ""
            print(
                f"  {name:24s} {keep.sum():5d} rows  {held[keep].mean():5.1%} of rows, {share:5.1%} weighted, "
                f"high/low {wide:4.1f}, score {np.average(missed[keep], weights=weight):4.2f}{note}"
            )


def interval_score(rows: Rows, error: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Width plus 20 times the distance of a miss, in logs: least, on average, for the true 5% and 95%."""
    ratio = folds.seconds_ratio(rows, error)
    beyond = np.maximum(ratio - ends[:, 0], 0.0) + np.maximum(ends[:, 1] - ratio, 0.0)
    return np.asarray(ends[:, 0] - ends[:, 1] + 20.0 * beyond)


def main() -> None:
    options = truth_folder.parser(
        __doc__,
        quick="skip the models and sources left out, and the intervals",
        write="write the calibration",
    )
    asked = truth_folder.parsed(options)
    if asked.quick and asked.write:
        options.error(
            "--write needs every cross-validation: intervals are learnt from them; leave --quick out"
        )
    seen_all, saturated, n = observations(asked.truth)
    rows, kept = observation.rows(seen_all)
    saturated = saturated[kept]
    print(f"{n} rows, {len(seen_all)} comparable, {len(rows)} priced")
    for kind, (count, median, tail) in folds.noise_floor(rows).items():
        print(f"  repeats of one configuration, {kind}: {count} rows, median {median:.1%}, 90th {tail:.1%}")
    table = calibration.fit(rows)
    report("fitted", rows, np.log(calibration.predict(table, rows) / rows.value), saturated)
    groupings = {by: n for by, n in GROUPINGS.items() if not asked.quick or by in ("random", "hardware")}
    errors, known = {}, {}
    for by, n_folds in groupings.items():
        errors[by] = folds.cross_validate(rows, by, n_folds, n_processes=2)
        report(f"cross-validated by {by}", rows, errors[by], saturated)
        if by != "random":
            one_vote(rows, errors[by], by)
    if asked.quick:
        return
    for by, n_folds in groupings.items():
        known[by] = widths.left_out(rows, by, n_folds)
    intervals = widths.intervals(rows, errors, known)
    for by in groupings:
        ends = widths.nested(rows, errors, known, by)
        coverage(f"{by}, widths from others of these", rows, errors[by], ends, known[by])
    far = np.array([LACKS[t] == "device" for t in known["source"]])
    ends = widths.nested(rows, errors, known, "source", also="hardware")[far]
    title = "source, where no other source had the device, widths from other sources and devices"
    coverage(title, rows.take(far), errors["source"][far], ends, known["source"][far])
    if asked.write:
        write(rows, table, intervals)


def write(rows: Rows, table: dict[str, Any], intervals: dict[str, Any]) -> None:
    """Writes the YAML and compiles it."""
    import json

    import yaml

    from estimators import compile as compiling
    from estimators import efficiency

    raw = {
        "provenance": {
            "fitted": datetime.date.today().isoformat(),
            "rows": len(rows),
            "sources": sorted(set(rows.source.tolist())),
            **widths.knowledge(rows),
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
