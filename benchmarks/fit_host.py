"""Fits `estimators/data/host.json`: what a host reaches beside an accelerator, with cross-validated intervals.

    LLM_PLAN_TRUTH=DIR python benchmarks/fit_host.py           prints the table by machine
    LLM_PLAN_TRUTH=DIR python benchmarks/fit_host.py --write   and writes the values

Run it after `fit_speed.py --write`: its values are relative to the calibrated rates of processors and
accelerators alone. Rows with speculative decoding are left out; a coordinate descent on a Cauchy loss of
log(predicted / measured), rows weighted by trust and by the inverse root of the size of their experiment.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import truth_folder

from estimators import folds, host
from planner import pricing, rows
from planner.asks import Ask, Refusal

TRUST = {"high": 1.0, "medium": 0.7, "low": 0.2}
SCALE = 0.25  # log residual beyond which a row loses weight
#: Lowest, first and highest value tried, in the order of `host.NAMES`. Calibrated shares of a CPU's bandwidth are an
#: average over processors that reaches 0.88 for dense weights: 1.13 times that is all of it.
RANGES = (
    (0.15, 0.8, 1.13), (0.0, 0.5, 1.0), (1e-5, 2e-4, 1e-3), (0.3, 0.75, 0.95), (0.1, 0.8, 3.0), (0.3, 1.0, 4.0),
)  # fmt: skip
SECONDS = ("ttft_ms", "tpot_ms")
Values = dict[str, list[float]]


@dataclass(frozen=True)
class Seen:
    """One measured row of a split deployment."""

    ask: Ask
    value: float
    source: str
    reference: str
    weight: float

    @property
    def group(self) -> str:
        return host.group(self.ask.deployment.engine)

    @property
    def machine(self) -> str:
        """Accelerator and host: what a fold leaves out."""
        held = self.ask.deployment.machine
        return f"{held.devices[0].id} + {held.host.id if held.host else '?'}"

    @property
    def kind(self) -> str:
        if self.ask.metric in ("decode_tps", "tpot_ms"):
            return "decode"
        return "prefill" if self.ask.metric in ("prefill_tps", "ttft_ms") else "batch"


def observe(folder: Path) -> list[Seen]:
    """The rows of `speed.csv` whose model is partly on a host."""
    trust = {r["source"]: r["trust"] for r in csv.DictReader((folder / "sources.csv").open(encoding="utf-8"))}
    file, found = rows.read(folder / "speed.csv"), []
    for record in file.records:
        asked = rows.ask(record, file.layout)
        if isinstance(asked, Refusal) or "speculative" in asked.flags or asked.deployment.backend == "cpu":
            continue
        placed = asked.deployment.placement
        if placed.n_cpu_expert_layers <= 0 and placed.n_gpu_layers is None:
            continue
        row = record.fields
        reference = f"{row['source_ref'].split(' id ')[0]} {asked.metric}"
        found.append(Seen(asked, float(row["value"]), row["source"], reference, TRUST[trust[row["source"]]]))
    size: dict[str, int] = {}
    for s in found:
        size[s.reference] = size.get(s.reference, 0) + 1
    return [Seen(s.ask, s.value, s.source, s.reference, s.weight * size[s.reference] ** -0.5) for s in found]


def errors(seen: list[Seen], values: Values) -> np.ndarray:
    """log(predicted / measured) as rates under these values."""
    host.rates = lambda engine: host.HostRates(*values[host.group(engine)])  # type: ignore[assignment]
    found = []
    for s in seen:
        predicted = pricing.phases(s.ask.deployment).printed(s.ask.metric, s.ask.deployment.workload, "best")
        ratio = s.value / predicted if s.ask.metric in SECONDS else predicted / s.value
        found.append(np.log(ratio))
    return np.array(found)


def loss(seen: list[Seen], values: Values) -> float:
    weight = np.array([s.weight for s in seen])
    return float(np.sum(weight * np.log1p((errors(seen, values) / SCALE) ** 2)))


def fit(seen: list[Seen], group: str) -> list[float]:
    """The values of a group of engines by coordinate descent."""
    values: Values = {group: [first for _, first, _ in RANGES]}
    best = loss(seen, values)
    for step in (1.4, 1.2, 1.08):
        for k, (low, _, high) in enumerate(RANGES):
            improved = True
            while improved:
                improved = False
                for factor in (step, 1.0 / step):
                    trial = values[group].copy()
                    trial[k] = min(max(max(trial[k], 0.02) * factor, low), high)
                    new = loss(seen, {group: trial})
                    if new < best - 1e-6:
                        best, values, improved = new, {group: trial}, True
                        break
    return values[group]


def cross_validate(seen: list[Seen]) -> np.ndarray:
    """log(predicted / measured) of each row from a fit without its machine."""
    found = np.full(len(seen), np.nan)
    for name in sorted({s.machine for s in seen}):
        for group in sorted({s.group for s in seen if s.machine == name}):
            held = [i for i, s in enumerate(seen) if s.machine == name and s.group == group]
            rest = [s for s in seen if s.machine != name and s.group == group]
            found[held] = errors([seen[i] for i in held], {group: fit(rest, group)})
    return found


def intervals(seen: list[Seen], error: np.ndarray) -> dict[str, dict[str, dict[str, float]]]:
    """Factors on seconds that span 90% of cross-validated residuals, by phase, host stated or not."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for label, flag in (("stated", False), ("assumed", True)):
        table[label] = {}
        for kind in folds.KINDS:
            keep = np.array([s.kind == kind and (flag or "assumed-host" not in s.ask.flags) for s in seen])
            weight = np.array([s.weight for s in seen])[keep]
            slow, fast = (folds.quantile(error[keep], weight, q) for q in (0.95, 0.05))
            table[label][kind] = {
                "slow": round(float(np.exp(max(slow, 0.1))), 3),
                "fast": round(float(np.exp(min(fast, -0.1))), 3),
                "rows": int(keep.sum()),
            }
    return table


