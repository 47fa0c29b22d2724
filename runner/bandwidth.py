"""What this machine reaches: read bandwidth by threads, matrix rates by format and size, cost of an
operation."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Bandwidth:
    """Read rate with this many threads: median and best of the repetitions, bytes per second."""

    n_threads: int
    median_bytes_per_s: float
    best_bytes_per_s: float


@dataclass(frozen=True)
class MatmulRate:
    """FLOP/s of the runner's own kernel: `n_tokens` activations times a square matrix of `width`."""

    format: str
    width: int
    n_tokens: int
    n_threads: int
    median_flops: float


class Reader:
    """Streaming reads of a buffer far larger than the caches, by threads like those that decode."""

    def __init__(self, n_threads: int, n_bytes: int = 1 << 29) -> None:
        from runner import kernel_probe
        from runner.program import Crew, Program

        self.data = np.ones(n_bytes // 8, np.int64)
        self.crew, self.program = Crew(n_threads), Program()
        out = np.zeros(8 * n_threads, np.int64)
        self.program.add("read", kernel_probe.read_memory, self.data, self.data.nbytes, out)
        self.program.finish()
        self.rate()

    def rate(self) -> float:
        """Bytes per second of one pass."""
        started = time.perf_counter()
        self.crew.run(self.program, 1, 0)
        return self.data.nbytes / (time.perf_counter() - started)

    def close(self) -> None:
        self.crew.close()


def read_bandwidth(n_threads: int, n_bytes: int = 1 << 29, repeats: int = 7) -> Bandwidth:
    """Median and best of `repeats` passes."""
    reader = Reader(n_threads, n_bytes)
    rates = [reader.rate() for _ in range(repeats)]
    reader.close()
    return Bandwidth(n_threads, float(np.median(rates)), max(rates))


def operation_overhead_s(n_threads: int, n_operations: int = 400, repeats: int = 9) -> tuple[float, float]:
    """Seconds per step (waking the threads) and per operation (its barrier)."""
    from runner import kernel_probe
    from runner.program import Crew, Program

    medians = []
    crew = Crew(n_threads)
    for n in (1, n_operations):
        program = Program()
        for _ in range(n):
            program.add("nothing", kernel_probe.nothing)
        medians.append(float(np.median(_times(crew, program.finish(), repeats))))
    crew.close()
    each = max(0.0, (medians[1] - medians[0]) / (n_operations - 1))
    return max(0.0, medians[0] - each), each


def _times(crew: Any, program: Any, repeats: int, n_tokens: int = 1) -> list[float]:
    """Seconds of each repetition, after one that does not count."""
    out = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        crew.run(program, n_tokens, 0)
        out.append(time.perf_counter() - started)
    return out[1:]


def matmul_rate(format_id: str, width: int, n_tokens: int, n_threads: int, repeats: int = 3) -> MatmulRate:
    """The prefill (or, for one token, decode) kernel on random blocks."""
    from runner import kernel_matmul, synthetic
    from runner.kernel_matvec import matvec
    from runner.program import Crew, Program
    from runner.room import Packed

    data = synthetic.blocks(format_id, width, width, np.random.default_rng(0), 0.02)
    tokens = 1 if n_tokens == 1 else kernel_matmul.block_tokens()
    rows = -(-n_tokens // tokens) * tokens
    p = Packed.room(rows * width)
    p.quants[:] = 1
    p.scales[:] = p.sums32[:] = p.sums16[:] = 0.01
    size = -(-kernel_matmul.scratch_bytes() // 64) * 64
    operation = matvec(format_id) if n_tokens == 1 else kernel_matmul.matmul(format_id)
    program = Program()
    program.add("matmul", operation, data, data.nbytes // width, width, width, np.zeros(n_tokens * width,
                                                                                        np.float32), width, 0,
                None, p.floats, p.quants, p.scales, p.sums32, p.sums16, np.zeros(size * n_threads,
                                                                                 np.uint8), size)  # fmt: skip
    crew = Crew(n_threads)
    times = _times(crew, program.finish(), repeats, n_tokens)
    crew.close()
    return MatmulRate(
        format_id, width, n_tokens, n_threads, 2.0 * n_tokens * width * width / float(np.median(times))
    )


def blas_rate(width: int, n_tokens: int, repeats: int = 3) -> float:
    """FLOP/s of NumPy's float32 matrix product (all threads that its BLAS takes), median."""
    a, b = np.ones((n_tokens, width), np.float32), np.ones((width, width), np.float32)
    out = np.empty((n_tokens, width), np.float32)
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        np.matmul(a, b, out=out)
        times.append(time.perf_counter() - started)
    return 2.0 * n_tokens * width * width / float(np.median(times[1:]))
