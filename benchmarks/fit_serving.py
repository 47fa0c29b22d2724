"""Fits `estimators/data/serving.yaml` to public measurements under concurrency, with cross-validated errors.

    LLM_PLAN_TRUTH=DIR python benchmarks/fit_serving.py          prints the tables
    LLM_PLAN_TRUTH=DIR python benchmarks/fit_serving.py --write  and writes the calibration and its compiled form

DIR holds `serving.csv`. No row is left out but those that cannot be read as a deployment.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from estimators import serving, serving_fit
from estimators.serving_fit import Rows
from planner import rows as files
from planner.asks import Ask
from planner.pricing import serving_arguments

DATA = Path(__file__).parent.parent / "estimators" / "data"
HEADER = "# Written by benchmarks/fit_serving.py from public measurements. Do not edit.\n"
SOURCE = "aiconfigurator-silicon-sample (Apache-2.0): InferenceX runs and gap-analysis runs"
SAME_MODEL = {
    "deepseek-v3": "deepseek-r1",
    "deepseek-v3.1": "deepseek-r1",
}  # one architecture, one set of runs


def observations(path: Path) -> tuple[Rows, int]:
    """What `serving.csv` measured, and how many rows it has."""
    loads, labels, ttft, tpot, names = [], [], [], [], []
    records = files.read(path).records
    for record in records:
        asked = files.ask(record, "serving")
        if not isinstance(asked, Ask):
            continue
        given = serving_arguments(asked)
        loads.append(serving.load_of(**given))
        d = given["decode"]
        label = {
            **serving.labels_of(d, given["prefill"] is not None, given["workers"] is not None),
            "device": d.machine.devices[0].id,
        }
        labels.append(label)
        ttft.append(float(record.fields["ttft_ms"]) / 1e3)
        tpot.append(float(record.fields["tpot_ms"]) / 1e3)
        shape = (d.placement, given["prefill"] and given["prefill"].placement, d.workload.prompt_tokens)
        names.append(f"{sorted(label.items())}{shape}{d.workload.output_tokens}")
    first, each = np.array(ttft), np.array(tpot)
    weights = serving_fit.copies(first, each)
    return Rows(serving.stacked(loads), labels, first, each, np.array(names), weights), len(records)


def table(title: str, rows: Rows, errors: tuple[np.ndarray, np.ndarray]) -> str:
    """Median and 90th percentile of the absolute percentage error, and the bias, by mode and engine."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, labels in enumerate(rows.labels):
        for name in ("all", labels["mode"], f"{labels['mode']} {labels['engine']}"):
            groups[name].append(i)
    lines = [f"{title}", f"{'':24}{'n':>6}  TPOT median   p90  bias   TTFT median   p90  bias"]
    for name, at in sorted(groups.items()):
        cells = []
        for error in (errors[1][at], errors[0][at]):
            size = np.abs(np.expm1(error))
            cells.append(
                f"{np.median(size):11.1%} {np.quantile(size, 0.9):6.0%} {np.exp(np.median(error)):5.2f}"
            )
        lines.append(f"{name:24}{len(at):6}  {'   '.join(cells)}")
    return "\n".join(lines)


def noise_floor(rows: Rows) -> str:
    """Each measurement predicted by the median of the others of its configuration and concurrency, copies set apart."""
    groups: dict[str, set[tuple[float, float]]] = defaultdict(set)
    for i, labels in enumerate(rows.labels):
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


def coverage(rows: Rows, held: dict[str, Any], errors: tuple[np.ndarray, np.ndarray], kind: str) -> str:
    """Share of rows within their interval, by engine and mode."""
    from estimators.serving_rates import INTERVAL_GROUPS, label

    inside: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for i, labels in enumerate(rows.labels):
        for position, metric in enumerate(("ttft", "tpot")):
            groups = held[metric][kind]
            found = next(
                (groups[n] for by in INTERVAL_GROUPS if (n := label(labels, by)) in groups), groups["*"]
            )
            ratio = float(np.exp(-errors[position][i]))
            inside[labels["mode"] + " " + labels["engine"], metric].append(
                found["fast"] <= ratio <= found["slow"]
            )
    return "\n".join(f"  {g:20} {m}: {np.mean(v):.1%} of {len(v)}" for (g, m), v in sorted(inside.items()))


def main() -> None:
    """Prints the tables; with --write also writes the files."""
    rows, n = observations(Path(os.environ["LLM_PLAN_TRUTH"]) / "serving.csv")
    print(f"{len(rows)} of {n} rows\n{noise_floor(rows)}")
    unknowns, x = serving_fit.solve(rows)
    print(table("in sample", rows, serving_fit.predicted(rows, unknowns, x)))
    models = np.array([SAME_MODEL.get(x["model"], x["model"]) for x in rows.labels])
    by_configuration = serving_fit.cross_validate(rows, rows.configuration, 10)
    print(table("configurations left out (10 folds)", rows, by_configuration))
    by_model = serving_fit.cross_validate(rows, models)
    print(table("models left out", rows, by_model))
    for feature in ("device", "engine"):
        if "--quick" not in sys.argv:
            group = np.array([labels[feature] for labels in rows.labels])
            print(table(f"{feature}s left out", rows, serving_fit.cross_validate(rows, group)))
    held = serving_fit.intervals(rows, by_configuration, by_model)
    print(
        f"coverage of the 90% interval, configurations left out\n{coverage(rows, held, by_configuration, 'seen')}"
    )
    if "--write" in sys.argv:
        write(rows, serving_fit.tabulate(rows, unknowns, x), held)


def write(rows: Rows, latents: dict[str, Any], held: dict[str, Any]) -> None:
    """Writes the YAML and what predicting loads."""
    import yaml

    measured = sorted({f"{x['engine']}|{x['model']}|{x['family']}" for x in rows.labels})
    provenance = {
        "fitted": datetime.date.today().isoformat(),
        "rows": len(rows),
        "source": SOURCE,
        "measured": measured,
    }
    raw = {"provenance": provenance, "latents": latents, "intervals": held}
    text = yaml.safe_dump(raw, sort_keys=False, width=110, default_flow_style=None)
    (DATA / "serving.yaml").write_text(HEADER + text, encoding="utf-8")
    compiled = json.dumps(serving_fit.compact(raw), separators=(",", ":"), sort_keys=True)
    (DATA / "serving.json").write_text(compiled + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
