"""From one item of a spec to the Deployment it describes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from estimators.deployment import Deployment
from hwdb.device import Machine
from hwdb.errors import HardwareError
from modeldb.errors import ModelError, UnknownScheme
from modeldb.layers import Experts
from modeldb.model import Model
from modeldb.scheme import Scheme
from planner import deploy

if TYPE_CHECKING:
    from planner.spec import DeploymentSpec, MachineSpec, SettingsSpec


def _machine(spec: MachineSpec, folder: Path) -> Machine:
    if spec.file is not None:
        from hwdb.machine_file import read

        return read(folder / spec.file)
    from hwdb.describe import machine

    gpus = (spec.gpu,) if isinstance(spec.gpu, str) else tuple(spec.gpu or ())
    return machine(gpus=gpus, memory_bytes=spec.vram, host_memory_bytes=spec.ram, cpu=spec.cpu)


def _model(spec: DeploymentSpec) -> tuple[Model, Scheme]:
    from modeldb import catalogue, readers, schemes
    from planner import stock

    item = spec.item
    if item.path is not None:
        model, scheme = readers.read(str(spec.folder / item.path), offline=True)
    else:
        model = catalogue.load().resolve(item.model or "")
        scheme = schemes.get(model.native_dtype)
    if not item.quant:
        return model, scheme
    wanted = schemes.get(item.quant)
    if not model.file_tensors:
        return model, wanted
    stock.check_stored(str(item.path), scheme, (wanted,))
    return model, scheme


def _wish(spec: DeploymentSpec, model: Model) -> deploy.Wish:
    settings: SettingsSpec = spec.item.settings
    workload = spec.item.workload
    experts = settings.cpu_experts
    if experts == "all":
        experts = sum(any(isinstance(f, Experts) for f in block.feed_forwards) for block in model.blocks)
    kv_type = settings.kv or "f16"
    return deploy.Wish(
        engine=spec.item.engine,
        context_tokens=settings.context,
        prompt_tokens=workload.prompt,
        output_tokens=workload.output,
        users=workload.users,
        kv_type_k=settings.kv_k or kv_type,
        kv_type_v=settings.kv_v or kv_type,
        n_gpu_layers=settings.gpu_layers,
        n_cpu_expert_layers=int(experts),
        tensor_parallel=settings.tensor_parallel,
        pipeline_parallel=settings.pipeline_parallel,
        expert_parallel=settings.expert_parallel,
        data_parallel=settings.data_parallel,
        flash_attention=settings.flash_attention,
        micro_batch_tokens=settings.micro_batch,
        n_threads=settings.threads,
        memory_fraction=settings.memory_fraction,
        eager=settings.eager,
    )


def build(spec: DeploymentSpec) -> Deployment:
    """The Deployment of `spec`. A name nobody knows is a SpecError at its line."""
    from planner.errors import UnknownName, UsageError
    from planner.spec import SpecError

    here: tuple[str | int, ...] = ("deployments", spec.index)
    try:
        machine = _machine(spec.machine_spec, spec.folder)
    except HardwareError as error:
        line, column = spec.lines.at((*here, "machine"), ("machine",), here)
        raise SpecError(f"{spec.file}:{line}:{column}: {error}", "plan hw") from None
    try:
        model, scheme = _model(spec)
    except (ModelError, OSError, UsageError) as error:
        names = ("quant",) if isinstance(error, UnknownScheme | UsageError) else ("path", "model")
        line, column = spec.lines.at(*((*here, name) for name in names), here)
        raise SpecError(f"{spec.file}:{line}:{column}: {error}", "plan models") from None
    wish = _wish(spec, model)
    if wish.engine is not None:
        from planner import engines

        try:
            engines.get(wish.engine)
        except UnknownName as error:
            line, column = spec.lines.at((*here, "engine"), here)
            raise SpecError(f"{spec.file}:{line}:{column}: {error.message}", error.hint) from None
    return deploy.deployment(model, scheme, machine, wish)
