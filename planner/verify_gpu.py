"""`plan verify --device cuda`: predictions beside what the PyTorch backend measures on a GPU.

Times are priced as gpt-fast's: the calibrated engine that, like this backend, replays CUDA graphs of PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from estimators import reference
from estimators.deployment import Deployment, Settings, Workload
from planner import measure, measure_gpu, units, verify_counts
from planner.errors import EnvironmentFailed, UsageError
from planner.verify import Line, Question, Verification, exact_lines, prompt_ids

if TYPE_CHECKING:
    from runner.torch_backend import TorchEngine
    from runner.torch_measure import GpuSurvey
    from runner.torch_meter import GpuReport

ENGINE = "gpt-fast"
MEMORY_SHARE = 0.9  # of free memory, for weights and cache


def verify(q: Question, device: str, **sizes: Any) -> Verification:
    """Run it whole on the device. Raises EnvironmentFailed without PyTorch or such a device, UsageError for a model
    that does not fit it (there is no sampled run on GPUs)."""
    found = measure_gpu.survey(device, quick=True, **sizes)
    machine = measure_gpu.with_device(measure.this_machine(), found)
    settings = Settings(context_tokens=q.n_context, kv_type_k=q.kv, kv_type_v=q.kv)
    backend: Any = found.backend if found.backend != "cpu" else "cuda"  # a processor is priced as measured
    d = Deployment(q.model, q.scheme, machine, ENGINE, backend, workload=Workload(q.n_prompt, q.n_decode),
                   settings=settings)  # fmt: skip
    n_tokens = q.n_prompt + q.n_decode
    want = reference.counts(d, n_tokens)
    _fits(want, device)
    engine, report = _run(q, device)
    held = _held(engine, report)
    lines = (*exact_lines(want, held, n_tokens), *_modelled(d, report))
    notes = (*_notes(engine, found, report), *(f"price: as {ENGINE} on {d.machine.devices[0].name}",))
    remarks = (*found.conditions.remarks(), *report.remarks)
    engine.close()
    return Verification(q.subject, f"on {found.name}", lines, tuple(dict.fromkeys(remarks)), notes)


def _fits(want: reference.Counts, device: str) -> None:
    from runner import torch_device

    free, _ = torch_device.memory_bytes(torch_device.open_device(device))
    need = want.weight_bytes + want.cache_allocated_bytes
    if need > MEMORY_SHARE * free:
        raise UsageError(
            f"{units.format_bytes(need)} of weights and cache do not fit `{device}`: "
            f"{units.format_bytes(free)} are free",
            "a smaller quantization, or without --device: sampled on the processor",
        )


def _run(q: Question, device: str) -> tuple[TorchEngine, GpuReport]:
    from runner import synthetic, torch_meter, weights
    from runner.errors import RunnerError
    from runner.torch_backend import TorchEngine

    held = weights.open_file(q.file) if q.file else synthetic.weights(q.model, q.scheme)
    try:
        engine = TorchEngine(held, q.n_context, device=device, cache_type=q.kv, packed=True, static=True)
    except RunnerError as error:
        raise EnvironmentFailed(str(error), "plan verify without --device runs on the processor") from None
    return engine, torch_meter.run(engine, prompt_ids(q), q.n_decode)


def _held(engine: TorchEngine, report: GpuReport) -> dict[str, Any]:
    """What is compared to the byte: everything where the device holds the file's bytes, else the cache alone."""
    found: dict[str, Any] = {"allocated": engine.cache.allocated_bytes}
    tensors = engine.weights.tensors
    if any(engine.held_bytes.get(name) != w.data.nbytes for name, w in tensors.items()):
        return found
    classes = dict.fromkeys(verify_counts.bytes_by_class(engine.weights), 0)
    for name, weight in tensors.items():
        classes[verify_counts.class_of(name, weight.shape)] += engine.held_bytes[name]
    return {
        **found,
        "params": engine.meter.n_params,
        "classes": classes,
        "weights": engine.meter.weight_bytes,
        "step": report.last,
    }


def _modelled(d: Deployment, report: GpuReport) -> tuple[Line, ...]:
    from estimators.estimate import estimate

    priced = estimate(d)
    return (
        Line("TTFT", "s", priced.ttft_s, report.ttft_s, False),
        Line("TPOT", "s", priced.tpot_s, report.tpot_s, False),
    )


def _notes(engine: TorchEngine, found: GpuSurvey, report: GpuReport) -> tuple[str, ...]:
    floor = report.last.bytes_touched / found.read_bytes_per_s
    said = [engine.note] if engine.note else []
    said.append(
        f"a step reads {units.format_bytes(report.last.bytes_touched)}; at the {found.read_bytes_per_s / 1e9:.0f} GB/s "
        f"measured now that takes {units.format_seconds(floor)}: {floor / report.tpot_s:.0%} of the bandwidth reached"
    )
    if report.overhead_bytes is not None:
        said.append(f"peak beyond weights and cache: {units.format_bytes(report.overhead_bytes)}")
    said.append(
        "decode by " + ("captured graphs" if engine.captures else "steps of fixed shape, not captured")
    )
    return tuple(said)