def report(seen: list[Seen], fitted: np.ndarray, held: np.ndarray) -> None:
    """Median and 90th percentile of the absolute error by machine and phase, in sample and held out."""
    names = sorted({(s.group, s.machine, s.kind) for s in seen})
    names += [(g, "all", k) for g in sorted({s.group for s in seen}) for k in folds.KINDS]
    for group, machine, kind in names:
        keep = np.array([s.group == group and s.kind == kind and machine in (s.machine, "all") for s in seen])
        if keep.any():
            sizes = (np.abs(np.expm1(e[keep])) for e in (fitted, held))
            cells = [f"{np.median(a):6.0%} {np.quantile(a, 0.9):6.0%}" for a in sizes]
            print(f"{group:14s}{machine:52s}{kind:8s}{keep.sum():4d}  fitted {cells[0]}  held out {cells[1]}")


def main() -> None:
    asked = truth_folder.parsed(truth_folder.parser(__doc__, write="write the values"))
    seen = observe(asked.truth)
    groups = sorted({s.group for s in seen})
    values = {g: fit([s for s in seen if s.group == g], g) for g in groups}
    fitted, held = errors(seen, values), cross_validate(seen)
    report(seen, fitted, held)
    print(values)
    if asked.write:
        table = {
            g: {n: _entry(seen, fitted, g, v) for n, v in zip(host.NAMES, values[g], strict=True)}
            for g in groups
        }
        text = json.dumps({"rates": table, "intervals": intervals(seen, held)}, indent=1)
        host.DATA.write_text(text + "\n", encoding="utf-8")


def _entry(seen: list[Seen], error: np.ndarray, group: str, value: float) -> dict[str, object]:
    members = np.array([s.group == group for s in seen])
    return {
        "value": float(f"{value:.3g}"),
        "rows": int(members.sum()),
        "spread": round(float(np.median(np.abs(error[members]))), 3),
        "sources": sorted({s.source for s in seen if s.group == group}),
    }


if __name__ == "__main__":
    main()
