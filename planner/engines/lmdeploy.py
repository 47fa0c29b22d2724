"""LMDeploy: `lmdeploy serve api_server`. Cache fraction: of what is free beside the weights (0.8)."""

from __future__ import annotations

from estimators.deployment import Deployment
from planner.engines import vllm
from planner.engines.command import Command, Flag
from planner.engines.reference import safetensors

NAME, TITLE = "lmdeploy", "LMDeploy"
CONTAINERS = ("safetensors",)
BACKENDS = ("cuda", "cann")
CACHE_POLICY = {"f16": "", "bf16": "", "auto": "", "int8": "8", "int4": "4"}
FORMATS = {"awq": "awq", "gptq": "gptq", "fp8": "fp8"}


def refuses(deployment: Deployment) -> str:
    """Why LMDeploy cannot run this, or ""."""
    if deployment.backend not in BACKENDS:
        return f"LMDeploy has no backend for {deployment.backend}"
    if deployment.settings.kv_type_k not in CACHE_POLICY:
        return f"LMDeploy has no {deployment.settings.kv_type_k} cache (f16, int8, int4)"
    if deployment.placement.pipeline_parallel > 1:
        return "LMDeploy splits tensors, not layers"
    plain = deployment.with_(settings=_plain(deployment), backend="cuda")  # its backends were checked above
    return vllm.refuses(plain).replace("vLLM", "LMDeploy")


def _plain(deployment: Deployment):  # type: ignore[no-untyped-def]
    from dataclasses import replace

    return replace(deployment.settings, kv_type_k="f16", kv_type_v="f16")


def command(deployment: Deployment) -> Command:
    """The api_server line for this deployment."""
    reference, settings = safetensors(deployment), deployment.settings
    flags = [Flag("--session-len", str(settings.context_tokens), "the longest sequence")]
    flags.append(
        Flag("--max-batch-size", str(deployment.workload.n_sequences), "no more requests at once than priced")
    )
    if deployment.placement.tensor_parallel > 1:
        flags.append(
            Flag("--tp", str(deployment.placement.tensor_parallel), "each tensor is split over these GPUs")
        )
    if deployment.scheme.family in FORMATS:
        flags.append(Flag("--model-format", FORMATS[deployment.scheme.family], "the kernels of this format"))
    if CACHE_POLICY[settings.kv_type_k]:
        flags.append(Flag("--quant-policy", CACHE_POLICY[settings.kv_type_k], "bits of the cache"))
    if settings.memory_fraction:
        flags.append(
            Flag(
                "--cache-max-entry-count",
                f"{settings.memory_fraction:g}",
                "share of memory free beside the weights",
            )
        )
    flags.append(Flag("--server-name", "127.0.0.1", "the default listens on every interface"))
    notes = (reference.note,) if reference.note else ()
    program = ("lmdeploy", "serve", "api_server", reference.repository or reference.path)
    return Command(NAME, program, tuple(flags), prepare=reference.prepare, notes=notes)
