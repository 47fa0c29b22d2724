"""`plan verify --llama-bench PATH`: run the user's own llama-bench and hold its figures against the prediction."""

from __future__ import annotations

import json
import math
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from estimators.deployment import Backend
from planner.errors import EnvironmentFailed, UsageError
from planner.verification import Line, Verification

TIMEOUT_S = 3600.0
SPREAD = 0.15  # as in runner.meter
BACKENDS: dict[str, Backend] = {
    "cuda": "cuda",
    "rocm": "rocm",
    "hip": "rocm",
    "metal": "metal",
    "vulkan": "vulkan",
    "sycl": "sycl",
}


@dataclass(frozen=True)
class Test:
    """One row of `llama-bench -o json`: tokens per second of a prompt or of a generation."""

    n_prompt: int
    n_output: int
    depth: int
    tokens_per_s: float
    deviation: float
    n_threads: int | None
    n_gpu_layers: int | None
    backend: Backend
    kv_type_k: str
    kv_type_v: str


def run(program: Path, model: Path, n_prompt: int, n_output: int, threads: int) -> str:
    """The JSON that llama-bench prints. EnvironmentFailed when it cannot be run or fails."""
    command = [str(program), "-m", str(model), "-p", str(n_prompt), "-n", str(n_output), "-o", "json"]
    command += ["-t", str(threads)] if threads else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentFailed(
            f"`{program}` could not be run: {error}", "give the path of llama-bench"
        ) from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1][:160]
        raise EnvironmentFailed(f"`{program}` failed with code {done.returncode}: {said}", "run it by hand")
    return done.stdout


def parse(text: str) -> tuple[Test, ...]:
    """The tests of one run. UsageError when the text is not llama-bench's JSON."""
    try:
        rows = json.loads(text)
        found = tuple(_test(row) for row in rows)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(
            "this is not the output of llama-bench -o json", "llama-bench -m FILE -o json"
        ) from None
    if not found:
        raise UsageError("llama-bench ran no test", "llama-bench -m FILE -p 512 -n 128 -o json")
    return found


def _test(row: dict[str, Any]) -> Test:
    backends = str(row.get("backends", row.get("backend", ""))).lower()
    backend: Backend = next((b for word, b in BACKENDS.items() if word in backends), "cpu")
    layers = row.get("n_gpu_layers")
    rate = float(row["avg_ts"])
    if not (rate > 0 and math.isfinite(rate)):
        raise ValueError
    return Test(
        int(row["n_prompt"]), int(row["n_gen"]), int(row.get("n_depth", 0)), rate, float(row.get("stddev_ts", 0.0)),
        int(row["n_threads"]) if row.get("n_threads") else None,
        None if layers is None or not 0 <= int(layers) < 99 else int(layers),  # -1: as many as fit
        "cpu" if layers == 0 else backend, str(row.get("type_k", "f16")), str(row.get("type_v", "f16")),
    )  # fmt: skip


def verification(program: Path, model: Path, n_prompt: int, n_output: int, threads: int) -> Verification:
    """Run llama-bench on `model` and compare every test with the prediction for this machine."""
    tests = parse(run(program, model, n_prompt, n_output, threads))
    return compare(str(model), tests)


def compare(subject: str, tests: tuple[Test, ...]) -> Verification:
    """Tokens per second of each test against the prediction."""
    from dataclasses import replace

    from estimators.deployment import Placement, Workload
    from estimators.estimate import estimate
    from modeldb import readers
    from planner import calibrations, deploy, measure

    mine = calibrations.told()
    held, scheme = readers.read(subject, offline=True)
    machine = measure.this_machine()
    lines = []
    for t in tests:
        if t.n_prompt and t.n_output:
            continue  # both in one figure: neither phase alone
        wish = deploy.Wish(
            "llama.cpp", t.backend, t.depth + t.n_prompt + t.n_output, max(1, t.n_prompt), max(1, t.n_output),
            kv_type_k=t.kv_type_k, kv_type_v=t.kv_type_v, n_gpu_layers=t.n_gpu_layers, n_threads=t.n_threads,
        )  # fmt: skip
        d = deploy.deployment(held, scheme, machine, wish)
        work = Workload(max(1, t.n_prompt), max(1, t.n_output), t.depth)
        placed = Placement(n_gpu_layers=0 if t.backend == "cpu" else t.n_gpu_layers)
        found = estimate(replace(d, workload=work, placement=placed), mine)
        rate = found.prefill_tokens_per_s if t.n_output == 0 else found.decode_tokens_per_s
        name = f"prompt of {t.n_prompt}" if t.n_output == 0 else f"generation of {t.n_output}"
        lines.append(Line(f"{name} at {t.depth}" if t.depth else name, "tok/s", rate, t.tokens_per_s, False))
    shares = [t.deviation / t.tokens_per_s for t in tests]
    busy = tuple(f"{s:.0%} deviation between repetitions" for s in shares if s > SPREAD)
    return Verification(subject, "llama-bench", tuple(lines), busy)
