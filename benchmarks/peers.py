"""Scores other planners and ours on the same measured rows, refusals counted.

    python benchmarks/peers.py --truth DIR [--env ENV] [--cache CACHE] [--jobs 2] [--out docs/peers.md]

The peers are installed from PyPI into a virtual environment of their own (ENV, a temporary folder by
default) and run there as their users run them: llmfit's binary, shown the row's device through the tools
that it asks (`nvidia-smi`, `rocm-smi`) or, for unified memory, through a hardware profile; whichllm
through its own estimator and device table (its command needs the network). A third peer is the rule of
thumb 0.7 x bandwidth / bytes read per token. Our own predictions stand there thrice: by the shipped
calibration, which was fitted to these rows, by fits without the row, and by fits without its device (those
of `benchmarks/accuracy.py`; CACHE keeps them). Rows: single-stream decode of GGUF files on one accelerator,
in memory, without speculation.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import datetime
import json
import stat
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import truth_folder

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

PACKAGES = ("llmfit", "whichllm")
THUMB = 0.7  # share of peak bandwidth, as planners commonly assume


@dataclass(frozen=True)
class Case:
    """One measured row and what a peer may be told about it."""

    score: Any  # planner.scores.Score of our prediction
    ask: Any
    walk: Any


def cases(truth: Path) -> list[Case]:
    """The rows that the peers claim to cover."""
    from estimators.deployed_walk import corrected, known_walk
    from planner import labels, predict, rows, scores

    file = rows.read(truth / "speed.csv")
    wanted = []
    for record in file.records:
        ask = rows.ask(record, "speed")
        if not hasattr(ask, "deployment") or ask.metric != "decode_tps":
            continue
        d = ask.deployment
        apart = {"speculative", "offloaded", "spilled"} & set(ask.flags)
        alone = d.workload.n_sequences == 1 and len(d.machine.devices) == 1 and d.backend != "cpu"
        if alone and not apart and labels.container(d.engine) == "gguf":
            wanted.append(record)
    part = replace(file, records=tuple(wanted))
    priced = predict.price(part)
    found = []
    for score, answer in zip(scores.score(part, priced), priced, strict=True):
        d = answer.ask.deployment
        found.append(
            Case(score, answer.ask, corrected(known_walk(d.model, d.scheme), d.settings.weights_bytes))
        )
    return found


def thumb(case: Case) -> float | None:
    """0.7 x bandwidth / bytes: the weights that one token touches, no cache, no overhead."""
    device, w = case.ask.deployment.machine.devices[0], case.walk
    share = w.experts_per_token / w.n_experts if w.n_experts else 0.0
    read = (
        w.mixer_bytes + w.dense_bytes + w.shared_bytes + w.head_bytes + w.other_bytes + w.expert_bytes * share
    )
    return THUMB * device.bandwidth_bytes_per_s / read if device.bandwidth_bytes_per_s else None


def install(env: Path) -> Path:
    """The environment of the peers, with their packages. Returns its bin folder."""
    bin = env / ("Scripts" if os.name == "nt" else "bin")
    if not (bin / "llmfit").exists():
        venv.create(env, with_pip=True)
        subprocess.run([bin / "python", "-m", "pip", "install", "-q", *PACKAGES], check=True)
    return bin


NVIDIA = """#!/bin/sh
case "$*" in
  *addressing_mode*) echo "None, {mib}, {mib}, {name}";;
  *) exit 1;;
esac
"""
AMD = """#!/bin/sh
case "$*" in
  *showmeminfo*) echo "GPU[0]\t\t: VRAM Total Memory (B): {bytes}";;
  *showproductname*) echo "GPU[0]\t\t: Card Series: \t\t{name}";;
