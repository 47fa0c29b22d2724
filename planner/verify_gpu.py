"""`plan verify --device cuda`: predictions beside what the PyTorch backend measures on a GPU.

Times are priced as gpt-fast's: the calibrated engine that, like this backend, replays CUDA graphs of PyTorch.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

from estimators import reference
from estimators.deployed_walk import known_walk
from estimators.deployment import Deployment, Settings, Workload
from planner import measure, measure_gpu, units, verify_counts
from planner.errors import EnvironmentFailed, UsageError
from planner.verification import Line, Verification, exact_lines
from planner.verify import Question, prompt_ids

if TYPE_CHECKING:
    from modeldb.model import Model
    from modeldb.scheme import Scheme
    from modeldb.tensor import Tensor
    from runner.torch_backend import TorchEngine
    from runner.torch_measure import GpuSurvey
    from runner.torch_meter import GpuReport

ENGINE = "gpt-fast"
ACTIVATION_SCALES = (".input_scale", ".k_scale", ".v_scale")
MEMORY_SHARE = 0.9  # of free memory, for weights and cache


def verify(q: Question, device: str, own_types: bool | None = None, **sizes: Any) -> Verification:
    """Run it whole on the device (`own_types`: see TorchEngine). Raises EnvironmentFailed without PyTorch or such a
    device, UsageError for a model that does not fit it (there is no sampled run on GPUs)."""
    found = measure_gpu.survey(device, quick=True, **sizes)
    machine = measure_gpu.with_device(measure.this_machine(), found)
    settings = Settings(context_tokens=q.n_context, kv_type_k=q.kv, kv_type_v=q.kv)
    backend: Any = found.backend if found.backend != "cpu" else "cuda"  # a processor is priced as measured
    model, scales = fp8_scales(q.model, q.scheme)
    d = Deployment(model, q.scheme, machine, ENGINE, backend, workload=Workload(q.n_prompt, q.n_decode),
                   settings=settings)  # fmt: skip
    n_tokens = q.n_prompt + q.n_decode
    want = _with_scales(reference.counts(d, n_tokens), d, scales)
    _fits(want, device)
    engine, report = _run(q, device, own_types)
    held = _held(engine, report)
    lines = (*exact_lines(want, held, n_tokens), *_modelled(d, report))
    notes = (*_notes(engine, found, report), *(f"price: as {ENGINE} on {d.machine.devices[0].name}",))
    remarks = (*found.conditions.remarks(), *report.remarks)
    if found.backend == "cpu":
        remarks += ("tensors of a processor, priced as a GPU's: their times say nothing",)
    engine.close()
    return Verification(q.subject, f"on {found.name}", lines, tuple(dict.fromkeys(remarks)), notes)


def fp8_scales(model: Model, scheme: Scheme) -> tuple[Model, dict[Tensor, int]]:
    """(the model as it is multiplied with, bytes of scales beside each FP8 matrix that its walk does not count).
    Checkpoints list scales as tensors of their own, schemes as fractions of a bit; activations get theirs anew."""
    from modeldb.schemes import assign
    from runner import float8

    if not model.file_tensors:
        scaled = ((t, f) for t, f in assign(scheme, model) if f.id in float8.SCALED)
        return model, {
            t: float8.scale_bytes(f.id, t.shape) + t.n_elements - f.n_bytes(t.shape) for t, f in scaled
        }
    beside = {
        t.name.removesuffix(".scales"): 4 * t.n_elements
        for t in model.file_tensors
        if t.name.endswith(".scales")
    }
    kept = tuple(t for t in model.file_tensors if not t.name.endswith((".scales", *ACTIVATION_SCALES)))
    found = {t: beside[stem] for t in kept if (stem := t.name.removesuffix(".weight")) in beside}
    return replace(model, file_tensors=kept), found


def _with_scales(want: reference.Counts, d: Deployment, scales: dict[Tensor, int]) -> reference.Counts:
    w = known_walk(d.model, d.scheme)
    share = w.experts_per_token / max(w.n_experts, 1)
    of, touched = dict(want.class_bytes), 0.0
    for t, size in scales.items():
        of[verify_counts.class_of(t.name, t.shape)] += size
        touched += size * (share if "_exps." in t.name else 1.0)
    return replace(want, class_bytes=tuple(of.items()), weight_bytes=want.weight_bytes + sum(scales.values()),
                   step_weight_bytes=want.step_weight_bytes + round(touched))  # fmt: skip


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


def _run(q: Question, device: str, own_types: bool | None) -> tuple[TorchEngine, GpuReport]:
    from runner import synthetic, torch_meter, weights
    from runner.errors import RunnerError
    from runner.torch_backend import TorchEngine

    held = weights.open_file(q.file, fp8=True) if q.file else synthetic.weights(q.model, q.scheme, fp8=True)
    try:
        engine = TorchEngine(held, q.n_context, device=device, cache_type=q.kv, packed=True, static=True,
                             own_types=own_types)  # fmt: skip
    except RunnerError as error:
        raise EnvironmentFailed(str(error), "plan verify without --device runs on the processor") from None
    return engine, torch_meter.run(engine, prompt_ids(q), q.n_decode)


def _held(engine: TorchEngine, report: GpuReport) -> dict[str, Any]:
    """What is compared to the byte: parameters, cache, and every class of tensors that the device holds in the file's
    bytes; where that is all of them, their sum and the step too."""
    tensors = engine.weights.tensors
    classes = dict.fromkeys(verify_counts.bytes_by_class(engine.weights), 0)
    changed = set()
    for name, size in engine.held_bytes.items():
        scale = tensors.get(f"{name}_scale")
        kind = verify_counts.class_of(name, tensors[name].shape)
        classes[kind] += size
        if size != tensors[name].data.nbytes + (4 * prod(scale.shape) if scale else 0):
            changed.add(kind)
    found: dict[str, Any] = {
        "allocated": engine.cache.allocated_bytes,
        "params": engine.meter.n_params,
        "classes": {kind: size for kind, size in classes.items() if kind not in changed},
    }
    return found if changed else {**found, "weights": engine.meter.weight_bytes, "step": report.last}


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
