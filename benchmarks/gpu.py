"""The PyTorch backend on a GPU: decode against the bandwidth measured there and against the prediction, formats side by
side, captured graphs against single launches, prompts.

    python benchmarks/gpu.py --page docs/gpu.md            on a machine with a GPU; about five minutes
    python benchmarks/gpu.py --device cpu --tiny           the same on a toy model, so that this script is tested

Weights are synthetic, so nothing is downloaded. Times are the device's own (CUDA events), medians over tokens.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import gc
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

MODEL = "llama-3.1-8b-instruct"
TINY = "toy of two layers"
# (label, scheme of the weights)
RUNS = (("BF16", "BF16"), ("FP8 (a scale per row)", "fp8-per-channel"), ("Q8_0", "Q8_0"), ("Q4_0", "Q4_0"),
        ("Q4_K_M", "Q4_K_M"))  # fmt: skip
PROMPTS = (512, 2048)
DEPTH, DECODE = 512, 64


@dataclasses.dataclass(frozen=True)
class Row:
    """One format: seconds and rates. `floor_s` is the bytes of a step over the bandwidth read here."""

    label: str
    note: str
    weight_bytes: int
    step_bytes: int
    tpot_s: float
    floor_s: float
    predicted: Any  # Quantity
    eager_s: float | None
    prompts: tuple[tuple[int, float, float], ...]  # (tokens, seconds, FLOP/s)
    overhead_bytes: int | None
    remarks: tuple[str, ...]


def weights_of(model_id: str, scheme_id: str, tiny: bool) -> tuple[Any, Any, Any]:
    """(model, scheme, seeded weights)."""
    from modeldb import catalogue, schemes
    from modeldb.shape import Shape, build
    from runner import synthetic

    scheme = schemes.get(scheme_id)
    if tiny:
        shape = Shape("llama", 2, 256, 512, "F*2", "D*2", n_heads=4, n_kv_heads=2, head_dim=64, intermediate_size=512,
                      max_context=4096)  # fmt: skip
        model = build(shape, id="toy", name="Toy", architecture="llama")
    else:
        model = catalogue.load().resolve(model_id)
    return model, scheme, synthetic.weights(model, scheme, fp8=True)


def measure(run: tuple[str, str], survey: Any, machine: Any, device: str, tiny: bool) -> Row:
    from runner import torch_meter
    from runner.torch_backend import TorchEngine

    label, scheme_id = run
    model, scheme, held = weights_of(TINY if tiny else MODEL, scheme_id, tiny)
    lengths = (16, 32) if tiny else PROMPTS
    depth, n_decode = (16, 4) if tiny else (DEPTH, DECODE)
    n_context = max(*lengths, depth + n_decode) + 8
    prompts = []
    engine = TorchEngine(held, n_context, device=device, packed=True, static=True)
    for n in lengths:
        found = torch_meter.run(engine, [i % 1000 for i in range(n)], 2)
        prompts.append((n, found.ttft_s, found.prefill_flops_per_s))
    report = torch_meter.run(engine, [i % 1000 for i in range(depth)], n_decode)
    note, captured = engine.note, engine.captures
    engine.close()
    release(engine)
    eager = None
    if captured or tiny:
        plain = TorchEngine(held, n_context, device=device, packed=True, static=False)
        eager = torch_meter.run(plain, [i % 1000 for i in range(depth)], n_decode).tpot_s
        plain.close()
        release(plain)
    return Row(label, note, report.weight_bytes, report.last.bytes_touched, report.tpot_s,
               report.last.bytes_touched / survey.read_bytes_per_s,
               predicted(model, scheme, machine, survey, depth, n_decode), eager, tuple(prompts),
               report.overhead_bytes, report.remarks)  # fmt: skip


def release(engine: Any) -> None:
    """Give the device's memory back before the next engine takes its own."""
    import torch

    del engine
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def predicted(model: Any, scheme: Any, machine: Any, survey: Any, depth: int, n_decode: int) -> Any:
    """Our interval for a token, as of the engine that `plan verify --device` prices."""
    from estimators.deployment import Deployment, Workload
    from estimators.estimate import estimate
    from planner.verify_gpu import ENGINE

    backend: Any = survey.backend if survey.backend != "cpu" else "cuda"
    d = Deployment(model, scheme, machine, ENGINE, backend, workload=Workload(depth, n_decode))
    return estimate(d).tpot_s


