"""Text Generation Inference: in maintenance; its own docs point to vLLM, SGLang, llama.cpp and MLX."""

from __future__ import annotations

from estimators.deployment import Deployment
from planner.engines import vllm
from planner.engines.command import Command, Flag
from planner.engines.reference import plain, safetensors

NAME, TITLE = "tgi", "Text Generation Inference"
CONTAINERS = ("safetensors",)
BACKENDS = ("cuda", "rocm", "hpu")
QUANTIZE = {"awq": "awq", "gptq": "gptq", "fp8": "fp8", "nf4": "bitsandbytes-nf4", "int8": "bitsandbytes"}


def refuses(deployment: Deployment) -> str:
    """Why TGI cannot run this, or ""."""
    if deployment.backend not in BACKENDS:
        return f"TGI has no backend for {deployment.backend}"
    if deployment.placement.pipeline_parallel > 1:
        return "TGI splits tensors, not layers"
    return vllm.refuses(deployment).replace("vLLM", "TGI")


def command(deployment: Deployment) -> Command:
    """The launcher's line for this deployment."""
    reference, settings = safetensors(deployment), deployment.settings
    online = deployment.scheme.family in ("fp8", "nf4", "int8") and reference.note
    path = plain(deployment.model) if online else reference.repository or reference.path
    flags = [Flag("--model-id", path, "the weights")]
    if deployment.scheme.family in QUANTIZE:
        flags.append(Flag("--quantize", QUANTIZE[deployment.scheme.family], "the kernels of this format"))
    if deployment.placement.tensor_parallel > 1:
        flags.append(
            Flag(
                "--num-shard",
                str(deployment.placement.tensor_parallel),
                "each tensor is split over these GPUs",
            )
        )
    flags.append(Flag("--max-total-tokens", str(settings.context_tokens), "prompt and answer together"))
    flags.append(
        Flag(
            "--max-input-tokens",
            str(settings.context_tokens - deployment.workload.output_tokens),
            "leaves room for the answer",
        )
    )
    flags.append(
        Flag(
            "--max-concurrent-requests",
            str(deployment.workload.n_sequences),
            "no more requests at once than priced",
        )
    )
    if settings.kv_type_k == "fp8":
        flags.append(Flag("--kv-cache-dtype", "fp8_e4m3fn", "halves the cache"))
    flags.append(Flag("--port", "8080", "the launcher's default is 3000"))
    notes = ("TGI is in maintenance mode: prefer vLLM or SGLang for a new service",)
    return Command(NAME, ("text-generation-launcher",), tuple(flags), prepare=reference.prepare, notes=notes)
