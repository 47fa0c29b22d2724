"""Fits `estimators/data/serving.yaml` to public measurements under concurrency, with cross-validated errors.

    LLM_PLAN_TRUTH=DIR python benchmarks/fit_serving.py          prints the tables
    LLM_PLAN_TRUTH=DIR python benchmarks/fit_serving.py --quick  without the sources and the engines left out
    LLM_PLAN_TRUTH=DIR python benchmarks/fit_serving.py --write  and writes the calibration and its compiled form

DIR holds `serving.csv`, `speed.csv` (its rows of bursts and closed loops; its batches are fitted beside them) and
`sources.csv`. No row is left out but those that cannot be read as a deployment and open streams of requests, whose
concurrency is itself predicted.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small solves: threads make them several times slower

import datetime
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import served_batches
import truth_folder

from estimators import serving, serving_fit, serving_intervals, serving_measurements
from estimators.deployment import Deployment
from estimators.serving_fit import Errors
from estimators.serving_measurements import Rows
from estimators.serving_rates import INTERVAL_GROUPS, label
from planner import rows as files
from planner.asks import Ask
from planner.pricing import SECONDS, serving_arguments

DATA = Path(__file__).parent.parent / "estimators" / "data"
HEADER = "# Written by benchmarks/fit_serving.py from public measurements. Do not edit.\n"
SOURCE = (
    "aiconfigurator-silicon-sample (Apache-2.0): InferenceX runs and gap-analysis runs; "
    "bursts and closed loops of gpustack-perf-lab and inferencex-token-position; beside them the batches of "
    "argonne-llm-inference-bench, trtllm-perf, qwen2.5-docs, qwen3-docs and others"
)
CLIENTS = ("burst", "closed")


def _asked(folder: Path) -> Iterator[tuple[str, Any, dict[str, Any] | None]]:
    """(file, record, arguments of `serving.load_of`) of every server under load in the two files."""
    for kind in ("serving", "speed"):
        for record in files.read(folder / f"{kind}.csv").records:
            if kind == "speed" and record.fields["metric"] not in SECONDS:
                continue
            asked = files.ask(record, kind)
            given = _given(asked, kind) if isinstance(asked, Ask) else None
            if given is not None or kind == "serving":
                yield kind, record, given


def places(folder: Path) -> list[tuple[str, int]]:
    """(file, line) of each row of `observations`."""
    return [(kind, record.line) for kind, record, given in _asked(folder) if given is not None]


def observations(folder: Path) -> tuple[Rows, int]:
    """What the two files measured of servers, in the order of `places`, then whole batches; and how many rows of
    servers they have."""
    loads, labels, ttft, tpot, names = [], [], [], [], []
    n = 0
    for kind, record, given in _asked(folder):
        n += 1
        if given is None:
            continue
        loads.append(serving.load_of(**given))
        d: Deployment = given["decode"]
        known = serving.speculation(given["may_draft"], given["drafts"])
        row = {
            **serving.labels_of(d, given["prefill"] is not None, given["workers"] is not None, known),
            "device": d.machine.devices[0].id,
            "source": record.fields["source"],
        }
        labels.append(row)
        first, each = _seconds(record.fields, kind)
        ttft.append(first)
        tpot.append(each)
        shape = (d.placement, given["prefill"] and given["prefill"].placement, d.workload.prompt_tokens)
        names.append(f"{sorted(row.items())}{shape}{d.workload.output_tokens}")
    firsts, others = np.array(ttft), np.array(tpot)
    weights = serving_measurements.copies(firsts, others)
    none = np.full(len(loads), np.nan)
    rows = Rows(serving.stacked(loads), labels, firsts, others, np.array(names), weights, none)
    return serving_measurements.joined(
        rows, served_batches.observations(folder, {x["source"] for x in labels})
    ), n


def _given(asked: Ask, kind: str) -> dict[str, Any] | None:
    """The arguments of `serving.load_of`; None for what is not a server under load."""
    if kind == "serving":
        return {**serving_arguments(asked), "drafts": False}
    d = asked.deployment
    if d.workload.client not in CLIENTS or not serving.applies(d):
        return None
    alone = {"decode": d, "prefill": None, "workers": 1, "prefill_workers": 1, "may_draft": False}
    return {**alone, "concurrency": d.workload.n_sequences, "drafts": "speculative" in asked.flags}


def _seconds(fields: Any, kind: str) -> tuple[float, float]:
    """(TTFT, TPOT); NaN for what a row does not print."""
    if kind == "serving":
        return float(fields["ttft_ms"]) / 1e3, float(fields["tpot_ms"]) / 1e3
    value = float(fields["value"]) / 1e3
    return (value, np.nan) if fields["metric"] == "ttft_ms" else (np.nan, value)


def table(title: str, rows: Rows, errors: Errors) -> str:
    """Median and 90th percentile of the absolute percentage error, and the bias, by mode, client and engine; first as
    the targets count: without speculation, a source of n rows with the weight sqrt(n)."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i in np.flatnonzero(rows.servers).tolist():
        labels = rows.labels[i]
        mode = labels["mode"] if "silicon" in labels["source"] else labels["source"]
        for name in ("all", mode, f"{mode} {labels['engine']}"):
            groups[name].append(i)
    lines = [title, f"{'':34}    n  TPOT median   p90  bias      n  TTFT median   p90  bias"]
    plain = rows.servers & np.array([labels["speculation"] != "on" for labels in rows.labels])
    sources = np.array([labels["source"] for labels in rows.labels])
    chosen = {"source-weighted": np.flatnonzero(plain), **{k: np.array(v) for k, v in sorted(groups.items())}}
    for name, at in chosen.items():
        cells = []
        for error in (errors[1][at], errors[0][at]):
            there = ~np.isnan(error)
            if not there.any():
                continue
            each = sources[at][there] if name == "source-weighted" else np.zeros(there.sum())
            _, inverse, count = np.unique(each, return_inverse=True, return_counts=True)
            middle, tail = _weighted(np.abs(np.expm1(error[there])), count[inverse] ** -0.5)
            bias = np.exp(np.median(error[there]))
            cells.append(f"{there.sum():6} {middle:11.1%} {tail:6.0%} {bias:5.2f}")
        lines.append(f"{name:33}{' '.join(cells)}")
    return "\n".join(lines)


