"""Placement that a row leaves open: llama.cpp and its kin put on the accelerator what fits."""

from __future__ import annotations

from dataclasses import replace

from estimators.deployment import Deployment
from hwdb.device import Machine
from planner import labels, names
from planner.asks import Ask

#: Kept free on each accelerator: a context, compute buffers and llama.cpp's margin (`--fit-target`, 1 GiB).
RESERVE_BYTES = 1.0 * 2**30
#: llama.cpp keeps experts apart from their layers since tensor overrides (ggml-org/llama.cpp#11397); Ollama does not.
OVERRIDES_YEAR = 2025.25


def splits_experts(engine: str, year: float | None) -> bool:
    """Whether this build can leave experts on the host and keep the rest of their layers on the accelerator."""
    return engine != "ollama" and (engine != "llama.cpp" or year is None or year >= OVERRIDES_YEAR)


def settled(ask: Ask) -> Ask:
    """The ask with its placement settled: as stated, or what fits where the row does not say.

    Dense models keep whole layers on the accelerators; experts go to the host first (`--n-cpu-moe`), as in
    llama.cpp's automatic fit, where the build can tell them from their layers.
    """
    deployment = ask.deployment
    placement = deployment.placement
    unknown = placement.n_cpu_expert_layers < 0
    if deployment.backend == "cpu" or not deployment.machine.devices:
        return ask
    if not unknown and (placement.n_gpu_layers is not None or placement.n_cpu_expert_layers > 0):
        return ask
    if labels.container(deployment.engine) != "gguf" or deployment.machine.devices[0].unified_memory:
        return replace(ask, deployment=_without_host(deployment))
    fitted = _fitted(deployment)
    flags = dict.fromkeys(flag for flag in ask.flags if flag not in ("offloaded", "assumed-host"))
    if fitted.placement.n_gpu_layers is not None or fitted.placement.n_cpu_expert_layers:
        flags["spilled"] = None
        host = fitted.machine.host
        if host is None or host.basis == "assumed":
            flags["assumed-host"] = None
    return replace(ask, deployment=fitted, flags=tuple(flags))


def _fitted(deployment: Deployment) -> Deployment:
    from estimators.deployed_walk import corrected, known_walk
    from estimators.observation import kv_bytes

    placement = deployment.placement
    held = [device.memory_bytes for device in deployment.machine.devices]
    if any(size is None for size in held):
        return _without_host(deployment)
    walk = corrected(known_walk(deployment.model, deployment.scheme), deployment.settings.weights_bytes)
    settings = deployment.settings
    k, v = kv_bytes(settings.kv_type_k), kv_bytes(settings.kv_type_v)
    context, users = settings.context_tokens, deployment.workload.n_sequences
    cache = (walk.kv_k_full * k + walk.kv_v_full * v) * context * users
    near = min(context, walk.window_tokens + 512) if walk.window_tokens else 0
    cache += (walk.kv_k_window * k + walk.kv_v_window * v) * near * users + 4 * walk.state_elements * users
    on_device = walk.total_bytes - walk.tower_bytes - (0 if walk.tied else walk.embedding_bytes)
    room = sum(size or 0 for size in held) - RESERVE_BYTES * len(held)
    excess = on_device + cache - room
    if excess <= 0:
        return _without_host(deployment)
    apart = splits_experts(deployment.engine, settings.year)
    if apart and walk.n_moe_layers and walk.expert_bytes > 0:
        layers = min(walk.n_moe_layers, -(-excess // (walk.expert_bytes / walk.n_moe_layers)))
        placement = replace(placement, n_cpu_expert_layers=int(layers))
    else:
        per_layer = (on_device - walk.head_bytes + cache) / max(walk.n_layers, 1)
        layers = max(0, int((room - walk.head_bytes) // per_layer))
        placement = replace(placement, n_gpu_layers=min(layers, int(walk.n_layers)), n_cpu_expert_layers=0)
    return deployment.with_(placement=placement, machine=_with_host(deployment.machine))


def _without_host(deployment: Deployment) -> Deployment:
    if deployment.placement.n_cpu_expert_layers >= 0:
        return deployment
    return deployment.with_(placement=replace(deployment.placement, n_cpu_expert_layers=0))


def _with_host(machine: Machine) -> Machine:
    """The machine with some host, when nobody described one."""
    if machine.host is not None:
        return machine
    found, size, _ = names.host("")
    return replace(machine, host=found, host_memory_bytes=machine.host_memory_bytes or size)
