"""Predicted against measured with the bundled runner on this machine, and the fit behind the predictions.

    python benchmarks/verify.py --fit                 fits estimators/data/runner.json on FITTED
    python benchmarks/verify.py --page docs/verify.md publishes HELD, none of which was fitted

Both hold dense models, mixtures of experts and hybrids.

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
    "qwen1.5-moe-a2.7b:Q4_K_M", "qwen1.5-moe-a2.7b:Q8_0", "granite-3.1-3b-a800m-instruct:Q4_K_M",
    "granite-4.0-h-1b:Q4_K_M", "lfm2-700m:Q8_0", "qwen3.5-0.8b:Q8_0",
)  # fmt: skip
HELD = (
    "qwen2.5-0.5b-instruct:Q8_0", "qwen2.5-0.5b-instruct:Q4_K_M", "gemma-3-1b-it:Q4_0",
    "llama-3.2-1b-instruct:Q4_K_M", "llama-3.2-1b-instruct:F16", "qwen2.5-1.5b-instruct:Q8_0",
    "llama-3.2-3b-instruct:Q4_K_M", "phi-4-mini-instruct:Q4_0", "qwen2.5-7b-instruct:Q4_K_M",
    "llama-3.1-8b-instruct:Q4_0", "granite-3.1-1b-a400m-instruct:Q4_K_M", "falcon-h1-0.5b-instruct:Q8_0",
    "lfm2-1.2b:Q4_K_M", "lfm2-8b-a1b:Q4_K_M", "granite-4.0-h-tiny:Q4_K_M", "qwen3.5-2b:Q4_K_M",
)  # fmt: skip
DEPTHS = (256, 1536)
LEAST_WIDTH = 0.1  # of an interval, as a logarithm: another day on the same machine differs by as much
ROUNDS, TOKENS_PER_ROUND, PROMPTS = 12, 3, 5
FULL_BYTES = 5.5e9
TURNS_BYTES = 5.5e9  # whole models that run beside their sample
LONG, LONG_TURNS, HURRY_S = 2048, 3, 1.0  # a prompt of four batches, sampled in a second
LONG_BYTES = 1.7e9  # models that run it


def pair(text: str) -> tuple[Any, Any]:
    from modeldb import catalogue, schemes

    name, scheme = text.split(":")
    return catalogue.load().resolve(name), schemes.get(scheme)


class Rates:
    """What the machine reaches, a sample at a time, as `plan measure` does it."""

    def __init__(self, threads: int, formats: tuple[str, ...]) -> None:
        from runner.bandwidth import Reader

        self.threads, self.formats = threads, formats
        self.reader = Reader(threads, formats=formats)
        self.reads: list[float] = []
        self.streams: dict[str, list[float]] = {f: [] for f in formats}
        self.products: dict[str, list[float]] = {f: [] for f in dict.fromkeys((*formats, "F16", "Q8_0"))}
        self.attention: list[Any] = []
        self.layers: list[float] = []

    def read(self) -> None:
        self.reads.append(self.reader.rate())
        for f in self.formats:
            self.streams[f].append(self.reader.stream(f))

    def product(self) -> None:
        from runner.bandwidth import matmul_rate

        for f, found in self.products.items():
            found.append(matmul_rate(f, 4096, 512, self.threads, 2).median_flops)

    def small(self) -> None:
        """The rates that change little."""
        from planner.measure import GROUPS
        from runner.bandwidth import attention_rate, layer_s

        self.attention.append([attention_rate(self.threads, g) for g in GROUPS])
        self.layers.append(layer_s(self.threads))

    def document(self) -> dict[str, Any]:
        high = lambda values: float(np.percentile(values, 75))  # noqa: E731
        streams = {f: high(v) for f, v in self.streams.items()}
        products = {f: high(v) for f, v in self.products.items()}
        return {
            "bandwidth": max(high(self.reads), *streams.values()),
            "fp32": products["F16"],
            "int8": max(v for f, v in products.items() if f not in ("F16", "BF16", "F32")),
            "formats": [[f, streams[f], products[f]] for f in self.formats],
            "attention": [max(a[i].bytes_per_s for a in self.attention) for i in (0, 1)],
            "attention_flops": max(a[1].flops for a in self.attention),
            "layer_s": min(self.layers),
        }


def formats_of(model: Any, scheme: Any) -> tuple[str, ...]:
    """Of its matrices, those that `plan measure` times."""
    from modeldb.schemes import assign
    from planner.measure import FORMATS

    held = {f.id for t, f in assign(scheme, model) if len(t.shape) > 1 and t.role != "draft"}
    return tuple(f for f in FORMATS if f in held) or ("Q8_0",)


def observe(text: str, threads: int) -> dict[str, Any]:
    """Medians of one pair, whole or (experts, or too large) sampled, with the rates of the same minutes."""
    from runner import engine as engines
    from runner import meter, sampled, sampled_prompt, synthetic

    model, scheme = pair(text)
    part = sampled.part_of(model, scheme)
    whole = part.head_bytes + sum(len(k.layers) * k.n_bytes for k in part.kinds)
    rates, watch = Rates(threads, formats_of(model, scheme)), meter.Watch()
    rates.small()
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
        first = sampled_prompt.prefill(sample, n_prompt, 8.0)
        rates.product()
        sample.close()
        out |= {"tpot": timed, "ttft": first.seconds, "note": first.note}
    rates.small()
    rates.reader.close()
    conditions = watch.conditions()
    out |= {
        "full": full, "threads": threads, "remarks": conditions.remarks(), "load": conditions.load_average,
        **rates.document(),
    }  # fmt: skip
    return out


def agreement(
    text: str, threads: int, n_prompt: int = 256, depth: int = 512, steps: int = 40, n_long: int = LONG
) -> dict[str, float]:
    """Sampled over full minus one, of a step, of a prompt and (`n_long`, 0: not) of a prompt of several batches by a
    share of rows: the whole model and the stack take turns step by step, so that other load hits both alike; the median
    over turns of the ratio within a turn."""
    from runner import engine as engines
    from runner import sampled, sampled_prompt, synthetic

    model, scheme = pair(text)
    weights = synthetic.weights(model, scheme)
    n_context = max(1024, n_long)
    full = engines.load(weights, n_context=n_context, n_threads=threads)
    sampled.fill_cache(full)
    # the same arrays: equal weights elsewhere in memory differ by 2 to 3% by themselves
    sample = sampled.load(model, scheme, n_context, n_threads=threads, whole=weights)
    turns = {
        "step": (steps, lambda i: (decode_once(full, depth, i), sampled.decode_once(sample, depth, i))),
        "prompt": (9, lambda _: (prefill_once(full, n_prompt), sampled_prompt.prefill_once(sample, n_prompt))),
        "long": (LONG_TURNS, lambda _: (prefill_once(full, n_long),
                                        sampled_prompt.prefill(sample, n_long, HURRY_S).seconds)),
    }  # fmt: skip
    out = {}
    for name, (rounds, turn) in turns.items():
        if name == "long" and not n_long:
            continue
        times = np.array([turn(i) for i in range(rounds + 1)][1:])
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
    from hwdb.device import KernelRates
    from planner import measure

    model, scheme = pair(seen["pair"])
    machine = measure.this_machine()
    assert machine.host is not None
    kernels = KernelRates(
        tuple((f, stream, product) for f, stream, product in seen["formats"]), tuple(seen["attention"]),
        seen["attention_flops"], seen["layer_s"],
    )  # fmt: skip
    host = dataclasses.replace(
        machine.host, bandwidth_bytes_per_s=seen["bandwidth"], int8_ops=seen["int8"], fp32_flops=seen["fp32"],
        basis="measured", kernels=kernels,
    )  # fmt: skip
    machine = dataclasses.replace(machine, host=host)

    def one(prompt: int) -> Deployment:
        settings = Settings(context_tokens=2048)
        return Deployment(
            model, scheme, machine, ENGINE, "cpu", workload=Workload(prompt, 1), settings=settings
        )

    rows = [("decode", one(depth), t) for depth, t in zip(seen["depths"], seen["tpot"], strict=True)]
    return [*rows, ("prefill", one(seen["n_prompt"]), seen["ttft"])]


# -- the fit -------------------------------------------------------------------------------------------------

#: Factor of each term before anything was seen, and how far (as a logarithm) it may be off. Products and streams are
#: rates of the very kernels; vectors are read and written a few times, by not all threads.
PRIORS = {
    "decode": {"weights": (1.0, 0.1), "experts": (1.1, 0.3), "cache": (1.0, 0.3), "layers": (1.0, 0.5),
               "vectors": (1.0, 1.0), "step": (1.0, 1.0)},
    "prefill": {"products": (1.0, 0.2), "experts": (1.2, 0.4), "attention": (1.0, 0.3), "layers": (1.0, 0.5),
                "vectors": (1.0, 1.0), "weights": (0.5, 1.0), "step": (1.0, 1.0)},
}  # fmt: skip
SIGMA = 0.05  # of one measured time, as a logarithm


def fit(seen: list[dict[str, Any]], usual: dict[str, Any]) -> dict[str, Any]:
    """Factors by robust least squares of logarithms under the priors; intervals from leaving one model out at a
    time."""
    from scipy.optimize import least_squares

    from estimators import reference

    phases: dict[str, Any] = {}
    intervals, spread = {}, {}
    for phase, priors in PRIORS.items():
        rows = [(s["pair"].split(":")[0], row) for s in seen for row in deployments(s) if row[0] == phase]
        names = list(priors)
        centre = np.log([priors[n][0] for n in names])
        width = np.array([priors[n][1] for n in names])
        found = [reference.terms(d)[phase] for _, (_, d, _) in rows]
        table = np.array([[one[n] for n in names] for one in found])
        times, models = np.array([t for _, (_, _, t) in rows]), np.array([m for m, _ in rows])

        def solve(use: np.ndarray, table: np.ndarray = table, times: np.ndarray = times,
                  centre: np.ndarray = centre, width: np.ndarray = width) -> np.ndarray:  # fmt: skip
            def residuals(x: np.ndarray) -> np.ndarray:
                errors = (np.log(table[use] @ np.exp(x)) - np.log(times[use])) / SIGMA
                # outliers count once, not squared
                return np.concatenate(
                    [np.sign(errors) * np.sqrt(2 * (np.sqrt(1 + errors**2) - 1)), (x - centre) / width]
                )

            return np.exp(least_squares(residuals, centre).x)

        factors = solve(np.ones(len(rows), bool))
        phases[phase] = {n: round(float(f), 4) for n, f in zip(names, factors, strict=True)}
        ratios = np.empty(len(rows))
        for model in sorted(set(models)):
            out = models == model
            ratios[out] = times[out] / (table[out] @ solve(~out))
        apart = np.abs(np.log(ratios))
        edge = max(float(np.quantile(apart, 0.9)), LEAST_WIDTH)
        intervals[phase] = {"slow": round(math.exp(edge), 3), "fast": round(math.exp(-edge), 3)}
        spread[phase] = {
            "rows": len(rows),
            "median_error_fitted": round(float(np.median(np.abs(np.log(times / (table @ factors))))), 3),
            "median_error_left_out": round(float(np.median(apart)), 3),
        }
    return {
        **phases,
        "intervals": intervals,
        "usual": usual,
        "provenance": {
            "source": "benchmarks/verify.py --fit: the bundled runner on synthetic weights, at the rates that "
            "`plan measure` finds",
            "date": time.strftime("%Y-%m-%d"),
            "threads": seen[0]["threads"],
            "pairs": [s["pair"] for s in seen],
            "errors": spread,
        },
    }


def usual_rates(threads: int) -> dict[str, Any]:
    """What stands in for rates on a processor of which only bandwidth and arithmetic are known: this machine's
    shares."""
    from planner import measure

    found = measure.survey(threads)
    kernels = found.kernels
    assert kernels is not None
    read = found.best_read.median_bytes_per_s
    peak = lambda f: found.fp32_flops if f in ("F16", "BF16") else found.int8_ops  # noqa: E731
    return {
        "formats": {f: [round(s / read, 3), round(p / peak(f), 3)] for f, s, p in kernels.formats},
        "attention_of_bandwidth": [round(r / read, 4) for r in kernels.attention_bytes_per_s],
        "attention_of_fp32": round(kernels.attention_flops / found.fp32_flops, 3),
        "layer_s": round(kernels.layer_s, 8),
    }


# -- the page ------------------------------------------------------------------------------------------------


def page(seen: list[dict[str, Any]], host: str) -> str:
    """docs/verify.md."""
    from estimators import reference

    held = reference.calibration()
    errors: dict[str, list[float]] = {"decode": [], "prefill": []}
    inside = {"decode": 0, "prefill": 0}
    body, apart = [], []
    for s in seen:
        rows = deployments(s)
        cells = []
        for phase, d, t in rows:
            found = reference.expected(reference.terms(d, held), held, phase)
            p = found.best
            errors[phase].append(p / t - 1)
            inside[phase] += found.low <= t <= found.high
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
        lines += [
            f"over {len(a)} times for which both took turns: a step, a prompt of 256 tokens and, of models below"
        ]
        lines += [
            f"{LONG_BYTES / 1e9:.1f} GB, one of {LONG:,} that was sampled in a second, large matrices by a share of"
        ]
        lines += ["their rows."]
    busy = sum(bool(s["remarks"]) for s in seen)
    if busy:
        lines += [
            "",
            f"**Contaminated**: other processes were busy during {busy} of {len(seen)} runs, so these errors hold",
        ]
        lines += [
            "the noise of a shared machine. On an idle one: `python benchmarks/verify.py --page docs/verify.md`."
        ]
    errors_of_fit = held["provenance"]["errors"]
    told = ", ".join(f"{p} {v['median_error_left_out']:.1%}" for p, v in errors_of_fit.items())
    lines += [
        "",
        f"The calibration (`--fit`) saw {len(held['provenance']['pairs'])} other pairs; leaving one model out at a",
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
            n_long = LONG if s["weight_bytes"] < LONG_BYTES else 0
            s["agreement"] = agreement(s["pair"], args.threads, n_long=n_long)
            print(s["pair"], s["agreement"], flush=True)
            if kept:
                kept.write_text(json.dumps(seen, indent=1))
    if args.fit:
        CALIBRATION.write_text(json.dumps(fit(seen, usual_rates(args.threads)), indent=1) + "\n")
        print(CALIBRATION.read_text()[-900:])
        return
    host = measure.this_machine().host
    text = page(seen, host.name if host else "this machine")
    print(text)
    if args.page:
        Path(args.page).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