esac
"""


class Llmfit:
    """llmfit's `plan` command, which sees the device of each row."""

    def __init__(self, bin: Path, folder: Path) -> None:
        self.binary, self.folder = bin / "llmfit", folder
        self.known: dict[tuple[str, ...], float | None] = {}

    def __call__(self, case: Case) -> float | None:
        d = case.ask.deployment
        device, context = d.machine.devices[0], max(128, d.settings.context_tokens)
        key = (device.id, d.model.hf_id, d.scheme.mix or d.scheme.id, str(context))
        if key not in self.known:
            self.known[key] = self._run(device, d, context)
        return self.known[key]

    def _run(self, device: Any, d: Any, context: int) -> float | None:
        extra, tools = self._shown(device)
        if tools is None and not extra:
            return None
        quant = (d.scheme.mix or d.scheme.id).split("+")[0]
        command = [
            self.binary,
            *extra,
            "--json",
            "plan",
            d.model.hf_id,
            "--quant",
            quant,
            "--context",
            str(context),
        ]
        path = f"{tools}{os.pathsep}{os.environ['PATH']}" if tools else os.environ["PATH"]
        done = subprocess.run(
            command, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            return None
        current = json.loads(done.stdout).get("current") or {}
        return current.get("estimated_tps") or None

    def _shown(self, device: Any) -> tuple[list[str], Path | None]:
        """Flags, and a folder of tools that show this device."""
        vendor = device.vendor.lower()
        if device.unified_memory and device.bandwidth_bytes_per_s:
            return ["--profile", str(self._profile(device))], None
        if vendor not in ("nvidia", "amd") or not device.memory_bytes:
            return [], None
        tools = self.folder / device.id
        tools.mkdir(exist_ok=True)
        template, tool = (NVIDIA, "nvidia-smi") if vendor == "nvidia" else (AMD, "rocm-smi")
        name = device.name if vendor != "nvidia" else f"NVIDIA {device.name.removeprefix('NVIDIA ')}"
        script = tools / tool
        script.write_text(
            template.format(mib=device.memory_bytes >> 20, bytes=device.memory_bytes, name=name),
            encoding="utf-8",
        )
        script.chmod(script.stat().st_mode | stat.S_IEXEC)
        return [], tools

    def _profile(self, device: Any) -> Path:
        size = (device.memory_bytes or max(device.memory_options_bytes or (128 << 30,))) / 2**30
        rate = device.bandwidth_bytes_per_s / 1e9
        path = self.folder / f"{device.id}.json"
        hardware = {
            "total_ram_gb": size, "unified_memory": True,
            "gpu_memory_bandwidth_gbps": rate, "ddr_bandwidth_gbps": rate,
        }  # fmt: skip
        match = {"gpu_name_contains": device.name}
        profile = {"schema_version": 1, "name": device.id, "hardware": hardware, "match": match}
        path.write_text(json.dumps(profile), encoding="utf-8")
        return path


WHICHLLM = """
import json, sys
from whichllm.engine.performance import estimate_tok_per_sec
from whichllm.hardware.gpu_simulator import create_synthetic_gpu
from whichllm.models.types import GGUFVariant, ModelInfo
devices = {}
for line in sys.stdin:
    case = json.loads(line)
    try:
        if case["gpu"] not in devices:
            devices[case["gpu"]] = create_synthetic_gpu(case["gpu"], case["vram_gb"])
        model = ModelInfo(id=case["model"], family_id="", name=case["model"], parameter_count=case["params"],
                          parameter_count_active=case["active"], architecture=case["architecture"],
                          is_moe=case["moe"])
        variant = GGUFVariant(case["model"] + ".gguf", case["quant"], case["bytes"])
        print(json.dumps(estimate_tok_per_sec(model, variant, devices[case["gpu"]], "full_gpu") or None))
    except Exception:
        print("null")
"""


def whichllm(bin: Path, found: Sequence[Case]) -> list[float | None]:
    """whichllm's estimates, from its own device table, told the file's size and the parameter counts."""
    lines = []
    for case in found:
        d, w = case.ask.deployment, case.walk
        device = d.machine.devices[0]
        size = (device.memory_bytes or max(device.memory_options_bytes or (0,))) / 2**30
        lines.append(
            json.dumps(
                {
                    "gpu": device.name, "vram_gb": size or None, "model": d.model.hf_id or d.model.id,
                    "params": int(w.total_params), "active": int(w.active_params) if w.n_experts else None,
                    "architecture": d.model.architecture, "moe": bool(w.n_experts),
                    "quant": (d.scheme.mix or d.scheme.id).split("+")[0],
                    "bytes": int(w.total_bytes - w.tower_bytes),
                }
            )
        )  # fmt: skip
    done = subprocess.run(
        [bin / "python", "-c", WHICHLLM], input="\n".join(lines), capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


INTRODUCTION = """Generated by `benchmarks/peers.py` on {today}: single-stream decode of GGUF files on
one accelerator, {n:,} measured rows. {versions} An error is |predicted / measured -
1|; a refusal is a row without a prediction. llmfit ships part of the rows of two
sources (localmaxxing, llmfit-community) as data. Our shipped calibration was fitted to
these rows; the lines *row left out* and *device left out* are predictions of fits that
saw neither the row nor, in the latter, any row of its device."""

OURS = {"row": "llm-plan, row left out", "hardware": "llm-plan, device left out"}


def held_out(
    found: Sequence[Case], truth: Path, folds: int, cache: Path, jobs: int
) -> dict[str, list[float | None]]:
    """Our predictions of the same rows from fits without them, and without their devices."""
    import accuracy_crossed

    scored = accuracy_crossed.speed(truth, folds, cache, jobs, only=tuple(OURS))
    by_line = {name: {s.line: s.predicted for s in scores} for name, scores in scored.items()}
    return {title: [by_line[name].get(c.score.line) for c in found] for name, title in OURS.items()}


def page(found: Sequence[Case], answers: dict[str, list[float | None]], versions: str) -> str:
    """docs/peers.md."""
    from planner import scores, validate

    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    parts = ["# Beside other planners", INTRODUCTION.format(today=today, n=len(found), versions=versions)]
    groups = {"all rows": lambda s: True, "trust high and medium": lambda s: s.trust != "low"}
    groups |= {
        title: (lambda s, b=backend: s.backend == b)
        for title, backend in (("CUDA", "cuda"), ("ROCm", "rocm"), ("Vulkan", "vulkan"), ("Metal", "metal"))
    }
    headings = ("planner", "n", "predicted", "median", "90th pct", "bias", "within 2x")
    for title, keep in groups.items():
        body = []
        for name, values in answers.items():
            here = [
                replace(c.score, predicted=value, low=None, high=None)
                for c, value in zip(found, values, strict=True)
                if keep(c.score)
            ]
            if not here:
                continue
            s = scores.statistics(here)
            near = [0.5 <= x.predicted / x.measured <= 2 for x in here if x.predicted]
            within = validate.percent(sum(near) / len(near)) if near else "-"
            body.append((name, *validate.cells(s)[:5], within))
        if body:
            parts += [f"## {title}", validate.markdown_table(headings, body)]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = truth_folder.parser(__doc__)
    parser.add_argument("--env", type=Path, default=None, help="environment of the peers (made if missing)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "peers.md")
    parser.add_argument("--folds", type=int, default=0, help="folds of our own; 0: as the calibration")
    parser.add_argument("--cache", type=Path, default=None, help="keeps our fits between runs")
    parser.add_argument("--jobs", type=int, default=1, help="fits at once")
    options = truth_folder.parsed(parser, arguments)
    with tempfile.TemporaryDirectory(prefix="llm-plan-peers-") as scratch:
        bin = install(options.env or Path(scratch) / "env")
        found = cases(options.truth)
        llmfit = Llmfit(bin, Path(scratch))
        answers: dict[str, list[float | None]] = {
            "llm-plan, shipped": [c.score.predicted for c in found],
            **held_out(
                found,
                options.truth,
                options.folds,
                options.cache or Path(scratch) / "fits",
                options.jobs,
            ),
            "0.7 x bandwidth / bytes": [thumb(c) for c in found],
            "llmfit": [llmfit(c) for c in found],
            "whichllm (its estimator)": whichllm(bin, found),
        }
        listed = subprocess.run(
            [bin / "python", "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True
        )
        packages = {p["name"]: p["version"] for p in json.loads(listed.stdout)}
    versions = ", ".join(f"{name} {packages[name]}" for name in PACKAGES if name in packages) + "."
    options.out.write_text(page(found, answers, versions), encoding="utf-8")
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