def page(survey: Any, rows: list[Row], subject: str, datasheet: Any, depth: int) -> str:
    import torch

    from planner import measure_gpu, units

    ms = lambda s: f"{s * 1e3:.2f}"  # noqa: E731
    out = ["# The PyTorch backend on a GPU", "",
           f"{survey.name}, {units.format_bytes(survey.memory_bytes)}, PyTorch {torch.__version__}, "
           f"{datetime.date.today().isoformat()}; `benchmarks/gpu.py`. Model: {subject}, synthetic weights.", "",
           "## What the device reaches (`plan measure --device`)", "", "```",
           measure_gpu.text(survey, datasheet).rstrip(),
           "```", "", f"## Decode, {depth} tokens in the cache", "",
           "Floor: the bytes that a step reads over the bandwidth above. Predicted: for gpt-fast, the calibrated "
           "engine that replays graphs of PyTorch too. Plain steps: single launches, logits to the host.", "",
           "| weights | held | a step reads | floor, ms | measured, ms | of the bandwidth | predicted, ms | error | "
           "plain steps, ms |",
           "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in rows:
        q = r.predicted
        said = f"{ms(q.best)} ({ms(q.low)}-{ms(q.high)}) | {q.best / r.tpot_s - 1:+.0%}"
        eager = ms(r.eager_s) if r.eager_s else "-"
        out.append(
            f"| {r.label} | {units.format_bytes(r.weight_bytes)} | {units.format_bytes(r.step_bytes)} | "
            f"{ms(r.floor_s)} | {ms(r.tpot_s)} | {r.floor_s / r.tpot_s:.0%} | {said} | {eager} |"
        )
    lengths = [n for n, _, _ in rows[0].prompts]
    out += ["", "## Prompts", "", "| weights | " + " | ".join(f"{n} tokens, ms | TFLOP/s" for n in lengths) + " |",
            "|---|" + "---|---|" * len(lengths)]  # fmt: skip
    for r in rows:
        out.append(
            f"| {r.label} | " + " | ".join(f"{ms(s)} | {f / 1e12:.1f}" for _, s, f in r.prompts) + " |"
        )
    out += ["", "## How", ""]
    for r in rows:
        more = (
            f"; {units.format_bytes(r.overhead_bytes)} beyond weights and cache" if r.overhead_bytes else ""
        )
        bad = f"; contaminated: {'; '.join(r.remarks)}" if r.remarks else ""
        out.append(f"- {r.label}: {r.note or 'as stored'}{more}{bad}")
    return "\n".join(out) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--tiny", action="store_true", help="a toy model, small buffers: a test of this script"
    )
    parser.add_argument("--only", default="", help="labels, separated by commas")
    parser.add_argument("--page", type=Path)
    given = parser.parse_args(arguments)
    from planner import measure as measures
    from planner import measure_gpu
    from planner.errors import PlanError

    sizes: dict[str, Any] = {"read_bytes": 1 << 22, "widths": (128,), "n_tokens": 64} if given.tiny else {}
    try:
        survey = measure_gpu.survey(given.device, **sizes)
    except PlanError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    machine = measure_gpu.with_device(measures.this_machine(), survey)
    wanted = given.only.split(",") if given.only else [r[0] for r in RUNS]
    rows = []
    for run in RUNS:
        if run[0] not in wanted:
            continue
        print(f"{run[0]} ...", file=sys.stderr, flush=True)
        rows.append(measure(run, survey, machine, given.device, given.tiny))
    subject = f"{TINY} (a test, no measurement)" if given.tiny else MODEL
    text = page(survey, rows, subject, machine.devices[0], 16 if given.tiny else DEPTH)
    print(text, end="")
    if given.page:
        given.page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
