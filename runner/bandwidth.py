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


FILL = 0x2C2C2C2C2C2C2C2C  # of the buffer: an ordinary number in every format (0.066 as a float16 scale)
STREAM_WIDTH = 4096


class Reader:
    """Streaming reads of a buffer far larger than the caches, by threads like those that decode, plainly and through
    decode's own kernels: what one of them reaches, memory can deliver."""

    def __init__(self, n_threads: int, n_bytes: int = 1 << 29, formats: tuple[str, ...] = ()) -> None:
        from runner import kernel_probe
        from runner.program import Crew, Program

        self.data = np.full(n_bytes // 8, FILL, np.int64)
        self.crew, self.program = Crew(n_threads), Program()
        out = np.zeros(8 * n_threads, np.int64)
        self.program.add("read", kernel_probe.read_memory, self.data, self.data.nbytes, out)
        self.program.finish()
        self.streams = {f: self._stream(f) for f in formats}
        self.rate()
        for f in formats:
            self.stream(f)

    def rate(self) -> float:
        """Bytes per second of one pass."""
        started = time.perf_counter()
        self.crew.run(self.program, 1, 0)
        return self.data.nbytes / (time.perf_counter() - started)

    def stream(self, format_id: str) -> float:
        """Bytes per second of one product with the buffer as weights of this format."""
        program, n_bytes = self.streams[format_id]
        started = time.perf_counter()
        self.crew.run(program, 1, 0)
        return n_bytes / (time.perf_counter() - started)

    def _stream(self, format_id: str) -> tuple[Any, int]:
        from runner.kernel_matvec import matvec
        from runner.program import Program
        from runner.weights import row_bytes

        row = row_bytes(format_id, STREAM_WIDTH)
        rows = self.data.nbytes // row
        return _product(Program(), matvec(format_id), self.data, row, rows, STREAM_WIDTH, 1), row * rows

    def close(self) -> None:
        self.crew.close()


def _product(program: Any, operation: Any, data: np.ndarray, row_bytes: int, rows: int, width: int, n_tokens: int,
             n_threads: int = 1) -> Any:  # fmt: skip
    """A program of one matrix product with `n_tokens` activations."""
    from runner import kernel_matmul
    from runner.memory import zeros
    from runner.room import Packed

    block = 1 if n_tokens == 1 else kernel_matmul.block_tokens()
    p = Packed.room(-(-n_tokens // block) * block * width)
    p.quants[:] = 1
    p.floats[:] = p.scales[:] = p.sums32[:] = p.sums16[:] = 0.01
    size = -(-kernel_matmul.scratch_bytes() // 64) * 64
    program.add("matmul", operation, data, row_bytes, rows, width, zeros(n_tokens * rows, np.float32), rows, 0, None,
                p.floats, p.quants, p.scales, p.sums32, p.sums16, zeros(size * n_threads, np.uint8),
                size)  # fmt: skip
    return program.finish()


def read_bandwidth(n_threads: int, n_bytes: int = 1 << 29, repeats: int = 7) -> Bandwidth:
    """Median and best of `repeats` passes."""
    reader = Reader(n_threads, n_bytes)
    rates = [reader.rate() for _ in range(repeats)]
    reader.close()
    return Bandwidth(n_threads, float(np.median(rates)), max(rates))


def stream_rates(
    n_threads: int, formats: tuple[str, ...], n_bytes: int = 1 << 29, repeats: int = 7
) -> tuple[Bandwidth, dict[str, float]]:
    """The read bandwidth, and decode's rate by format, taken in turn so that other load hits all alike. The bandwidth
    is the plain reader's, or that of a format which reads faster."""
    reader = Reader(n_threads, n_bytes, formats)
    rows = np.array([[reader.rate(), *(reader.stream(f) for f in formats)] for _ in range(repeats)])
    reader.close()
    middle, best = np.median(rows, axis=0), rows.max(axis=0)
    return (
        Bandwidth(n_threads, float(middle.max()), float(best.max())),
        dict(zip(formats, middle[1:].tolist(), strict=True)),
    )


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

    data = synthetic.blocks(format_id, width, width, np.random.default_rng(0), 0.02)
    operation = matvec(format_id) if n_tokens == 1 else kernel_matmul.matmul(format_id)
    program = _product(Program(), operation, data, data.nbytes // width, width, width, n_tokens, n_threads)
    crew = Crew(n_threads)
    times = _times(crew, program, repeats, n_tokens)
    crew.close()
    return MatmulRate(
        format_id, width, n_tokens, n_threads, 2.0 * n_tokens * width * width / float(np.median(times))
    )


@dataclass(frozen=True)
class AttentionRate:
    """One token attends to `n_cached` tokens at `bytes_per_s`, a prompt at `flops`, with `group` query heads per key
    head."""

    group: int
    n_cached: int
    bytes_per_s: float
    flops: float


def attention_rate(n_threads: int, group: int, cache_bytes: int = 1 << 26, repeats: int = 5) -> AttentionRate:
    """Of one layer with eight key heads of 128 numbers in float16: a step late in its cache against one at its start,
    and a batch of a prompt after others against the first."""
    engine = _toy(1, 256, 256, 8 * group, 8, 128, cache_bytes // (8 * 128 * 4), n_threads)
    n = engine.n_context
    late = min(1536, n - 512)
    first, last, begins, goes_on = (
        float(np.median(_passes(engine, tokens, at, repeats)))
        for tokens, at in ((1, 1), (1, n - 1), (512, 0), (512, late))
    )
    engine.close()
    flops = 4.0 * 8 * group * 128 * 512 * late
    return AttentionRate(
        group, n, n * 8 * 128 * 4 / max(last - first, 1e-7), flops / max(goes_on - begins, 1e-7)
    )


def layer_s(n_threads: int, repeats: int = 31) -> float:
    """Seconds of a layer that has next to no weights: its barriers and vectors."""
    engine = _toy(16, 256, 512, 4, 2, 64, 64, n_threads)
    found = float(np.median(_passes(engine, 1, 1, repeats))) / 16
    engine.close()
    return found


def _toy(n_layers: int, hidden: int, inner: int, heads: int, kv: int, head_dim: int, n_context: int,
         n_threads: int) -> Any:  # fmt: skip
    """An engine over synthetic weights of these sizes, its cache filled."""
    from modeldb import schemes
    from modeldb.layers import Attention, Block, Dense
    from modeldb.model import Model
    from runner import engine as engines
    from runner import sampled, synthetic

    block = Block((Attention(heads, kv, head_dim, head_dim),), (Dense(inner),))
    model = Model(
        id="probe", name="probe", hf_id="", family="llama", base="", architecture="llama", model_type="llama",
        modality="text", hidden_size=hidden, vocab_size=512, tied_embeddings=False, max_context=n_context,
        blocks=(block,) * n_layers, rotary_dim=head_dim,
    )  # fmt: skip
    weights = synthetic.weights(model, schemes.get("Q8_0"))
    engine = engines.load(weights, n_context=n_context, n_threads=n_threads)
    sampled.fill_cache(engine)
    return engine


def _passes(engine: Any, n_tokens: int, position: int, repeats: int) -> list[float]:
    """Seconds of passes over `n_tokens` tokens after `position` others; one more before does not count."""
    tokens, times = np.arange(n_tokens) % 500, []
    for _ in range(repeats + 1):
        engine.n_tokens = position
        started = time.perf_counter()
        engine.prefill(tokens)
        times.append(time.perf_counter() - started)
    return times[1:]


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
