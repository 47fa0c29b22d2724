"""ktransformers: attention on the GPU, experts on the CPU, through its SGLang fork (`--kt-*` flags)."""

from __future__ import annotations

from estimators.deployment import Deployment
from planner.engines import sglang
from planner.engines.command import Command, Flag
from planner.engines.reference import safetensors

NAME, TITLE = "ktransformers", "ktransformers"
CONTAINERS = ("safetensors",)
BACKENDS = ("cuda",)
METHODS = {"bf16": "BF16", "fp8": "FP8", "int4": "RAWINT4"}


def refuses(deployment: Deployment) -> str:
    """Why ktransformers cannot run this, or ""."""
    if deployment.backend not in BACKENDS:
        return "ktransformers needs an NVIDIA GPU beside the CPU"
    if not deployment.placement.n_cpu_expert_layers:
        return "ktransformers is for MoE models with experts in RAM"
    if deployment.scheme.family not in METHODS:
        return f"ktransformers has no CPU kernels for {deployment.scheme.id} (BF16, FP8, native INT4)"
    return ""


def command(deployment: Deployment) -> Command:
    """The SGLang line with the experts' flags."""
    reference, host = safetensors(deployment), deployment.machine.host
    path = reference.repository or reference.path
    flags = [
        Flag("--model-path", path, "the weights"),
        Flag("--kt-weight-path", path, "the experts' weights for the CPU"),
    ]
    flags.append(Flag("--kt-method", METHODS[deployment.scheme.family], "the CPU kernels of this format"))
    if host is not None and host.cpu_cores:
        flags.append(
            Flag("--kt-cpuinfer", str(max(1, host.cpu_cores * 9 // 10)), "about nine tenths of the cores")
        )
    flags.append(Flag("--kt-num-gpu-experts", "0", "all routed experts stay in RAM, as priced"))
    notes = ("set --kt-threadpool-count to the number of NUMA nodes",) + (
        (reference.note,) if reference.note else ()
    )
    program = ("python", "-m", "sglang.launch_server")
    return Command(
        NAME, program, (*flags, *sglang.flags_of(deployment)), prepare=reference.prepare, notes=notes
    )
