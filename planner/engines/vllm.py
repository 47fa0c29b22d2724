"""vLLM: `vllm serve`. Defaults of the 0.1x releases (docs, configuration/engine_args)."""

from __future__ import annotations

from estimators.deployment import Deployment
from planner.engines.command import Command, Flag
from planner.engines.reference import plain, safetensors

NAME, TITLE = "vllm", "vLLM"
CONTAINERS = ("safetensors",)
BACKENDS = ("cuda", "rocm", "cpu", "hpu", "neuron", "sycl")
KV_TYPES = ("f16", "bf16", "fp8", "auto")
# its ChatGLM is the second and third (vllm-project/vllm#1261)
NO_PREFIX = "vLLM has no attention in which a prompt's tokens see those behind them (the first ChatGLM)"
MIN_CAPABILITY = 7.0  # CUDA compute capability that vLLM supports (docs, installation/gpu)


def capability(deployment: Deployment) -> float | None:
    """The lowest CUDA compute capability among the devices, e.g. 8.9, where known."""
    marks = [
        d.capability.removeprefix("sm_") for d in deployment.machine.devices if d.capability.startswith("sm_")
    ]
    numbers = [float(f"{m.rstrip('a')[:-1]}.{m.rstrip('a')[-1]}") for m in marks if m.rstrip("a").isdigit()]
    return min(numbers) if numbers else None


def _unequal(deployment: Deployment) -> bool:
    return len({d.memory_bytes for d in deployment.machine.devices}) > 1


def refuses(deployment: Deployment) -> str:
    """Why vLLM cannot run this, or ""."""
    scheme, placement, settings = deployment.scheme, deployment.placement, deployment.settings
    if scheme.container not in CONTAINERS:
        return f"vLLM serves safetensors well; {scheme.container} is for other engines"
    if deployment.backend not in BACKENDS:
        return f"vLLM has no backend for {deployment.backend}"
    if any(getattr(m, "prefixed", False) for b in deployment.model.blocks for m in b.mixers):
        return NO_PREFIX
    if placement.n_gpu_layers is not None or placement.n_cpu_expert_layers:
        return "vLLM wants all layers on the GPU"
    for kv_type in (settings.kv_type_k, settings.kv_type_v):
        if kv_type not in KV_TYPES:
            return f"vLLM has no {kv_type} cache"
    if placement.tensor_parallel > 1 and _unequal(deployment):
        return "tensor parallelism wants equal GPUs"
    heads = [
        m.n_heads for b in deployment.model.blocks for m in b.mixers if hasattr(m, "n_heads") and m.n_heads
    ]
    if any(n % placement.tensor_parallel for n in heads):
        return f"{heads[0]} heads do not divide by {placement.tensor_parallel}"
    level = capability(deployment)
    if deployment.backend == "cuda" and level is not None and level < MIN_CAPABILITY:
        return f"vLLM needs compute capability {MIN_CAPABILITY}, this GPU has {level}"
    if scheme.family == "nvfp4" and level is not None and level < 10:
        return "NVFP4 kernels need a Blackwell GPU"
    return ""


def _parallel(deployment: Deployment) -> list[Flag]:
    placement, flags = deployment.placement, []
    if placement.tensor_parallel > 1:
        flags.append(
            Flag(
                "--tensor-parallel-size",
                str(placement.tensor_parallel),
                "each tensor is split over these GPUs",
            )
        )
    if placement.pipeline_parallel > 1:
        flags.append(
            Flag(
                "--pipeline-parallel-size",
                str(placement.pipeline_parallel),
                "layers are split over these GPUs",
            )
        )
    if placement.data_parallel > 1:
        flags.append(
            Flag(
                "--data-parallel-size",
                str(placement.data_parallel),
                "attention is repeated, requests are split",
            )
        )
    if placement.expert_parallel > 1:
        flags.append(
            Flag("--enable-expert-parallel", None, "whole experts per GPU instead of slices of each")
        )
    return flags


def command(deployment: Deployment) -> Command:
    """The `vllm serve` line for this deployment."""
    reference, settings, workload = safetensors(deployment), deployment.settings, deployment.workload
    flags = [
        Flag(
            "--max-model-len",
            str(settings.context_tokens),
            "the default is the model's maximum, which may not fit",
        )
    ]
    flags.append(Flag("--max-num-seqs", str(workload.n_sequences), "no more requests at once than priced"))
    program = reference.repository or reference.path
    if reference.note and deployment.scheme.family == "fp8":
        program = plain(deployment.model)
        flags.append(Flag("--quantization", "fp8", "quantizes the 16-bit weights while loading"))
    if settings.kv_type_k == "fp8":
        flags.append(Flag("--kv-cache-dtype", "fp8", "halves the cache"))
    if settings.batch_tokens:
        flags.append(Flag("--max-num-batched-tokens", str(settings.batch_tokens), "prompt tokens per step"))
    if settings.memory_fraction:
        flags.append(
            Flag(
                "--gpu-memory-utilization",
                f"{settings.memory_fraction:g}",
                "share of total GPU memory for this instance",
            )
        )
    if settings.eager:
        flags.append(Flag("--enforce-eager", None, "no CUDA graphs: less memory, slower decode"))
    flags += _parallel(deployment)
    flags.append(Flag("--host", "127.0.0.1", "the default listens on every interface"))
    notes = () if program == plain(deployment.model) or not reference.note else (reference.note,)
    return Command(NAME, ("vllm", "serve", program), tuple(flags), prepare=reference.prepare, notes=notes)
