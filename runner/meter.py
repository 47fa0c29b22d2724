"""The meter: what a run took, what it touched and held, and under which conditions.

Bytes and FLOPs are counted from the arrays that the engine allocated and the program it runs, never from a
formula about the model.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.per_layer import STREAMS

if TYPE_CHECKING:
    from runner.engine import Engine
    from runner.generate import Progress

# Bounds of a clean run. Policy, not physics: beyond them timings here differed by more than a few percent.
OTHER_CORES = 0.35  # processor cores that other processes and the hypervisor took, on average
SPREAD = 0.15  # interquartile range of the times of a token, over their median
CLOCK_DROP = 0.85  # clock at the end over clock at the start


@dataclass(frozen=True)
class Conditions:
    """What else happened on the machine during a run. None where this system does not tell."""

    seconds: float
    load_average: float | None
    other_cores: float | None  # taken by other processes and by the hypervisor (steal)
    swapped_bytes: int | None
    clock_start_hz: float | None
    clock_end_hz: float | None
    throttle_events: int | None

    def remarks(self) -> tuple[str, ...]:
        """Why timings of this run should not be trusted; empty for a clean run."""
        found = []
        if self.other_cores is not None and self.other_cores > OTHER_CORES:
            found.append(f"other processes kept {self.other_cores:.1f} cores busy")
        if self.swapped_bytes:
            found.append(f"{self.swapped_bytes / 2**20:.0f} MiB were swapped")
        if self.throttle_events:
            found.append(f"the processor was throttled {self.throttle_events} times")
        start, end = self.clock_start_hz, self.clock_end_hz
        if start and end and end < CLOCK_DROP * start:
            found.append(f"the clock fell from {start / 1e9:.2f} to {end / 1e9:.2f} GHz")
        return tuple(found)


class Watch:
    """Reads counters of the system when made and when asked for `conditions`."""

    def __init__(self) -> None:
        import psutil

        self._psutil = psutil
        self._started = time.perf_counter()
        self._busy, self._own = self._cores_busy(), self._own_seconds()
        self._swap = self._swapped()
        self._clock = self._clock_hz()
        self._throttled = _throttle_count()

    def conditions(self) -> Conditions:
        """From the making of this watch to now."""
        seconds = max(time.perf_counter() - self._started, 1e-9)
        others = None
        if self._busy is not None and (busy := self._cores_busy()) is not None:
            others = max(0.0, (busy - self._busy - (self._own_seconds() - self._own)) / seconds)
        swap = self._swapped()
        throttled = _throttle_count()
        return Conditions(
            seconds=seconds,
            load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            other_cores=others,
            swapped_bytes=None if swap is None or self._swap is None else max(0, swap - self._swap),
            clock_start_hz=self._clock,
            clock_end_hz=self._clock_hz(),
            throttle_events=None
            if throttled is None or self._throttled is None
            else throttled - self._throttled,
        )

    def _cores_busy(self) -> float | None:
        """Core-seconds since boot that were not idle, stolen ones included."""
        try:
            times = self._psutil.cpu_times()
        except Exception:  # a container may hide /proc/stat
            return None
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Linux counts guests' time in user's time too
        return float(sum(times) - idle - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0))

    def _own_seconds(self) -> float:
        times = os.times()
        return times.user + times.system

    def _swapped(self) -> int | None:
        try:
            swap = self._psutil.swap_memory()
        except Exception:
            return None
        return int(swap.sin + swap.sout)

    def _clock_hz(self) -> float | None:
        try:
            clock = self._psutil.cpu_freq()
        except Exception:
            return None
        return float(clock.current) * 1e6 if clock and clock.current else None


def _throttle_count() -> int | None:
    """Thermal throttling events that Linux counts on Intel processors."""
    files = list(Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))
    try:
        return sum(int(f.read_text()) for f in files) if files else None
    except (OSError, ValueError):
        return None


class PeakMemory:
    """The peak of resident memory since it was made, where Linux lets a process reset its own mark; else of
    the process's life."""

    def __init__(self) -> None:
        self.start_bytes = resident_bytes()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        try:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        except OSError:
            pass
        try:
            import resource
        except ImportError:  # Windows
            import psutil

            return int(getattr(psutil.Process().memory_info(), "peak_wset", 0)) or resident_bytes()
        import sys

        unit = 1 if sys.platform == "darwin" else 1024
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


