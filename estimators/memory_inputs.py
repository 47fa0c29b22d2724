"""What a bill depends on, and where the layers go: the devices of a placement with their share of the layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from estimators import llamacpp_memory as llamacpp
from estimators.engine_memory import LLAMACPP, TRANSFORMERS
from estimators.walk import Number, Walk
from hwdb.device import Device, Machine

EXACT_WIDTH = 0.03  # of compute buffers replayed from a graph that was compared with llama.cpp's


@dataclass(frozen=True)
class Inputs:
    """Everything that a bill depends on. Walk fields and counts may be arrays; the rest is one for all."""

    walk: Walk
    engine: str
    backend: str
    machine: Machine
    context_tokens: Number = 4096
    prompt_tokens: Number = 512
    n_sequences: Number = 1
    kv_k_bytes: Number = 2.0
    kv_v_bytes: Number = 2.0
    n_gpu_layers: Number = -1  # < 0: all of them, and the head
    n_cpu_expert_layers: Number = 0
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    expert_parallel: int = 1
    data_parallel: int = 1
    flash_attention: bool = True
    micro_batch_tokens: int = llamacpp.MICRO_BATCH_TOKENS
    batch_tokens: int | None = None
    n_outputs: Number | None = 1
    unified: bool = True
    full_window_cache: bool = False
    eager: bool = False
    year: float | None = None
    memory_fraction: float | None = None
    compute_bytes: Number | None = None  # replayed; None: the closed form
    inner_compute_bytes: Number | None = None  # the same without logits
    host_compute_bytes: Number | None = None  # beside accelerators; None: the graph's inputs
    compute_width: float = EXACT_WIDTH  # of the replayed buffer, each way
    family: str = ""  # of the scheme
    max_context: int | None = None

    @property
    def on_gpu(self) -> bool:
        return bool(self.machine.devices) and self.backend != "cpu"

    @property
    def gguf(self) -> bool:
        return self.engine in LLAMACPP


@dataclass(frozen=True, slots=True)
class Stage:
    """What one device holds of the layers: from `start` to `end` as shares of all, split `ranks` ways."""

    index: int
    device: Device
    start: Number
    end: Number
    first: bool
    last: bool
    ranks: int


def gpu_layers(x: Inputs) -> tuple[Number, Number]:
    """(layers on the accelerators, 1 where the head is there too)."""
    if np.ndim(x.n_gpu_layers) == 0 and float(x.n_gpu_layers) < 0:
        return x.walk.n_layers, 1.0
    everything = x.walk.n_layers + 1
    wanted = np.where(np.asarray(x.n_gpu_layers) < 0, everything, np.minimum(x.n_gpu_layers, everything))
    return np.minimum(wanted, x.walk.n_layers), (wanted > x.walk.n_layers) * 1.0


def stages(x: Inputs) -> list[Stage]:
    """The devices with the layers that each takes.

    Layers are dealt in order, in proportion to memory where the engine splits layers over unequal devices
    (llama.cpp's rule, the head counting as one layer), evenly otherwise.
    """
    n, ranks = max(1, x.pipeline_parallel), max(1, x.tensor_parallel)
    devices = _devices(x.machine, n * ranks * max(1, x.data_parallel))
    sizes = [float(devices[i * ranks].memory_bytes or 1) for i in range(n)]
    weights = sizes if x.gguf or x.engine in TRANSFORMERS else [1.0] * n
    layers, head = gpu_layers(x)
    items, total = layers + head, sum(weights)
    made, before, share = [], 0.0, 0.0
    for i in range(n):
        share += weights[i] / total
        cut = np.ceil(items * min(share, 1.0) - 1e-9) if i < n - 1 else items
        start, end = np.minimum(before, layers), np.minimum(cut, layers)
        offset = x.walk.n_layers - layers
        made.append(
            Stage(i, devices[i * ranks], (offset + start) / x.walk.n_layers, (offset + end) / x.walk.n_layers,
                  i == 0, i == n - 1, ranks)
        )  # fmt: skip
        before = cut
    return made


def _devices(machine: Machine, count: int) -> Sequence[Device]:
    known = machine.devices
    return [known[min(i, len(known) - 1)] for i in range(count)]


def expert_share(x: Inputs, start: Number, end: Number) -> Number:
    """Share of all routed experts between two points, less those that stay on the host."""
    on_host = np.minimum(x.n_cpu_expert_layers / np.maximum(x.walk.n_moe_layers, 1), 1.0)
    return np.maximum(end - np.maximum(start, on_host), 0.0)
