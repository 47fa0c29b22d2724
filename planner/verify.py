"""`plan verify`: what was predicted beside what the runner measured on this machine, line by line."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

from estimators import reference
from estimators.deployment import Deployment, Settings, Workload
from planner import measure, units, verify_counts
from planner.errors import UsageError
from planner.verification import Line, Verification, exact_lines

if TYPE_CHECKING:
    from hwdb.device import Machine
    from modeldb.model import Model
    from modeldb.scheme import Scheme
    from runner.engine import Engine
    from runner.meter import Report

USUAL_SCHEME, USUAL_CHECKPOINT = "Q4_K_M", "bf16"  # of GGUF files, and of what llama.cpp has no files for
PROMPT, DECODE = 512, 32
MEMORY_SHARE = 0.6  # of available memory, for weights that are run whole
QUICK_DECODE_S, QUICK_PREFILL_S = 2.5, 4.0
ATTEMPTS, ATTEMPTS_S = 3, 20.0  # measured again while other load spoils a run, and for how long
LONG_S = 60.0  # of a prompt, that is told beforehand
DRIFT = 0.2  # between the bandwidth that was kept and that of now


@dataclass(frozen=True)
class Question:
    """What to verify: a model in a scheme, or a file, with its lengths."""

    model: Model
    scheme: Scheme
    file: Path | None = None
    n_prompt: int = PROMPT
    n_decode: int = DECODE
    context: int = 0
    kv: str = "f16"
    threads: int = 0
    quick: bool = False

    @property
    def subject(self) -> str:
        return str(self.file) if self.file else f"{self.model.id} {self.scheme.id}"

    @property
    def n_context(self) -> int:
        return max(self.context, self.n_prompt + self.n_decode)


def question(target: str, quant: str | None, **lengths: Any) -> Question:
    """From a model's name, a path, or the JSON of an answer (its first row)."""
    if target.endswith(".json") and Path(target).is_file() and Path(target).name != "config.json":
        return _of_answer(Path(target), **lengths)
    from modeldb import catalogue, readers, schemes
    from planner import stock

    if stock.means_path(target):
        model, scheme = readers.read(target, offline=True)
        if model.file_tensors and quant:
            stock.check_stored(target, scheme, (schemes.get(quant),))
        if model.file_tensors and "safetensors" in model.source:
            return Question(verify_counts.as_held(model), scheme, Path(target), **lengths)
        if model.file_tensors:
            return Question(model, scheme, Path(target), **lengths)
    else:
        model = catalogue.load().resolve(target)
    usual = USUAL_SCHEME if model.architecture else USUAL_CHECKPOINT
    return Question(model, schemes.get(quant or usual), **lengths)


def _of_answer(path: Path, **lengths: Any) -> Question:
    from modeldb import catalogue, schemes

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        row, asked = content["answer"]["rows"][0], content["request"]
        names = (
            row["model"],
            row["scheme"],
            row["kv_type"],
            int(row["context_tokens"]),
            int(asked["prompt"]),
        )
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        raise UsageError(
            f"`{path}` is not an answer with rows", "plan --json ... > answer.json writes one"
        ) from None
    model, scheme, kv, context, prompt = names
    lengths = {**lengths, "n_prompt": lengths.get("n_prompt") or prompt, "kv": kv, "context": context}
    return Question(catalogue.load().resolve(model), schemes.get(scheme), **lengths)


def machine_for(
    threads: int, formats: tuple[str, ...] = ()
) -> tuple[Machine, tuple[str, ...], tuple[str, ...]]:
    """(this machine with measured rates, notes, remarks): those kept, or, where none are kept or the threads differ, a
    survey now, of kernels for `formats`. Kept ones are held against the bandwidth of now."""
    from runner.engine import physical_cores

    machine = measure.this_machine()
    assert machine.host is not None
    if machine.host.basis == "measured" and machine.host.kernels and threads in (0, physical_cores()):
        return machine, (), _drift(machine.host.bandwidth_bytes_per_s or 0.0, physical_cores())
    timed = tuple(f for f in formats if f in measure.FORMATS)
    found = measure.survey(threads, quick=True, formats=timed)
    note = "rates measured for this run; `plan measure` keeps them"
    return measure.with_survey(machine, found), (note,), found.conditions.remarks()


def _drift(kept_bytes_per_s: float, threads: int, when: str = "`plan measure` ran") -> tuple[str, ...]:
    """A remark where memory is not as fast, or slow, as when it was measured: another load, or another core."""
    from runner.bandwidth import read_bandwidth

    now = read_bandwidth(threads, 1 << 28, 9).median_bytes_per_s
    if abs(now / kept_bytes_per_s - 1) <= DRIFT:
        return ()
    return (f"memory reads at {now / 1e9:.0f} GB/s, and at {kept_bytes_per_s / 1e9:.0f} when {when}",)


