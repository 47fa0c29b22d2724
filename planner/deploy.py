"""From names to one Deployment: the backend a machine implies, engine defaults, the settings asked for."""

from __future__ import annotations

from dataclasses import dataclass

from estimators.deployment import Backend, Deployment, Placement, Settings, Workload
from hwdb.device import Machine
from modeldb.model import Model
from modeldb.scheme import Scheme

VENDOR_BACKENDS: dict[str, Backend] = {
    "nvidia": "cuda",
    "amd": "rocm",
    "apple": "metal",
    "intel": "sycl",
    "aws": "neuron",
    "huawei": "cann",
    "qualcomm": "vulkan",
    "broadcom": "vulkan",
    "rockchip": "vulkan",
}


def backend_of(machine: Machine) -> Backend:
    """The backend that the machine's first accelerator implies; `cpu` when there is none."""
    accelerators = [d for d in machine.devices if d.kind != "cpu"]
    if not accelerators:
        return "cpu"
    first = accelerators[0]
    if first.kind == "accelerator" and first.vendor.lower() == "intel":
        return "hpu"  # Gaudi, which none of the GPU backends drives
    return VENDOR_BACKENDS.get(first.vendor.lower(), "other")


def default_engine(scheme: Scheme, backend: Backend) -> str:
    """The engine people run this container with: MLX for MLX files, llama.cpp for GGUF, vLLM for the rest."""
    if scheme.container == "mlx":
        return "mlx"
    if scheme.container == "gguf":
        return "llama.cpp"
    if scheme.container == "exl":
        return "exllamav2"
    if scheme.container == "trt":
        return "trt-llm"
    return "mlx" if backend == "metal" else "vllm"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person or a spec says about one deployment beyond model, scheme and machine. None: not said."""

    engine: str | None = None
    backend: Backend | None = None
    context_tokens: int = 4096
    prompt_tokens: int = 512
    output_tokens: int = 256
    users: int = 1
    kv_type_k: str = "f16"
    kv_type_v: str = "f16"
    n_gpu_layers: int | None = None
    n_cpu_expert_layers: int = 0
    tensor_parallel: int = 1
    pipeline_parallel: int | None = None
    expert_parallel: int = 1
    data_parallel: int = 1
    flash_attention: bool = True
    micro_batch_tokens: int | None = None
    n_threads: int | None = None
    memory_fraction: float | None = None
    eager: bool = False


def deployment(model: Model, scheme: Scheme, machine: Machine, wish: Wish) -> Deployment:
    """The deployment that `wish` describes; over several devices layers are split by default."""
    backend = wish.backend or backend_of(machine)
    engine = wish.engine or default_engine(scheme, backend)
    spare = len(machine.devices) // max(1, wish.tensor_parallel)
    pipeline = wish.pipeline_parallel if wish.pipeline_parallel is not None else max(1, spare)
    placement = Placement(
        n_gpu_layers=0 if backend == "cpu" else wish.n_gpu_layers,
        n_cpu_expert_layers=wish.n_cpu_expert_layers,
        tensor_parallel=wish.tensor_parallel,
        pipeline_parallel=pipeline,
        expert_parallel=wish.expert_parallel,
        data_parallel=wish.data_parallel,
    )
    workload = Workload(
        wish.prompt_tokens,
        wish.output_tokens,
        n_sequences=wish.users,
        client="closed" if wish.users > 1 else "static",
    )
    settings = Settings(
        context_tokens=wish.context_tokens,
        kv_type_k=wish.kv_type_k,
        kv_type_v=wish.kv_type_v,
        flash_attention=wish.flash_attention,
        micro_batch_tokens=wish.micro_batch_tokens,
        eager=wish.eager,
        n_threads=wish.n_threads,
        memory_fraction=wish.memory_fraction,
    )
    return Deployment(model, scheme, machine, engine, backend, placement, workload, settings)
