"""A PyTorch device: its name, its clock for timing, its memory, and the conditions that NVML tells of."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from runner.errors import RunnerError

# NVML's clocks-event reasons that slow a GPU down: software and hardware power caps, software and hardware thermal
# slowdown, power brake. https://docs.nvidia.com/deploy/nvml-api/group__nvmlClocksEventReasons.html
SLOWING = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "heat", 0x40: "heat", 0x80: "power brake"}
CLOCK_DROP = 0.85  # clock at the end over the highest seen: as for processors (runner.meter)


def default_device() -> str:
    """`cuda` (ROCm answers to it too), `mps` or `cpu`."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def open_device(name: str = "") -> Any:
    """The torch device of this name. Raises RunnerError with one line where it is not there."""
    import torch

    name = name or default_device()
    try:
        device = torch.device(name)
    except RuntimeError:  # its own words list every device type there ever was
        raise RunnerError(
            f"no device `{name}` on this machine: PyTorch knows cuda, cuda:1, mps, cpu"
        ) from None
    try:
        if device.type == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("PyTorch finds no CUDA or ROCm GPU")
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RunnerError(
            f"no device `{name}` on this machine: {str(error).strip().splitlines()[0]}"
        ) from None
    return device


def backend(device: Any) -> str:
    """`cuda`, `rocm`, `metal` or `cpu`."""
    import torch

    if device.type == "cuda":
        return "rocm" if torch.version.hip else "cuda"
    return "metal" if device.type == "mps" else "cpu"


def name(device: Any) -> str:
    import torch

    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else device.type


def capability(device: Any) -> str:
    """`sm_90` and the like on CUDA; "" elsewhere."""
    import torch

    if backend(device) != "cuda":
        return ""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def memory_bytes(device: Any) -> tuple[int, int]:
    """(free, total) bytes of the device."""
    import torch

    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(free), int(total)
    import psutil

    memory = psutil.virtual_memory()
    return int(memory.available), int(memory.total)


def synchronize(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def reset_peak(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: Any) -> int | None:
    """The most that tensors took since `reset_peak`; None where PyTorch does not count (all but CUDA and ROCm)."""
    import torch

    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None


def times(device: Any, work: Callable[[], Any], n: int) -> list[float]:
    """Seconds of each of `n` calls, one after another: by CUDA events, elsewhere by the host's clock."""
    import torch

    if device.type != "cuda":
        out = []
        for _ in range(n):
            started = time.perf_counter()
            work()
            synchronize(device)
            out.append(time.perf_counter() - started)
        return out
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(n + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize(device)
    return [a.elapsed_time(b) / 1e3 for a, b in pairwise(marks)]


@dataclass(frozen=True)
class GpuConditions:
    """What NVML told of a GPU during a run; None where nobody tells."""

    clock_hz: float | None = None
    highest_hz: float | None = None  # seen at the start or the end
    slowed: tuple[str, ...] = ()
    temperature_c: float | None = None
    other_processes: int | None = None

    def remarks(self) -> tuple[str, ...]:
        """Why timings of this run should not be trusted; empty for a clean run."""
        found = [f"the GPU was slowed down: {reason}" for reason in self.slowed]
        if self.clock_hz and self.highest_hz and self.clock_hz < CLOCK_DROP * self.highest_hz:
            found.append(
                f"the GPU's clock fell from {self.highest_hz / 1e9:.2f} to {self.clock_hz / 1e9:.2f} GHz"
            )
        if self.other_processes:
            found.append(f"{self.other_processes} other processes computed on the GPU")
        return tuple(found)


class GpuWatch:
    """Reads NVML when made and when asked for `conditions`. Knows nothing on other vendors' devices."""

    def __init__(self, device: Any, library: Any = None) -> None:
        self.library = library or _nvml(device)
        self.handle = None if self.library is None else _handle(self.library, device)
        self.start_hz = self._clock()

    def conditions(self) -> GpuConditions:
        if self.handle is None:
            return GpuConditions()
        import os

        clock, reasons = self._clock(), self._ask("nvmlDeviceGetCurrentClocksThrottleReasons") or 0
        processes = self._ask("nvmlDeviceGetComputeRunningProcesses")
        return GpuConditions(
            clock_hz=clock,
            highest_hz=max(filter(None, (clock, self.start_hz)), default=None),
            slowed=tuple(dict.fromkeys(text for bit, text in SLOWING.items() if reasons & bit)),
            temperature_c=self._ask("nvmlDeviceGetTemperature", 0),
            other_processes=None if processes is None else sum(p.pid != os.getpid() for p in processes),
        )

    def _clock(self) -> float | None:
        megahertz = self._ask("nvmlDeviceGetClockInfo", 1)  # NVML_CLOCK_SM
        return float(megahertz) * 1e6 if megahertz else None

    def _ask(self, question: str, *arguments: Any) -> Any:
        if self.handle is None:
            return None
        try:
            return getattr(self.library, question)(self.handle, *arguments)
        except Exception:  # NVMLError has a class per refusal; a GPU may not tell
            return None


def _nvml(device: Any) -> Any:
    if device.type != "cuda":
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no binding, no driver
        return None
    return pynvml


def _handle(library: Any, device: Any) -> Any:
    """NVML's handle of a CUDA device: by UUID, for CUDA_VISIBLE_DEVICES renumbers devices."""
    import torch

    try:
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        return library.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
    except Exception:  # older PyTorch has no UUID, MIG has another
        try:
            return library.nvmlDeviceGetHandleByIndex(device.index or 0)
        except Exception:
            return None
