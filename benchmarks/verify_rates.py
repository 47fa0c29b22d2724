"""This machine's rates, taken in turn with the runs that are predicted from them."""

from __future__ import annotations

from typing import Any

import numpy as np

EXPERTS, EXPERT_ROWS, EXPERT_WIDTH = 24, 1536, 4096  # what unpacking is timed on: far above any cache
BLOCKS = (1, 8)
MOOD = 0.8  # memory that reads at less than this of another rate is in another mood


class Rates:
    """What the machine reaches, a sample at a time, as `plan measure` does it."""

    def __init__(self, threads: int, formats: tuple[str, ...]) -> None:
        from runner.bandwidth import Reader

        self.threads, self.formats = threads, formats
        self.reader = Reader(threads, formats=formats)
        self.reads: list[float] = []
        self.streams: dict[str, list[float]] = {f: [] for f in formats}
        self.products: dict[str, list[float]] = {f: [] for f in dict.fromkeys((*formats, "F16", "Q8_0"))}
        self.attention: list[Any] = []
        self.layers: list[tuple[float, float]] = []  # seconds, and the read rate of that moment

    def read(self) -> None:
        self.reads.append(self.reader.rate())
        for f in self.formats:
            self.streams[f].append(self.reader.stream(f))

    def product(self) -> None:
        from runner.bandwidth import matmul_rate

        for f, found in self.products.items():
            found.append(matmul_rate(f, 4096, 512, self.threads, 2).median_flops)

    def small(self) -> None:
        """Of attention, and of a layer's barriers."""
        from planner.measure import GROUPS
        from runner.bandwidth import attention_rate, layer_s

        self.attention.append([attention_rate(self.threads, g) for g in GROUPS])
        self.layers.append((layer_s(self.threads), self.reader.rate()))

    def alike(self, first: int) -> list[int]:
        """Of the reads from number `first` on, those of the mood of memory that most of them found: virtual cores that
        are moved read at one of two rates."""
        reads = np.array(self.reads[first:])
        fast = reads > MOOD * reads.max()
        chosen = fast if fast.mean() >= 0.5 else ~fast
        return [first + int(i) for i in np.flatnonzero(chosen)]

    def document(self, numbers: list[int] | None = None) -> dict[str, Any]:
        """Rates of the reads of these numbers (None: all), and what was measured beside."""
        high = lambda values: float(np.percentile(values, 75))  # noqa: E731
        numbers = list(range(len(self.reads))) if numbers is None else numbers
        streams = {f: high([v[i] for i in numbers]) for f, v in self.streams.items()}
        products = {f: high(v) for f, v in self.products.items() if v}
        reads = [self.reads[i] for i in numbers]
        near = [s for s, rate in self.layers if MOOD < rate / np.median(reads) < 1 / MOOD]
        return {
            "bandwidth": max(high(reads), *streams.values()),
            "fp32": products.get("F16", 0.0),
            "int8": max((v for f, v in products.items() if f not in ("F16", "BF16", "F32")), default=0.0),
            "formats": [[f, streams[f], products.get(f, 0.0)] for f in self.formats],
            "attention": [max(a[i].bytes_per_s for a in self.attention) for i in (0, 1)],
            "attention_flops": max(a[1].flops for a in self.attention),
            "layer_s": float(np.percentile(near or [s for s, _ in self.layers], 25)),
        }


def usual_rates(threads: int) -> dict[str, Any]:
    """What stands in for rates on a processor of which only bandwidth and arithmetic are known: this machine's
    shares."""
    from planner import measure

    found = measure.survey(threads)
    kernels = found.kernels
    assert kernels is not None
    read = found.best_read.median_bytes_per_s
    peak = lambda f: found.fp32_flops if f in ("F16", "BF16") else found.int8_ops  # noqa: E731
    return {
        "formats": {f: [round(s / read, 3), round(p / peak(f), 3)] for f, s, p in kernels.formats},
        "attention_of_bandwidth": [round(r / read, 4) for r in kernels.attention_bytes_per_s],
        "attention_of_fp32": round(kernels.attention_flops / found.fp32_flops, 3),
        "layer_s": round(kernels.layer_s, 8),
        "unpacking": {f: unpacking(f, threads) for f, _, _ in kernels.formats},
    }


def unpacking(fmt: str, threads: int, rounds: int = 7) -> list[float]:
    """What unpacking an expert takes, and each block of its tokens, as tokens of a large batch: from experts of one
    block and of eight, in turn with a product of 512 tokens."""
    from runner.bandwidth import matmul_rate
    from runner.kernel_experts import BLOCK
    from runner.program import Crew

    crew = Crew(threads)
    programs = [_experts(fmt, n * BLOCK, threads) for n in BLOCKS]
    found = []
    for _ in range(rounds + 1):
        token_s = 2.0 / matmul_rate(fmt, EXPERT_WIDTH, 512, threads, 1).median_flops
        times = [_seconds(crew, p) / (EXPERTS * EXPERT_ROWS * EXPERT_WIDTH * token_s) for p in programs]
        block = (times[1] - times[0]) / (BLOCKS[1] - BLOCKS[0])
        found.append((times[0] - block, block))
    crew.close()
    return [round(float(v), 2) for v in np.median(found[1:], axis=0)]


def _seconds(crew: Any, program: Any) -> float:
    import time

    started = time.perf_counter()
    crew.run(program, 1, 0)
    return time.perf_counter() - started


def _experts(fmt: str, n_tokens: int, threads: int) -> Any:
    """A program of experts that get `n_tokens` tokens each."""
    from runner import kernel_experts, kernel_matmul, synthetic
    from runner.kernel_tile import uses_bytes
    from runner.memory import zeros
    from runner.program import Program
    from runner.room import Packed
    from runner.weights import row_bytes

    n, rows, width = EXPERTS, EXPERT_ROWS, EXPERT_WIDTH
    data, row = synthetic.blocks(fmt, width, rows * n, np.random.default_rng(0), 0.02), row_bytes(fmt, width)
    x = Packed.room(n * n_tokens * width)
    x.quants[:] = 1
    x.floats[:] = x.scales[:] = x.sums32[:] = x.sums16[:] = 0.01
    pairs, first = np.arange(n * n_tokens, dtype=np.int64), np.arange(n + 1, dtype=np.int64) * n_tokens
    size = -(-kernel_matmul.scratch_bytes() // 64) * 64
    program = Program()
    program.add(
        "experts", kernel_experts.expert_matmul(fmt), data, row, rows, width,
        zeros(n * n_tokens * rows, np.float32), rows, row * rows, None, None, None, None, None, None, pairs, first, n,
        1, x.quants if uses_bytes(fmt) else x.floats, x.scales,
        x.sums16 if kernel_experts.sums_per(fmt) == 16 else x.sums32, zeros(size * threads, np.uint8), size,
    )  # fmt: skip
    return program.finish()