# -- counts --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepCounts:
    """What one decode step reads and computes with `n_tokens` tokens in the cache, its own included."""

    n_tokens: int
    weight_bytes: int
    cache_bytes: int
    matrix_flops: float
    attention_flops: float
    again_bytes: int = 0  # of caches, read once more by layers that keep none; below 0: kept, but not read

    @property
    def bytes_touched(self) -> int:
        return self.weight_bytes + self.cache_bytes + self.again_bytes

    @property
    def flops(self) -> float:
        return self.matrix_flops + self.attention_flops


def visible(window: int, n_tokens: int, chunked: bool = False) -> int:
    """Tokens that a layer's attention sees: all, the last ones, or those of the chunk that the last one is in."""
    if not window:
        return n_tokens
    return (n_tokens - 1) % window + 1 if chunked else min(n_tokens, window)


def layer_counts(engine: Engine, layer: int, n_tokens: int) -> tuple[int, int, float]:
    """Of one layer in the step that decodes token number `n_tokens`: bytes of its cache (or state), those that it reads
    of another layer's (or, below 0, leaves unread of its own, where an indexer chose few), attention FLOPs."""
    h, c, state = engine.hyper, engine.cache.layers[layer], engine.cache.states[layer]
    kept, own = state.n_bytes if state else 0, h.heads[layer]
    if not c.key_row_bytes:
        return kept, 0, 0.0
    near = visible(h.windows[layer], n_tokens, h.style.chunked)
    if h.compressed is not None:
        rows, seen = h.compressed.rows(layer, n_tokens)
        flops = 2.0 * own.n * (own.width + own.value_width) * (near + seen)
        if h.compressed.index_width(layer):
            flops += 2.0 * h.compressed.indexer.n_heads * h.compressed.indexer.width * rows
        kept += (near + rows) * c.row_bytes + rows * c.index_row_bytes
        return kept, (seen - rows) * c.row_bytes, flops
    seen, flops = near, 0.0
    # the layer's own, or, of latent ones, the last before it; it looks at the keys of all
    if h.indexer is not None and (h.indexes[layer] or h.is_latent):
        seen, keys = h.indexer.seen(near), h.indexer.keys(near)
        kept += keys * c.index_row_bytes
        flops = 2.0 * h.indexer.n_heads * h.indexer.width * keys * h.indexes[layer]
    flops += 2.0 * own.n * (own.width + own.value_width) * seen
    return (
        (kept + near * c.row_bytes, (seen - near) * c.row_bytes, flops)
        if c.own
        else (kept, seen * c.row_bytes, flops)
    )


def step_counts(engine: Engine, n_tokens: int) -> StepCounts:
    """Counts of the step that decodes token number `n_tokens`."""
    found = [layer_counts(engine, i, n_tokens) for i in range(engine.hyper.n_layers)]
    kept, again, flops = (sum(column) for column in zip(*found, strict=True))
    return StepCounts(
        n_tokens, engine.meter.token_weight_bytes, int(kept), engine.meter.token_flops, flops, int(again)
    )


def cache_bytes(engine: Engine, n_tokens: int) -> int:
    """Bytes of the rows that attention reads once `n_tokens` tokens are cached."""
    return step_counts(engine, n_tokens).cache_bytes


# -- a metered run -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """A metered request. Seconds, bytes and FLOPs; `token_s` are the times of single decode steps."""

    n_prompt: int
    n_threads: int
    ttft_s: float
    token_s: tuple[float, ...]
    first: StepCounts
    last: StepCounts
    weight_bytes: int
    cache_allocated_bytes: int
    activation_bytes: int
    resident_bytes: int
    peak_resident_bytes: int
    prefill_flops: float
    conditions: Conditions
    remarks: tuple[str, ...] = field(default=())

    @property
    def tpot_s(self) -> float:
        return float(np.median(self.token_s))

    @property
    def tpot_spread(self) -> float:
        """Interquartile range over the median."""
        low, high = np.percentile(self.token_s, [25, 75])
        return float((high - low) / self.tpot_s)

    @property
    def decode_bytes_per_s(self) -> float:
        return (self.first.bytes_touched + self.last.bytes_touched) / 2 / self.tpot_s

    @property
    def prefill_flops_per_s(self) -> float:
        return self.prefill_flops / self.ttft_s

    @property
    def contaminated(self) -> bool:
        return bool(self.remarks)

    def document(self) -> dict[str, Any]:
        """As JSON values, with the derived figures."""
        return {
            **asdict(self),
            "tpot_s": self.tpot_s,
            "tpot_spread": self.tpot_spread,
            "decode_bytes_per_s": self.decode_bytes_per_s,
            "prefill_flops_per_s": self.prefill_flops_per_s,
            "contaminated": self.contaminated,
        }


