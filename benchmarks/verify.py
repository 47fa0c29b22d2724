"""Predicted against measured with the bundled runner on this machine, and the fit behind the predictions.

    python benchmarks/verify.py --fit                 fits estimators/data/runner.json on FITTED
    python benchmarks/verify.py --page docs/verify.md publishes HELD, none of which was fitted

Weights are synthetic, so nothing is downloaded. The machine's own rates are measured in turn with the runs (a read of
memory before each few tokens, a product before each prompt), so that other load hits both alike; of times the lower
quartile is taken and of rates the upper one, for other load only ever slows down.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

FITTED = (
    "h2o-danube3-500m-chat:Q6_K", "qwen3-0.6b:Q8_0", "qwen3-0.6b:Q4_K_M", "tinyllama-1.1b-chat-v1.0:Q4_0",
    "deepseek-coder-1.3b-instruct:Q5_K_M", "smollm2-1.7b-instruct:F16", "qwen3-1.7b:Q4_K_M", "qwen3-1.7b:Q8_0",
    "gemma-2-2b-it:Q4_K_M", "falcon3-3b-instruct:Q4_0", "phi-3-mini-4k-instruct:Q4_K_M", "yi-6b:Q4_K_M",
    "qwen1.5-moe-a2.7b:Q4_K_M", "qwen1.5-moe-a2.7b:Q8_0",
)  # fmt: skip
HELD = (
    "qwen2.5-0.5b-instruct:Q8_0", "qwen2.5-0.5b-instruct:Q4_K_M", "gemma-3-1b-it:Q4_0",
    "llama-3.2-1b-instruct:Q4_K_M", "llama-3.2-1b-instruct:F16", "qwen2.5-1.5b-instruct:Q8_0",
    "llama-3.2-3b-instruct:Q4_K_M", "phi-4-mini-instruct:Q4_0", "qwen2.5-7b-instruct:Q4_K_M",
    "llama-3.1-8b-instruct:Q4_0",
)  # fmt: skip
DEPTHS = (256, 1536)
ROUNDS, TOKENS_PER_ROUND, PROMPTS = 12, 3, 5
FULL_BYTES = 5.5e9
TURNS_BYTES = 2.2e9  # whole models that run beside their sample


def pair(text: str) -> tuple[Any, Any]:
    from modeldb import catalogue, schemes

    name, scheme = text.split(":")
    return catalogue.load().resolve(name), schemes.get(scheme)


class Rates:
    """What the machine reaches, a sample at a time, as `plan measure` does it."""

    def __init__(self, threads: int) -> None:
        from runner.bandwidth import Reader

        self.threads, self.reader = threads, Reader(threads)
        self.reads: list[float] = []
        self.int8: list[float] = []
        self.fp32: list[float] = []

    def read(self) -> None:
        self.reads.append(self.reader.rate())

    def product(self) -> None:
        from runner.bandwidth import matmul_rate

        self.int8.append(matmul_rate("Q8_0", 4096, 512, self.threads, 1).median_flops)
        self.fp32.append(matmul_rate("F16", 4096, 512, self.threads, 1).median_flops)

    def machine(self) -> Any:
        from planner import measure

        machine = measure.this_machine()
        assert machine.host is not None
        host = dataclasses.replace(
            machine.host, bandwidth_bytes_per_s=float(np.percentile(self.reads, 75)), basis="measured",
            fp32_flops=float(np.percentile(self.fp32, 75)), int8_ops=float(np.percentile(self.int8, 75)),
        )  # fmt: skip
        return dataclasses.replace(machine, host=host)


def observe(text: str, threads: int) -> dict[str, Any]:
    """Medians of one pair, whole or (experts, or too large) sampled, with the rates of the same minutes."""
    from runner import engine as engines
    from runner import meter, sampled, synthetic

    model, scheme = pair(text)
    part = sampled.part_of(model, scheme)
    whole = part.head_bytes + sum(len(k.layers) * k.n_bytes for k in part.kinds)
    rates, watch = Rates(threads), meter.Watch()
    n_prompt = 512 if whole < 2.5e9 else 256
    out: dict[str, Any] = {
        "pair": text,
        "n_prompt": n_prompt,
        "weight_bytes": whole,
        "depths": DEPTHS,
        "tpot": [],
    }
    full = whole < FULL_BYTES
    if full:
        engine = engines.load(synthetic.weights(model, scheme), n_context=2048, n_threads=threads)
        sampled.fill_cache(engine)
        for depth in DEPTHS:
            times = []
            decode_once(engine, depth)
            for _ in range(ROUNDS):
                rates.read()
                times += [decode_once(engine, depth, i) for i in range(TOKENS_PER_ROUND)]
            out["tpot"].append(float(np.percentile(times, 25)))
            out.setdefault("raw", []).append(times)
        prompts = []
        prefill_once(engine, 32)
        for _ in range(PROMPTS):
            rates.product()
            prompts.append(prefill_once(engine, n_prompt))
        out["ttft"] = float(np.percentile(prompts, 25))
        out["raw"].append(prompts)
        engine.close()
        del engine
    if not full:
        sample = sampled.load(model, scheme, 2048, n_threads=threads)
        timed = []
        for depth in DEPTHS:
            rates.read()
            timed.append(sampled.decode(sample, depth, 2.5).seconds)
            rates.read()
        rates.product()
        first = sampled.prefill(sample, n_prompt, 8.0, 3)
        rates.product()
        sample.close()
        out |= {"tpot": timed, "ttft": first.seconds, "note": first.note}
    rates.reader.close()
    host = rates.machine().host
    out |= {
        "full": full, "threads": threads, "bandwidth": host.bandwidth_bytes_per_s, "int8": host.int8_ops,
        "fp32": host.fp32_flops, "rates": [rates.reads, rates.int8, rates.fp32],
        "remarks": watch.conditions().remarks(),
        "load": watch.conditions().load_average,
    }  # fmt: skip
    return out


def agreement(
    text: str, threads: int, n_prompt: int = 256, depth: int = 512, steps: int = 40
) -> dict[str, float]:
    """Sampled over full minus one, of a step and of a prompt: the whole model and the stack take turns step by step, so
    that other load hits both alike; the median over turns of the ratio within a turn."""
    from runner import engine as engines
    from runner import sampled, synthetic

    model, scheme = pair(text)
    full = engines.load(synthetic.weights(model, scheme), n_context=1024, n_threads=threads)
    sampled.fill_cache(full)
    sample = sampled.load(model, scheme, 1024, n_threads=threads)
    out = {}
    for name, rounds in (("step", steps), ("prompt", 9)):
        rows = []
        for i in range(rounds + 1):
            if name == "step":
                rows.append((decode_once(full, depth, i), sampled.decode_once(sample, depth, i)))
            else:
                rows.append((prefill_once(full, n_prompt), sampled.prefill_once(sample, n_prompt, 0)))
        times = np.array(rows[1:])
        out[name] = float(np.median(times[:, 1] / times[:, 0])) - 1
    sample.close()
    full.close()
    return out


def decode_once(engine: Any, depth: int, number: int = 0) -> float:
    """Seconds of a step of the whole model; steps of other `number` have other tokens."""
    from runner.sampled import STRIDE

    engine.n_tokens = depth
    started = time.perf_counter()
    engine.decode((1 + STRIDE * number) % engine.vocab_size)
    return time.perf_counter() - started


def prefill_once(engine: Any, n_tokens: int) -> float:
    engine.n_tokens = 0
    started = time.perf_counter()
    engine.prefill(np.arange(n_tokens) % 1000)
    return time.perf_counter() - started


# -- prediction ----------------------------------------------------------------------------------------------


def deployments(seen: dict[str, Any]) -> list[tuple[str, Any, float]]:
    """(phase, deployment, measured seconds) of an observation."""
    from estimators.deployment import Deployment, Settings, Workload
    from estimators.reference import ENGINE
    from planner import measure

    model, scheme = pair(seen["pair"])
    machine = measure.this_machine()
    assert machine.host is not None
    host = dataclasses.replace(
        machine.host, bandwidth_bytes_per_s=seen["bandwidth"], int8_ops=seen["int8"], fp32_flops=seen["fp32"],
        basis="measured",
    )  # fmt: skip
    machine = dataclasses.replace(machine, host=host)

    def one(prompt: int) -> Deployment:
        settings = Settings(context_tokens=2048)
        return Deployment(
            model, scheme, machine, ENGINE, "cpu", workload=Workload(prompt, 1), settings=settings
        )

    rows = [("decode", one(depth), t) for depth, t in zip(seen["depths"], seen["tpot"], strict=True)]
    return [*rows, ("prefill", one(seen["n_prompt"]), seen["ttft"])]


def predicted(rows: list[tuple[str, Any, float]], held: Any) -> np.ndarray:
    from estimators.estimate import table_of
    from estimators.phases import phases, plan

    out = []
    for phase, d, _ in rows:
        prefill, decode, _ = phases(plan(table_of(d), held), slice(0, 1))
        out.append(float(np.squeeze((prefill if phase == "prefill" else decode).total_s)))
    return np.array(out)


# -- the fit -------------------------------------------------------------------------------------------------

#: (latent, format class or ""): prior on the logit or logarithm, and its width
PRIORS = {
    "weights": (0.85, 1.0), "experts": (0.75, 1.0), "cache": (0.5, 1.0), "compute": (0.7, 1.0),
    "experts_compute": (0.3, 1.0), "attention": (0.3, 0.7), "unpack": (0.5, 1.0),
}  # fmt: skip
SECONDS = {"layer": (60e-6, 1.0), "step": (100e-6, 1.0)}
BY_FORMAT = {"weights": 0.25, "compute": 0.25}
CONSTANT = {
    "link": ("share", 0.5),
    "request": ("s", 1e-6),
    "reduce": ("s", 1e-6),
    "hop": ("s", 1e-6),
    "padding": ("s", 0.05),
}


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def fit(seen: list[dict[str, Any]]) -> dict[str, Any]:
    """Least squares of log residuals under the priors; intervals from leaving one model out at a time."""
    from scipy.optimize import least_squares

    from estimators import formats
    from estimators.efficiency import Efficiency

    rows = [(s["pair"].split(":")[0], row) for s in seen for row in deployments(s)]
    classes = sorted({formats.CLASSES[formats.class_index(d.scheme)] for _, (_, d, _) in rows})
    names = [(n, "") for n in (*PRIORS, *SECONDS)] + [(n, c) for n in BY_FORMAT for c in classes]
    centre = np.array([
        logit(PRIORS[n][0]) if n in PRIORS and not c else math.log(SECONDS[n][0]) if n in SECONDS else 0.0
        for n, c in names
    ])  # fmt: skip
    width = np.array([BY_FORMAT[n] if c else (PRIORS | SECONDS)[n][1] for n, c in names])

    def held(x: np.ndarray, digits: int = 15) -> Efficiency:
        latents: dict[str, Any] = {}
        for (n, c), value in zip(names, x, strict=True):
            entry = latents.setdefault(n, {"base": {"*": 0.0}, "terms": []})
            if not c:
                entry["base"]["*"] = round(float(value), digits)
                continue
            if not entry["terms"]:
                entry["terms"].append({"by": ["format"], "per": "", "effects": {}})
            entry["terms"][0]["effects"][c] = round(float(value), digits)
        for n, (kind, value) in CONSTANT.items():
            base = logit(value) if kind == "share" else math.log(value)
            latents[n] = {"base": {"*": round(base, 4)}, "terms": []}
        return Efficiency(latents, {}, {})

    def solve(members: list[Any]) -> np.ndarray:
        measured = np.log([t for _, _, t in members])

        def residuals(x: np.ndarray) -> np.ndarray:
            errors = (np.log(predicted(members, held(x))) - measured) / 0.07
            errors = np.sign(errors) * np.sqrt(
                2 * (np.sqrt(1 + errors**2) - 1)
            )  # outliers count once, not squared
            return np.concatenate([errors, (x - centre) / width])

        return least_squares(residuals, centre, max_nfev=40).x

    everything = [row for _, row in rows]
    best = held(solve(everything), 4)
    left = []
    for model in sorted({m for m, _ in rows}):
        out = [row for m, row in rows if m == model]
        x = solve([row for m, row in rows if m != model])
        ratios = np.array([t for _, _, t in out]) / predicted(out, held(x))
        left += [(row[0], float(r)) for row, r in zip(out, ratios, strict=True)]
    inside = np.array([t for _, _, t in everything]) / predicted(everything, best)
    intervals, spread = {}, {}
    for phase in ("decode", "prefill"):
        apart = np.abs(np.log([r for p, r in left if p == phase]))
        edge = float(np.quantile(apart, 0.9))
        intervals[phase] = {"slow": round(math.exp(edge), 3), "fast": round(math.exp(-edge), 3)}
        mine = np.abs(np.log([r for (p, _, _), r in zip(everything, inside, strict=True) if p == phase]))
        spread[phase] = {
            "rows": len(apart),
            "median_error_fitted": round(float(np.median(mine)), 3),
            "median_error_left_out": round(float(np.median(apart)), 3),
        }
    return {
        "latents": best.latents,
        "intervals": intervals,
        "provenance": {
            "measured": [],
            "source": "benchmarks/verify.py --fit: the bundled runner on synthetic weights, shares of the rates that "
            "`plan measure` finds",
            "date": time.strftime("%Y-%m-%d"),
            "threads": seen[0]["threads"],
            "pairs": [s["pair"] for s in seen],
            "errors": spread,
        },
    }


# -- the page ------------------------------------------------------------------------------------------------


def page(seen: list[dict[str, Any]], host: str) -> str:
    """docs/verify.md."""
    from estimators.efficiency import load
    from estimators.reference import CALIBRATION

    held = load(CALIBRATION)
    errors: dict[str, list[float]] = {"decode": [], "prefill": []}
    inside = {"decode": 0, "prefill": 0}
    body, apart = [], []
    for s in seen:
        rows = deployments(s)
        cells = []
        for (phase, _, t), p in zip(rows, predicted(rows, held), strict=True):
            errors[phase].append(p / t - 1)
            span = held.intervals[phase]
            inside[phase] += p * span["fast"] <= t <= p * span["slow"]
            cells.append(f"{p * 1e3:.1f} / {t * 1e3:.1f} ({p / t - 1:+.0%})")
        ratios = list(s.get("agreement", {}).values())
        apart += ratios
        other = " ".join(f"{r:+.1%}" for r in ratios)
        name, scheme = s["pair"].split(":")
        read = f"{s['bandwidth'] / 1e9:.1f}"
        row = (
            name,
            scheme,
            read,
            cells[0],
            cells[1],
            str(s["n_prompt"]),
            cells[2],
            other,
            f"{s['load']:.1f}",
        )
        body.append(f"| {' | '.join(row)} |")
    lines = [
        "# Predicted against measured: the bundled runner",
        "",
        f"{len(seen)} pairs of model and scheme, none of whose models the calibration was fitted on, on {host} with",
        f"{seen[0]['threads']} threads; synthetic weights. Times in ms, predicted / measured (error). `read` is the",
        "bandwidth measured between the tokens in GB/s, `load` the load average, the run itself included.",
        "",
        "| model | scheme | read | TPOT at 256 | TPOT at 1536 | prompt | TTFT | sampled against full | load |",
        "|---|---|---|---|---|---|---|---|---|",
        *body,
        "",
        "| | median error | worst | inside the interval |",
        "|---|---|---|---|",
    ]
    for phase, label in (("decode", "TPOT"), ("prefill", "TTFT")):
        e = np.abs(errors[phase])
        lines.append(f"| {label} | {np.median(e):.1%} | {e.max():.1%} | {inside[phase]} of {len(e)} |")
    if apart:
        a = np.abs(apart)
        lines += [
            "",
            f"Sampled execution differs from full by {np.median(a):.1%} (median), {a.max():.1%} at worst,",
        ]
        lines += [f"over {len(a)} times (a step, a prompt) for which both took turns."]
    busy = sum(bool(s["remarks"]) for s in seen)
    if busy:
        lines += [
            "",
            f"**Contaminated**: other processes were busy during {busy} of {len(seen)} runs, so these errors hold",
        ]
        lines += [
            "the noise of a shared machine. On an idle one: `python benchmarks/verify.py --page docs/verify.md`."
        ]
    errors_of_fit = held.provenance["errors"]
    told = ", ".join(f"{p} {v['median_error_left_out']:.1%}" for p, v in errors_of_fit.items())
    lines += [
        "",
        f"The calibration (`--fit`) saw {len(held.provenance['pairs'])} other pairs; leaving one model out at a",
    ]
    lines += [f"time, its median errors are {told}.", "", "Written by `benchmarks/verify.py`."]
    return "\n".join(lines) + "\n"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--fit", action="store_true")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--page", default="")
    p.add_argument("--pairs", default="")
    p.add_argument("--json", default="", help="keep observations here; those kept are not measured again")
    args = p.parse_args()
    from estimators.reference import CALIBRATION
    from planner import measure

    wanted = args.pairs.split(",") if args.pairs else FITTED if args.fit else HELD
    kept = Path(args.json) if args.json else None
    seen = json.loads(kept.read_text()) if kept and kept.exists() else []
    for text in wanted:
        if any(s["pair"] == text for s in seen):
            continue
        started = time.perf_counter()
        seen.append(observe(text, args.threads))
        print(
            text,
            json.dumps({k: seen[-1][k] for k in ("tpot", "ttft", "bandwidth", "load")}),
            f"{time.perf_counter() - started:.0f} s",
            flush=True,
        )
        if kept:
            kept.write_text(json.dumps(seen, indent=1))
    seen = [s for s in seen if s["pair"] in wanted]
    for s in [] if args.fit else seen:
        if s["weight_bytes"] < TURNS_BYTES and "agreement" not in s:
            s["agreement"] = agreement(s["pair"], args.threads)
            print(s["pair"], s["agreement"], flush=True)
            if kept:
                kept.write_text(json.dumps(seen, indent=1))
    if args.fit:
        CALIBRATION.write_text(json.dumps(fit(seen), indent=1) + "\n")
        print(CALIBRATION.read_text()[-900:])
        return
    host = measure.this_machine().host
    text = page(seen, host.name if host else "this machine")
    print(text)
    if args.page:
        Path(args.page).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
