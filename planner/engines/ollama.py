"""Ollama: a Modelfile and two commands. Defaults from its FAQ and `server/routes.go`."""

from __future__ import annotations

from estimators.deployment import Deployment
from planner.engines import llamacpp
from planner.engines.command import Command, Variable
from planner.engines.reference import gguf, hub, label, stem

NAME, TITLE = "ollama", "Ollama"
CONTAINERS = ("gguf",)
BACKENDS = ("cuda", "rocm", "metal", "vulkan", "cpu")
KV_TYPES = ("f16", "q8_0", "q4_0")


def refuses(deployment: Deployment) -> str:
    """Why Ollama cannot run this, or ""."""
    settings = deployment.settings
    if settings.kv_type_k != settings.kv_type_v:
        return "Ollama has one cache type for keys and values"
    if settings.kv_type_k not in KV_TYPES:
        return f"Ollama has no {settings.kv_type_k} cache (f16, q8_0, q4_0)"
    if deployment.placement.n_cpu_expert_layers:
        return "Ollama cannot keep only the experts in RAM"
    if deployment.placement.tensor_parallel > 1:
        return "Ollama does not split tensors over GPUs"
    if deployment.backend not in BACKENDS:
        return f"Ollama has no backend for {deployment.backend}"
    return llamacpp.refuses(deployment)


def _source(deployment: Deployment) -> tuple[str, tuple[tuple[str, ...], ...], tuple[str, ...]]:
    model, quant = deployment.model, label(deployment.scheme)
    reference = gguf(deployment)
    if model.ollama_tag and quant == "Q4_K_M" and not model.file_tensors:
        return model.ollama_tag, (), ("check with `ollama show` that the tag is Q4_K_M: tags can move",)
    if reference.repository:
        return f"hf.co/{hub(reference.repository, deployment.scheme)}", (), ()
    return f"./{reference.path}", reference.prepare, (reference.note,) if reference.note else ()


def command(deployment: Deployment) -> Command:
    """A Modelfile, `ollama create` before, `ollama run` now, and the server's environment."""
    source, prepare, notes = _source(deployment)
    settings, workload = deployment.settings, deployment.workload
    name = f"{stem(deployment.model).lower()}-{settings.context_tokens // 1024}k"
    lines = [f"FROM {source}", f"PARAMETER num_ctx {settings.context_tokens}"]
    if deployment.placement.n_gpu_layers is not None:
        lines.append(f"PARAMETER num_gpu {deployment.placement.n_gpu_layers}")
    environment = []
    if settings.kv_type_k != "f16":
        environment = [
            Variable(
                "OLLAMA_FLASH_ATTENTION", "1", "a quantized cache needs it; set it where `ollama serve` runs"
            ),
            Variable("OLLAMA_KV_CACHE_TYPE", settings.kv_type_k, "holds for every model of that server"),
        ]
    if workload.n_sequences > 1:
        environment.append(
            Variable(
                "OLLAMA_NUM_PARALLEL", str(workload.n_sequences), "the default is 1; the cache grows with it"
            )
        )
    prepare += (("ollama", "create", name, "-f", "Modelfile"),)
    return Command(
        NAME,
        ("ollama", "run", name),
        (),
        tuple(environment),
        (("Modelfile", "\n".join(lines) + "\n"),),
        prepare,
        notes,
    )
