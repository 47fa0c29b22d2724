"""TensorRT-LLM: `trtllm-serve`, PyTorch backend. Its cache fraction is of what is free after the weights."""

from __future__ import annotations

from estimators.deployment import Deployment
from planner.engines import vllm
from planner.engines.command import Command, Flag
from planner.engines.reference import safetensors

NAME, TITLE = "trt-llm", "TensorRT-LLM"
CONTAINERS = ("safetensors", "trt")
BACKENDS = ("cuda",)
DEFAULT_FREE_FRACTION = 0.9  # kv_cache_free_gpu_memory_fraction (trtllm-serve --help)
MIN_CAPABILITY = 8.0  # Ampere (support matrix)


def refuses(deployment: Deployment) -> str:
    """Why TensorRT-LLM cannot run this, or ""."""
    if deployment.backend not in BACKENDS:
        return "TensorRT-LLM runs on NVIDIA GPUs only"
    level = vllm.capability(deployment)
    if level is not None and level < MIN_CAPABILITY:
        return f"TensorRT-LLM needs compute capability {MIN_CAPABILITY}, this GPU has {level}"
    return vllm.refuses(deployment).replace("vLLM", "TensorRT-LLM")


def command(deployment: Deployment) -> Command:
    """The `trtllm-serve` line for this deployment, and its options file when one is needed."""
    reference, settings, placement = safetensors(deployment), deployment.settings, deployment.placement
    flags = [Flag("--max_seq_len", str(settings.context_tokens), "the default is the model's maximum")]
    flags.append(
        Flag("--max_batch_size", str(deployment.workload.n_sequences), "no more requests at once than priced")
    )
    for name, count in (
        ("--tp_size", placement.tensor_parallel),
        ("--pp_size", placement.pipeline_parallel),
        ("--ep_size", placement.expert_parallel),
    ):
        if count > 1:
            flags.append(Flag(name, str(count), "split over GPUs as priced"))
    if settings.batch_tokens:
        flags.append(Flag("--max_num_tokens", str(settings.batch_tokens), "tokens per step"))
    if settings.memory_fraction and settings.memory_fraction != DEFAULT_FREE_FRACTION:
        flags.append(
            Flag(
                "--kv_cache_free_gpu_memory_fraction",
                f"{settings.memory_fraction:g}",
                "share of what is free after weights and buffers",
            )
        )
    files: tuple[tuple[str, str], ...] = ()
    if settings.kv_type_k == "fp8":
        files = (("options.yaml", "kv_cache_config:\n  dtype: fp8\n"),)
        flags.append(
            Flag("--extra_llm_api_options", "options.yaml", "an FP8 cache is set in the options file")
        )
    notes = (reference.note,) if reference.note else ()
    program = ("trtllm-serve", reference.repository or reference.path)
    return Command(NAME, program, tuple(flags), files=files, prepare=reference.prepare, notes=notes)