def _weighted(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Median and 90th percentile."""
    order = np.argsort(values)
    below = np.cumsum(weights[order]) / weights.sum()
    middle, tail = (values[order][min(int(np.searchsorted(below, q)), len(values) - 1)] for q in (0.5, 0.9))
    return float(middle), float(tail)


def noise_floor(rows: Rows) -> str:
    """Each measurement predicted by the median of the others of its configuration and concurrency, copies set apart."""
    groups: dict[str, set[tuple[float, float]]] = defaultdict(set)
    for i, labels in enumerate(rows.labels):
        if np.isnan(rows.ttft_s[i]) or np.isnan(rows.tpot_s[i]):
            continue
        key = f"{labels['mode']}|{rows.configuration[i]}|{rows.load.n_users[i]}"
        groups[key].add((float(rows.ttft_s[i]), float(rows.tpot_s[i])))
    lines = ["noise floor: the same configuration measured again"]
    for mode in ("together", "apart"):
        for position, metric in enumerate(("TTFT", "TPOT")):
            errors = []
            for key, held in groups.items():
                values = np.array([pair[position] for pair in held])
                if key.startswith(mode) and len(values) > 1:
                    errors += [abs(np.median(np.delete(values, i)) / v - 1) for i, v in enumerate(values)]
            if errors:
                middle, tail = np.median(errors), np.quantile(errors, 0.9)
                lines.append(f"  {mode:9} {metric}: n {len(errors)}, median {middle:.1%}, p90 {tail:.0%}")
    return "\n".join(lines)


def models_of(rows: Rows) -> np.ndarray:
    """The model of each row, as its layers, width, structure and parameters: DeepSeek's V3 and R1, or Llama's 70B of
    three versions, are one model, which is not new while any of them is known."""
    w = rows.load.decode.walk
    params = w.mixer_params + w.dense_params + w.shared_params + w.expert_params
    return np.array(
        [f"{x['shape']} {x['structure']} {n:.2g}" for x, n in zip(rows.labels, params, strict=True)]
    )


def learnt(
    rows: Rows, seen: Errors, by_model: Errors, by_device: Errors
) -> dict[str, tuple[Errors, np.ndarray]]:
    """What each tier's intervals are learnt from: errors without the row's configuration, model or device, and who
    has a vote (a row, or a model on a device)."""
    pairs = np.char.add(np.char.add(models_of(rows), "|"), np.array([x["device"] for x in rows.labels]))
    single = np.array([str(i) for i in range(len(rows))])
    return {"seen": (seen, single), "model": (by_model, pairs), "device": (by_device, pairs)}


def nested(
    rows: Rows, tiers: dict[str, tuple[Errors, np.ndarray]], tier: str, group: np.ndarray
) -> np.ndarray:
    """(metric, row, end): fast and slow ends of this tier's intervals, learnt without the row's group (five parts of
    configurations; one model or device at a time)."""
    units, inverse = np.unique(group, return_inverse=True)
    n_parts = 5 if tier == "seen" else len(units)
    part = (np.random.default_rng(3).permutation(len(units)) % n_parts)[inverse]
    found = np.full((2, len(rows), 2), np.nan)
    for i in range(n_parts):
        held = serving_intervals.intervals(rows, {tier: tiers[tier]}, part != i)
        for at in np.flatnonzero(part == i).tolist():
            for position, metric in enumerate(("ttft", "tpot")):
                groups = held[metric][tier]
                names = [label(rows.labels[at], by) for by in INTERVAL_GROUPS]
                ends = groups[next((n for n in names if n in groups), "*")]
                found[position, at] = ends["fast"], ends["slow"]
    return found


def coverage(rows: Rows, ends: np.ndarray, errors: Errors, voters: np.ndarray) -> str:
    """Share of rows within their interval (`nested`), by engine and mode, rows counted once and, in brackets, with
    one vote for each voter; and the median width, high / low."""
    inside: dict[tuple[str, str], list[tuple[bool, str, float]]] = defaultdict(list)
    for i, labels in enumerate(rows.labels):
        for position, metric in enumerate(("ttft", "tpot")):
            if np.isnan(errors[position][i]):
                continue
            fast, slow = ends[position, i]
            within = fast <= float(np.exp(-errors[position][i])) <= slow
            for group in ("all", f"{labels['mode']} {labels['engine']}"):
                inside[group, metric].append((within, str(voters[i]), slow / fast))
    lines = []
    for (group, metric), found in sorted(inside.items()):
        by_voter: dict[str, list[bool]] = defaultdict(list)
        for within, voter, _ in found:
            by_voter[voter].append(within)
        votes = np.mean([np.mean(v) for v in by_voter.values()])
        share, wide = np.mean([w for w, _, _ in found]), np.median([w for _, _, w in found])
        lines.append(f"  {group:20} {metric}: {share:.1%} of {len(found)} ({votes:.1%}), high/low {wide:.1f}")
    return "\n".join(lines)


def main() -> None:
    """Prints the tables; with --write also writes the files."""
    asked = truth_folder.parsed(
        truth_folder.parser(
            __doc__, quick="skip the sources and engines left out", write="write the calibration"
        )
    )
    rows, n = observations(asked.truth)
    n_servers = int(rows.servers.sum())
    print(f"{n_servers} of {n} rows, beside {len(rows) - n_servers} batches\n{noise_floor(rows)}")
    unknowns, x = serving_fit.solve(rows)
    print(table("in sample", rows, serving_fit.predicted(rows, unknowns, x)))
    models, devices = models_of(rows), np.array([x["device"] for x in rows.labels])
    seen = serving_fit.cross_validate(rows, rows.configuration, 10)
    print(table("configurations left out (10 folds)", rows, seen))
    by_model = serving_fit.cross_validate(rows, models)
    print(table("models left out", rows, by_model))
    by_device = serving_fit.cross_validate(rows, devices)
    print(table("devices left out", rows, by_device))
    for feature in ("source", "engine"):
        if not asked.quick:
            group = np.array([labels[feature] for labels in rows.labels])
            print(table(f"{feature}s left out", rows, serving_fit.cross_validate(rows, group)))
    tiers = learnt(rows, seen, by_model, by_device)
    held = serving_intervals.intervals(rows, tiers)
    groups = {"seen": rows.configuration, "model": models, "device": devices}
    for tier, (errors, voters) in tiers.items():
        ends = nested(rows, tiers, tier, groups[tier])
        print(f"coverage of the 90% interval, tier {tier}, learnt from others")
        print(coverage(rows, ends, errors, voters))
    if asked.write:
        write(rows, serving_fit.tabulate(rows, unknowns, x), held)


def write(rows: Rows, latents: dict[str, Any], held: dict[str, Any]) -> None:
    """Writes the YAML and what predicting loads."""
    import yaml

    served = [rows.labels[i] for i in np.flatnonzero(rows.servers).tolist()]
    provenance = {
        "fitted": datetime.date.today().isoformat(),
        "rows": len(served),
        "batches": len(rows) - len(served),
        "source": SOURCE,
        "measured": sorted({f"{x['engine']}|{x['model']}|{x['family']}" for x in served}),
        "families": sorted({f"{x['engine']}|{x['family']}" for x in served}),
    }
    raw = {"provenance": provenance, "latents": latents, "intervals": held}
    text = yaml.safe_dump(raw, sort_keys=False, width=110, default_flow_style=None)
    (DATA / "serving.yaml").write_text(HEADER + text, encoding="utf-8")
    compiled = json.dumps(serving_fit.compact(raw), separators=(",", ":"), sort_keys=True)
    (DATA / "serving.json").write_text(compiled + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
