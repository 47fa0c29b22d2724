"""llama.cpp: `llama-server`. Defaults as of commit 0c1e57098 (common/arg.cpp, tools/server/README.md)."""

from __future__ import annotations

from estimators.deployment import Deployment, Settings
from modeldb.architectures import WITHOUT_GRAPH
from planner.engines.command import Command, Flag
from planner.engines.reference import Reference, gguf, hub

NAME, TITLE = "llama.cpp", "llama.cpp (llama-server)"
CONTAINERS = ("gguf",)
BACKENDS = ("cuda", "rocm", "metal", "vulkan", "sycl", "cpu")
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
DEFAULT_BATCH, DEFAULT_MICRO_BATCH = 2048, 512


def refuses(deployment: Deployment) -> str:
    """Why llama.cpp cannot run this, or ""."""
    if deployment.scheme.container not in CONTAINERS:
        return f"llama.cpp reads GGUF, not {deployment.scheme.container}"
    if not deployment.model.architecture:
        return f"llama.cpp has no architecture for {deployment.model.model_type}"
    if deployment.model.architecture in WITHOUT_GRAPH:
        return f"llama.cpp knows {deployment.model.architecture} by name only: it has no graph for it"
    if deployment.backend not in BACKENDS:
        return f"llama.cpp has no backend for {deployment.backend}"
    settings = deployment.settings
    for kv_type in (settings.kv_type_k, settings.kv_type_v):
        if kv_type not in KV_TYPES:
            return f"llama.cpp has no {kv_type} cache"
    if settings.kv_type_v not in ("f32", "f16", "bf16") and not settings.flash_attention:
        return "a quantized V cache needs flash attention"
    if deployment.placement.expert_parallel > 1 or deployment.placement.data_parallel > 1:
        return "llama.cpp splits by layer or by row, not by expert or replica"
    return ""


def _layers(deployment: Deployment) -> list[Flag]:
    placement = deployment.placement
    if deployment.backend == "cpu":
        return []
    if placement.n_gpu_layers is None:
        why = "every layer and the head on the GPU; also keeps auto-fit from moving any"
        return [Flag("-ngl", "all", why)]
    why = "as many layers as fit beside the cache; the rest run on the CPU"
    return [Flag("-ngl", str(placement.n_gpu_layers), why)]


def _split(deployment: Deployment) -> list[Flag]:
    devices = deployment.machine.devices
    if len(devices) < 2:
        return []
    if deployment.placement.tensor_parallel > 1:
        return [Flag("-sm", "row", "each matrix is split over the GPUs")]
    if deployment.placement.pipeline_parallel < 2:
        return [Flag("-sm", "none", "the model fits one GPU; splitting it would only add transfers")]
    sizes = [d.memory_bytes or 0 for d in devices]
    if len(set(sizes)) > 1:
        share = ",".join(f"{size / 2**30:.0f}" for size in sizes)
        return [Flag("-ts", share, "layers in proportion to each GPU's memory")]
    return []


def _cache(deployment: Deployment) -> list[Flag]:
    settings, flags = deployment.settings, []
    if settings.kv_type_k != "f16":
        flags.append(Flag("-ctk", settings.kv_type_k, "quantized keys shrink the cache"))
    if settings.kv_type_v != "f16":
        flags.append(Flag("-ctv", settings.kv_type_v, "quantized values shrink the cache"))
    if settings.kv_type_v not in ("f32", "f16", "bf16"):
        flags.append(Flag("-fa", "on", "a quantized V cache needs flash attention"))
    elif not settings.flash_attention:
        flags.append(Flag("-fa", "off", "priced without flash attention"))
    if settings.full_window_cache:
        flags.append(Flag("--swa-full", None, "keeps the whole context in windowed layers"))
    return flags


def _weights(deployment: Deployment, reference: Reference) -> Flag:
    if not reference.repository:
        return Flag("-m", reference.path, "the weights")
    return Flag("-hf", hub(reference.repository, deployment.scheme), "downloads once, then runs offline")


def _slots(context_tokens: int, users: int) -> list[Flag]:
    paid = "the context is what the cache is paid for"
    if users == 1:
        return [
            Flag("-c", str(context_tokens), f"{paid}; the default is the model's maximum"),
            Flag("-np", "1", "one slot per user; the default of 4 shares the context"),
        ]
    return [
        Flag("-c", str(context_tokens * users), f"{paid}: {users} slots of {context_tokens}"),
        Flag("-np", str(users), "one slot per user"),
    ]


def _experts(n_layers: int) -> list[Flag]:
    why = "experts of these layers stay in RAM; attention stays on the GPU"
    return [Flag("-ncmoe", str(n_layers), why)] if n_layers else []


def _batches(settings: Settings) -> list[Flag]:
    tokens = settings.micro_batch_tokens
    if tokens in (None, DEFAULT_MICRO_BATCH):
        return []
    flags = [Flag("-ub", str(tokens), "prompt tokens per step: faster prefill, larger compute buffer")]
    if (tokens or 0) > (settings.batch_tokens or DEFAULT_BATCH):
        flags.append(Flag("-b", str(tokens), "a batch holds at least one micro-batch"))
    return flags


def _threads(n_threads: int | None) -> list[Flag]:
    why = "one thread per physical core: decode is bound by memory, not by threads"
    return [Flag("-t", str(n_threads), why)] if n_threads else []


def command(deployment: Deployment) -> Command:
    """The llama-server line for this deployment."""
    reference, settings = gguf(deployment), deployment.settings
    flags = [
        _weights(deployment, reference),
        *_slots(settings.context_tokens, deployment.workload.n_sequences),
        *_layers(deployment),
        *_experts(deployment.placement.n_cpu_expert_layers),
        *_split(deployment),
        *_cache(deployment),
        *_batches(settings),
        *_threads(settings.n_threads),
    ]
    if deployment.model.modality == "embedding":
        flags.append(Flag("--embedding", None, "an embedding model answers /v1/embeddings only"))
    notes = (reference.note,) if reference.note else ()
    return Command(NAME, ("llama-server",), tuple(flags), prepare=reference.prepare, notes=notes)