def verify(q: Question) -> Verification:
    """Run it, whole where it fits and --quick was not given, else sampled."""
    measure.need_runner()
    import psutil

    from runner.engine import physical_cores

    room = MEMORY_SHARE * psutil.virtual_memory().available
    if q.quick:
        _hold(q, room)
    measure.tell_of_compiling()
    machine, notes, remarks = machine_for(q.threads, _formats(q))
    found = _executed(q, deployment(q, machine), room, notes, remarks)
    if not notes or machine.host is None:
        return found
    # rates of this run: memory may have another one since
    drift = _drift(machine.host.bandwidth_bytes_per_s or 0.0, q.threads or physical_cores(), "this run began")
    return replace(found, remarks=(*found.remarks, *drift))


def _executed(
    q: Question, d: Deployment, room: float, notes: tuple[str, ...], remarks: tuple[str, ...]
) -> Verification:
    want = reference.counts(d, q.n_prompt)
    if not q.quick and want.weight_bytes + want.cache_allocated_bytes < room:
        return _full(q, d, notes, remarks)
    if not q.quick:
        notes += (f"{units.format_bytes(want.weight_bytes)} of weights and {_cache(want.cache_allocated_bytes)} do not "
                  "fit beside the rest: sampled",)  # fmt: skip
        _hold(q, room)
    return _sampled(q, d, notes, remarks)


def _hold(q: Question, room: float) -> None:
    """Raises UsageError where the sampled layers' cache takes more than `room` bytes."""
    from runner import sampled

    held = sampled.cache_bytes(q.model, q.scheme, q.n_context, q.n_prompt + 1, q.kv)
    if held > room:
        raise UsageError(
            f"{_cache(held)} for the layers that would run do not fit: {units.format_bytes(room)} may be used",
            "a shorter --prompt or --context, or --kv q8_0",
        )


def _cache(n_bytes: float) -> str:
    return f"{units.format_bytes(n_bytes)} of cache"


def _formats(q: Question) -> tuple[str, ...]:
    from modeldb.schemes import assign

    return tuple(dict.fromkeys(f.id for t, f in assign(q.scheme, q.model) if len(t.shape) > 1))


def deployment(q: Question, machine: Machine) -> Deployment:
    """The question as something to price with the runner."""
    settings = Settings(context_tokens=q.n_context, kv_type_k=q.kv, kv_type_v=q.kv)
    work = Workload(q.n_prompt, q.n_decode)
    return Deployment(q.model, q.scheme, machine, reference.ENGINE, "cpu", workload=work, settings=settings)


def _full(q: Question, d: Deployment, notes: tuple[str, ...], remarks: tuple[str, ...]) -> Verification:
    import runner
    from runner import meter, synthetic, weights

    memory = meter.PeakMemory()
    held = weights.open_file(q.file) if q.file else synthetic.weights(q.model, q.scheme)
    engine = runner.load(held, n_context=q.n_context, n_threads=q.threads, cache_type=q.kv)
    n_tokens = q.n_prompt + q.n_decode
    if (expected := reference.predict(d).ttft_s.best) > LONG_S:
        print(
            f"note: the prompt takes about {units.format_seconds(expected)}; with --quick, seconds",
            file=sys.stderr,
        )
    try:
        report, n_attempts = _metered(engine, q, d)
        exact = exact_lines(reference.counts(d, n_tokens), {
            "params": held.n_params,
            "classes": verify_counts.bytes_by_class(held),
            "weights": held.weight_bytes,
            "allocated": engine.cache.allocated_bytes,
            "step": report.last,
        }, n_tokens)  # fmt: skip
    finally:
        engine.close()
    modelled = _modelled(d, report.ttft_s, report.tpot_s, report.activation_bytes)
    peak = max(report.peak_resident_bytes, memory.peak_bytes()) - memory.start_bytes
    resident = Line("peak resident", "bytes", reference.resident_bytes(d, n_tokens), peak, False)
    if n_attempts > 1:
        notes += (f"measured {n_attempts} times, for other load; the cleanest counts",)
    phases = ((q.n_prompt, 0, (report.ttft_s,)), (0, q.n_decode, report.token_s))
    tests = tuple(_test(q, d, engine.n_threads, p, n, times) for p, n, times in phases)
    lines = (*exact, *modelled, resident)
    return Verification(q.subject, "full", lines, (*remarks, *report.remarks), notes, tests)


def prompt_ids(q: Question) -> list[int]:
    """Tokens of the prompt: any within the vocabulary do, since the weights know no language."""
    n_words = min(1000, q.model.vocab_size)
    return [i % n_words for i in range(q.n_prompt)]


