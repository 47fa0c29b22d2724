"""What a PyTorch device reaches: read bandwidth, matrix rates by type and width, cost of a launch, rate of the link.

Bounded to about ten seconds; `quick` takes one width and no link. Large buffers, medians, the device's own clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from runner import torch_device as devices

READ_BYTES = 2 << 30  # forty times the largest cache (50 MB of L2 on H100)
LINK_BYTES = 256 << 20
WIDTHS = (2048, 4096, 8192)
TOKENS = 4096
TYPES = ("float32", "float16", "bfloat16", "float8")
ITEM_S = 0.4  # the most that one rate may take
LAUNCHES = 200


@dataclass(frozen=True)
class ProductRate:
    """FLOP/s of [tokens][width] times [width][width], by the vendor's library."""

    dtype: str
    width: int
    n_tokens: int
    median_flops: float


@dataclass(frozen=True)
class GpuSurvey:
    """Rates per second, times in seconds. `read_bytes_per_s` is the better of summing a buffer and of copying one
    (which counts twice); `launch_s` a small operation called one by one, `graph_launch_s` in a captured graph."""

    name: str
    backend: str
    memory_bytes: int
    capability: str
    sum_bytes_per_s: float
    copy_bytes_per_s: float
    products: tuple[ProductRate, ...]
    launch_s: float
    graph_launch_s: float | None
    round_trip_s: float
    host_to_device_bytes_per_s: float | None
    device_to_host_bytes_per_s: float | None
    seconds: float
    conditions: devices.GpuConditions

    @property
    def read_bytes_per_s(self) -> float:
        return max(self.sum_bytes_per_s, self.copy_bytes_per_s)

    def best_flops(self, dtype: str) -> float | None:
        """The best rate of a type over all widths; None where it was not measured."""
        return max((p.median_flops for p in self.products if p.dtype == dtype), default=None)


def survey(device: str = "", quick: bool = False, read_bytes: int = 0, widths: tuple[int, ...] = (),
           n_tokens: int = 0) -> GpuSurvey:  # fmt: skip
    """Measure a device. Sizes of 0 are the usual ones (a processor's are smaller). Raises RunnerError where there is
    no device of this name."""
    import torch

    d = devices.open_device(device)
    small = d.type == "cpu"
    read_bytes = read_bytes or (READ_BYTES // 8 if small else READ_BYTES)
    widths, n_tokens = (
        widths or WIDTHS[: 1 if small else None],
        n_tokens or (TOKENS // 16 if small else TOKENS),
    )
    started, watch = time.perf_counter(), devices.GpuWatch(d)
    free, total = devices.memory_bytes(d)
    with torch.inference_mode():
        summed, copied = _bandwidth(d, min(read_bytes, free // 4))
        products = _products(d, widths[-1:] if quick else widths, n_tokens)
        launch, in_graph, round_trip = _launches(d)
        there, back = (None, None) if quick or d.type == "cpu" else _links(d, min(LINK_BYTES, free // 4))
    capability = devices.capability(d)
    return GpuSurvey(
        devices.name(d), devices.backend(d), total, capability, summed, copied, products, launch, in_graph,
        round_trip, there, back, time.perf_counter() - started, watch.conditions(),
    )  # fmt: skip


def _median(device: Any, work: Callable[[], Any], least: int = 3, most: int = 21) -> float:
    """Median seconds, of as many calls as fit ITEM_S; the first calls do not count."""
    work()
    once = max(devices.times(device, work, 1)[0], 1e-7)
    return float(np.median(devices.times(device, work, int(np.clip(ITEM_S / once, least, most)))))


def _bandwidth(device: Any, n_bytes: int) -> tuple[float, float]:
    """Bytes per second of a sum over a buffer, and of a copy of half of it onto the other half."""
    import torch

    data = torch.ones(n_bytes // 4, dtype=torch.float32, device=device)
    half = len(data) // 2
    summed = data.nbytes / _median(device, data.sum)
    copied = 2 * 4 * half / _median(device, lambda: data[:half].copy_(data[half : 2 * half]))
    return summed, copied


def _products(device: Any, widths: tuple[int, ...], n_tokens: int) -> tuple[ProductRate, ...]:
    out = []
    for kind in TYPES:
        for width in widths:
            work = _product(device, kind, width, n_tokens)
            if work is not None:
                seconds = _median(device, work, 3, 11)
                out.append(ProductRate(kind, width, n_tokens, 2.0 * n_tokens * width * width / seconds))
                if seconds > ITEM_S / 4:  # the next width would take too long
                    break
    return tuple(out)


def _product(device: Any, kind: str, width: int, n_tokens: int) -> Callable[[], Any] | None:
    """A product of this type, or None where the device or PyTorch has none."""
    import torch

    a, b = (torch.randn(n, width, device=device) / 16 for n in (n_tokens, width))
    if kind == "float8":
        one = torch.ones((), device=device)
        x, w = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).T
        work = lambda: torch._scaled_mm(x, w, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)  # noqa: E731
        try:
            work()
        except (RuntimeError, ValueError, NotImplementedError):
            return None
        return work
    dtype = getattr(torch, kind)
    left, right = a.to(dtype), b.to(dtype).T
    try:
        left[:1] @ right
    except (RuntimeError, TypeError):  # MPS had no bfloat16 before macOS 14
        return None
    return lambda: left @ right


def _launches(device: Any) -> tuple[float, float | None, float]:
    """Seconds of a small operation called one by one, in a graph, and of one whose result the host waits for."""
    import torch

    x = torch.zeros(1024, device=device)

    def many() -> None:
        for _ in range(LAUNCHES):
            x.add_(1.0)

    many()
    devices.synchronize(device)
    one_by_one = []
    for _ in range(5):
        started = time.perf_counter()
        many()
        devices.synchronize(device)
        one_by_one.append((time.perf_counter() - started) / LAUNCHES)
    trips = []
    for _ in range(20):
        started = time.perf_counter()
        float(x[0])
        trips.append(time.perf_counter() - started)
    in_graph = None
    if device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            many()
        in_graph = _median(device, graph.replay) / LAUNCHES
    return float(np.median(one_by_one)), in_graph, float(np.median(trips))


def _links(device: Any, n_bytes: int) -> tuple[float, float]:
    """Bytes per second from pinned host memory to the device, and back."""
    import torch

    pinned = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    held = torch.empty(n_bytes, dtype=torch.uint8, device=device)
    there = n_bytes / _median(device, lambda: held.copy_(pinned, non_blocking=True))
    back = n_bytes / _median(device, lambda: pinned.copy_(held, non_blocking=True))
    return there, back
