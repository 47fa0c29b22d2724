"""SGLang: `python -m sglang.launch_server`. Defaults: its server-arguments page; binds to 127.0.0.1."""

from __future__ import annotations

from estimators.deployment import Deployment
from planner.engines import vllm
from planner.engines.command import Command, Flag
from planner.engines.reference import plain, safetensors

NAME, TITLE = "sglang", "SGLang"
CONTAINERS = ("safetensors",)
BACKENDS = ("cuda", "rocm")


def refuses(deployment: Deployment) -> str:
    """Why SGLang cannot run this, or ""."""
    if deployment.backend not in BACKENDS:
        return f"SGLang has no backend for {deployment.backend}"
    return vllm.refuses(deployment).replace("vLLM", "SGLang")


def flags_of(deployment: Deployment) -> list[Flag]:
    """Flags that SGLang and its ktransformers fork share, beyond the model."""
    settings, placement, workload = deployment.settings, deployment.placement, deployment.workload
    flags = [Flag("--context-length", str(settings.context_tokens), "the default is the model's maximum")]
    flags.append(
        Flag("--max-running-requests", str(workload.n_sequences), "no more requests at once than priced")
    )
    if settings.kv_type_k == "fp8":
        flags.append(Flag("--kv-cache-dtype", "fp8_e4m3", "halves the cache"))
    if settings.batch_tokens:
        flags.append(Flag("--chunked-prefill-size", str(settings.batch_tokens), "prompt tokens per step"))
    if settings.memory_fraction:
        flags.append(
            Flag(
                "--mem-fraction-static",
                f"{settings.memory_fraction:g}",
                "share of total memory for weights and cache; the rest is activations and graphs",
            )
        )
    for name, count in (
        ("--tp", placement.tensor_parallel),
        ("--pp", placement.pipeline_parallel),
        ("--dp", placement.data_parallel),
        ("--ep", placement.expert_parallel),
    ):
        if count > 1:
            flags.append(Flag(name, str(count), "split over GPUs as priced"))
    if placement.data_parallel > 1:
        flags.append(Flag("--enable-dp-attention", None, "attention is repeated, experts are shared"))
    if settings.eager:
        flags.append(Flag("--disable-cuda-graph", None, "less memory, slower decode"))
    return flags


def command(deployment: Deployment) -> Command:
    """The SGLang line for this deployment."""
    reference = safetensors(deployment)
    path = reference.repository or reference.path
    extra: list[Flag] = []
    if reference.note and deployment.scheme.family == "fp8":
        path, extra = (
            plain(deployment.model),
            [Flag("--quantization", "fp8", "quantizes the 16-bit weights while loading")],
        )
    flags = [Flag("--model-path", path, "the weights"), *extra, *flags_of(deployment)]
    notes = () if path == plain(deployment.model) or not reference.note else (reference.note,)
    return Command(
        NAME, ("python", "-m", "sglang.launch_server"), tuple(flags), prepare=reference.prepare, notes=notes
    )