def _metered(engine: Engine, q: Question, d: Deployment) -> tuple[Report, int]:
    """A metered run, and how many it took: it is repeated while other load spoils it and its times do not hold."""
    from planner.run import progress
    from runner import meter

    prompt, started = prompt_ids(q), time.perf_counter()
    runs: list[Report] = []
    while True:
        with progress("prompt") as advance:
            runs.append(meter.run(engine, prompt, q.n_decode, warm_up=not runs, told=advance))
        last = runs[-1]
        hold = all(line.holds for line in _modelled(d, last.ttft_s, last.tpot_s, 0)[:2])
        spent = time.perf_counter() - started
        if hold or not last.remarks or len(runs) == ATTEMPTS or spent * (1 + 1 / len(runs)) > ATTEMPTS_S:
            return min(runs, key=lambda r: (len(r.remarks), r.tpot_s)), len(runs)


def _sampled(q: Question, d: Deployment, notes: tuple[str, ...], remarks: tuple[str, ...]) -> Verification:
    from runner import meter, sampled, sampled_prompt

    sample = sampled.load(
        q.model, q.scheme, q.n_context, n_threads=q.threads, cache_type=q.kv, n_filled=q.n_prompt + 1
    )
    part, n_tokens = sample.part, q.n_prompt + 1
    try:
        step = sampled.decode(sample, q.n_prompt, QUICK_DECODE_S)
        first = sampled_prompt.prefill(sample, q.n_prompt, QUICK_PREFILL_S)
        found = verify_counts.sampled(sample, n_tokens)
        activations = sample.activation_bytes
    finally:
        sample.close()
    told = [f"{part.n_run} of {part.n_layers} layers run, {units.counted(len(part.kinds), 'kind')}, "
            f"{units.counted(step.n_rounds, 'step')}, {units.counted(first.n_rounds, 'prompt')}"]  # fmt: skip
    if part.n_experts:
        told.append(f"{part.n_experts} of {part.of_experts} experts of a layer stand for all")
    if first.note:
        told.append(first.note)
    exact = exact_lines(reference.counts(d, n_tokens), found, n_tokens)
    at_depth = replace(d, workload=Workload(q.n_prompt, 1))
    found_remarks = [*remarks, *step.conditions.remarks(), *first.conditions.remarks()]
    if step.spread > meter.SPREAD:
        found_remarks.append(f"times of a token spread by {step.spread:.0%}")
    remarks = tuple(dict.fromkeys(found_remarks))
    lines = (*exact, *_modelled(at_depth, first.seconds, step.seconds, activations))
    threads = sample.engine.n_threads
    tests = (
        _test(q, d, threads, q.n_prompt, 0, (first.seconds,)),
        _test(q, d, threads, 0, 1, (step.seconds,)),
    )
    return Verification(q.subject, "sampled", lines, remarks, (*notes, *told), tests)


def _test(
    q: Question, d: Deployment, threads: int, n_prompt: int, n_gen: int, times: Sequence[float]
) -> dict[str, Any]:
    """One test in the keys of `llama-bench -o json`. A prompt is one sample, a generated token is one each."""
    rates = [(n_prompt or 1) / t for t in times]
    whole = reference.counts(d, 1)
    host = d.machine.host
    return {
        "build_commit": "llm-plan", "build_number": 0, "cpu_info": host.name if host else "", "gpu_info": "",
        "backends": "CPU", "model_filename": str(q.file or q.model.id), "model_type": f"{q.model.id} {q.scheme.id}",
        "model_size": whole.weight_bytes, "model_n_params": whole.n_params, "n_batch": reference.BATCH_TOKENS,
        "n_ubatch": reference.BATCH_TOKENS, "n_threads": threads, "type_k": q.kv, "type_v": q.kv, "n_gpu_layers": 0,
        "n_prompt": n_prompt, "n_gen": n_gen, "n_depth": 0 if n_prompt else q.n_prompt,
        "test_time": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "avg_ns": round(1e9 * fmean(times)), "stddev_ns": round(1e9 * pstdev(times)), "avg_ts": fmean(rates),
        "stddev_ts": pstdev(rates), "samples_ns": [round(1e9 * t) for t in times], "samples_ts": rates,
    }  # fmt: skip


def _modelled(d: Deployment, ttft_s: float, tpot_s: float, activations: float) -> tuple[Line, ...]:
    found = reference.predict(d)
    return (
        Line("TTFT", "s", found.ttft_s, ttft_s, False),
        Line("TPOT", "s", found.tpot_s, tpot_s, False),
        Line("peak overhead", "bytes", found.activation_bytes, activations, False),
    )
