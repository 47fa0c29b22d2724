"""The host's share of a deployment split between accelerators and a CPU: what its cores reach then, and
what crosses the link.

Decode: layers or experts on the host are read at the host's bandwidth, one socket's in full and a share of
the second one's; each layer whose experts are on the host hands its activations over and back. Prefill:
the host multiplies what it holds, or the engine copies the weights over PCIe once per micro-batch and
multiplies them on the accelerator: llama.cpp for micro-batches of at least 32 tokens, KTransformers since
its SGLang integration where that is faster. Weights repacked for the CPU stay there.

`estimators/data/host.json` holds the values, fitted by `benchmarks/fit_host.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from estimators import formats
from estimators.walk import Number
from hwdb.device import Device

DATA = Path(__file__).parent / "data" / "host.json"

STREAM_TOKENS = 32  # llama.cpp: CUDA, HIP and Vulkan take products of at least this many tokens (offload_op)
LAYERWISE_YEAR = 2025.8  # KTransformers within SGLang (v0.4, October 2025) prefills long prompts on the GPU
LAYERWISE_CHUNK = 32768  # tokens of one pass then (its tutorials' --chunked-prefill-size)
NAMES = ("bandwidth_share", "second_socket", "hop_s", "link_share", "compute_share", "experts_share")


@dataclass(frozen=True, slots=True)
class HostRates:
    """`bandwidth_share`, `compute_share` and, on top of it, `experts_share`: of what calibration says the
    same cores reach alone (they may gain on it: it is an average over processors). `second_socket`:
    share of its memory that one process reaches; `hop_s`: seconds per layer whose experts are on the host;
    `link_share`: of PCIe's peak."""

    bandwidth_share: float
    second_socket: float
    hop_s: float
    link_share: float
    compute_share: float
    experts_share: float


@cache
def load(path: Path = DATA) -> dict[str, Any]:
    """The file as it is: `rates` by group of engines, `intervals` by phase."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def group(engine: str) -> str:
    """Engines that share host kernels and a way to hand over."""
    return "ktransformers" if engine == "ktransformers" else "ggml"


@cache
def rates(engine: str) -> HostRates:
    """The fitted rates of an engine's group."""
    held = load()["rates"][group(engine)]
    return HostRates(**{name: float(held[name]["value"]) for name in NAMES})


def reached_bytes_per_s(bandwidth_bytes_per_s: float, device: Device, held: HostRates) -> float:
    """Bandwidth of a host's memory that one process reaches beside an accelerator."""
    sockets = max(device.cpu_sockets, 1)
    one = bandwidth_bytes_per_s / sockets
    return one * (1.0 + (sockets - 1) * held.second_socket) * held.bandwidth_share


#: Matrix tiles beside vector kernels: "about 4x faster" (KTransformers, AMX introduction, 2025-04), for its 8- and
#: 16-bit formats; its FP8 and native INT4 kernels use AVX-512.
TILE_GAIN, TILE_CLASSES = 4.0, frozenset({"q8", "int8", "bf16", "f16"})


def tile_gain(engine: str, device: Device) -> np.ndarray:
    """Factor on the host's matrix rate per format class: KTransformers' AMX kernels where the CPU has them."""
    tiled = engine == "ktransformers" and any(x.startswith("amx") for x in device.cpu_isa)
    return np.array([TILE_GAIN if tiled and name in TILE_CLASSES else 1.0 for name in formats.CLASSES])


def interval(kind: str, assumed: bool) -> tuple[float, float]:
    """(slow, fast): factors on seconds at the ends of the 90% interval of split deployments, from their own
    residuals; wider where the host is assumed."""
    held = load()["intervals"]["assumed" if assumed else "stated"]
    found = held.get(kind) or held["decode"]
    return float(found["slow"]), float(found["fast"])


def chunk(engine: str, year: float, chunk_tokens: Number) -> Number:
    """Tokens that share one copy of the weights over the link."""
    return LAYERWISE_CHUNK if engine == "ktransformers" and year >= LAYERWISE_YEAR else chunk_tokens