def run(
    engine: Engine, prompt: list[int], n_decode: int, warm_up: bool = True, told: Progress | None = None
) -> Report:
    """Prefill `prompt`, decode `n_decode` tokens greedily, metered. A first pass does not count. `told` hears after
    each batch of the prompt how far it is."""
    from runner import generate

    if warm_up:
        engine.rewind(0)
        engine.prefill(prompt[: min(len(prompt), engine.n_batch)])
        engine.decode(prompt[0])
    engine.rewind(0)
    peak, watch = PeakMemory(), Watch()
    started = time.perf_counter()
    logits = generate.prefill(engine, prompt, told)
    token = int(np.argmax(logits))
    ttft = time.perf_counter() - started
    times = []
    for _ in range(n_decode):
        started = time.perf_counter()
        token = int(np.argmax(engine.decode(token)))
        times.append(time.perf_counter() - started)
    conditions = watch.conditions()
    report = Report(
        n_prompt=len(prompt),
        n_threads=engine.n_threads,
        ttft_s=ttft,
        token_s=tuple(times),
        first=step_counts(engine, len(prompt) + 1),
        last=step_counts(engine, len(prompt) + max(1, n_decode)),
        weight_bytes=engine.meter.weight_bytes,
        cache_allocated_bytes=engine.meter.cache_bytes,
        activation_bytes=engine.meter.activation_bytes,
        resident_bytes=resident_bytes(),
        peak_resident_bytes=peak.peak_bytes(),
        prefill_flops=prefill_flops(engine, len(prompt)),
        conditions=conditions,
    )
    return with_remarks(report)


def with_remarks(report: Report) -> Report:
    """The report with the reasons, if any, not to use it for calibration."""
    from dataclasses import replace

    remarks = list(report.conditions.remarks())
    if len(report.token_s) > 3 and report.tpot_spread > SPREAD:
        remarks.append(f"times of a token spread by {report.tpot_spread:.0%}")
    return replace(report, remarks=tuple(remarks))


def prefill_flops(engine: Engine, n_tokens: int) -> float:
    """FLOPs of a prompt: every layer for every token, last feed-forward and head for the last token only."""
    h, tensors = engine.hyper, engine.weights.tensors
    last = tuple(f"blk.{h.n_layers - 1}.{part}" for part in ("ffn_", "hc_ffn_", "inp_gate", "proj"))
    once = 0.0
    for name, weight in tensors.items():
        if len(weight.shape) < 2:
            continue
        share = h.per_token * h.n_experts / h.n_chosen if "_exps." in name else 1
        if name in ("output.weight", "altup_unembd_proj.weight") or name.startswith(last):
            once += 2.0 * weight.width * weight.rows * (STREAMS - 1 if name.startswith("altup") else share)
    if "output.weight" not in tensors:
        table = tensors["token_embd.weight"]
        once += 2.0 * table.width * table.rows
    seen = [n_tokens] if h.style.prefixed else _sampled(n_tokens)  # by each token of a prompt
    attention = sum(step_counts_attention(engine, n) for n in seen) / max(1, len(seen))
    return engine.meter.token_flops * n_tokens - once * (n_tokens - 1) + attention * n_tokens


def _sampled(n_tokens: int) -> list[int]:
    return (
        list(range(1, n_tokens + 1)) if n_tokens <= 64 else np.linspace(1, n_tokens, 65).astype(int).tolist()
    )


def step_counts_attention(engine: Engine, n_tokens: int) -> float:
    return step_counts(engine, n_tokens).attention_flops
