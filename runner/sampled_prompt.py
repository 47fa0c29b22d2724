"""Prompts of a sampled run: a batch of the stack, at its full number of tokens, and attention behind a long cache.

Matrices of a model that is slow here are multiplied by a share of their rows, for all tokens of the batch: the work of
a row does not depend on the others. A later batch differs from the first by what its attention sees, which is timed
by itself: a few tokens at the prompt's end tell what a pair of tokens takes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from runner.meter import Watch
from runner.sampled import Sample, Stretch, Timing, timing

if TYPE_CHECKING:
    from runner.program import Program

COMPILING, PROBE = 32, 128  # tokens of a first batch, for which kernels are read, and of one that is timed
ROWS_SLOT = 5  # of an operation's tape: the rows of its matrix
LEAST_ROWS = 512  # of a matrix for each thread: eight tiles
LEAST_SHARE = 1 / 64
DEEP_ROWS = 768  # pairs of a token and a head that tell the rate of attention: eight of its tiles
DEEP_S = 0.15  # for a layer's attention at the prompt's end
MATRICES = ("matmul", "experts")
LOOKING_BACK = ("attention", "index")  # operations that read what was cached before


@dataclass(frozen=True)
class Thin:
    """A program that multiplies by a share of its matrices' rows, and how often each operation's time counts."""

    program: Program
    times: tuple[float, ...]


def prefill(sample: Sample, n_tokens: int, seconds: float = 4.0, most: int = 9) -> Timing:
    """A prompt of `n_tokens`, in about `seconds`: two rounds or more, one where the machine is slower than it began."""
    watch, started = Watch(), time.perf_counter()
    batch = min(sample.engine.n_batch, n_tokens)
    sample.engine._program("last")
    sample.engine.room.touch()
    n_whole, rest = divmod(n_tokens, batch)
    behind = _behind_s(sample, n_tokens, batch) if n_tokens > batch else 0.0
    share = _share(sample, batch, seconds / 4 / (2 if rest else 1))
    thin, begin = thinned(sample, share), time.perf_counter()
    rows: list[float] = []
    while not rows or (
        len(rows) < most and (now := time.perf_counter()) + (now - begin) / len(rows) < started + seconds
    ):
        total = n_whole * prefill_once(sample, batch, thin=thin)
        rows.append(total + behind + (prefill_once(sample, rest, thin=thin) if rest else 0.0))
    note = (
        f"1/{round(1 / share)} of the rows of large matrices stands for all in prompts" if share < 1 else ""
    )
    return timing(rows, watch.conditions(), note)


def prefill_once(
    sample: Sample, n_tokens: int, position: int = 0, thin: Thin | None = None, stack: bool = False
) -> float:
    """Seconds of the whole model's batch of `n_tokens` after `position` others, from one batch of the stack; or of all
    rows of the stack itself."""
    engine, share = sample.engine, sample.part.share_of_experts
    thin = thin or thinned(sample, 1.0)
    program = thin.program
    engine.room.tokens[:n_tokens] = np.arange(n_tokens) % min(1000, sample.n_words)
    stretches = sample.stretches(program, lambda k: k.n_run_prefill, apart=share < 1)
    if stack:
        stretches = [replace(s, times=1.0) for s in stretches]
    stretches = [part for s in stretches for part in _by_times(s, thin.times)]
    if share == 1:
        return sample.timed(program, stretches, n_tokens, position)
    # each kept expert gets the tokens that it would get among all: fewer tokens, and more experts than are kept
    few = max(1, round(n_tokens * share))
    total = sample.timed(program, [s for s in stretches if not s.experts], n_tokens, position)
    for i, stretch in enumerate(stretches):
        if stretch.experts:
            if not stretches[i - 1].experts:
                engine.crew.run(program, few, position, (stretch.rows[0] - 1, stretch.rows[0]))  # route
            own = stretch if stack else replace(stretch, times=stretch.times * n_tokens / few)
            total += sample.timed(program, [own], few, position) - sample.apart_s
    return total


# -- matrices by a share of their rows -----------------------------------------------------------------------


def thinned(sample: Sample, share: float) -> Thin:
    """The program of prompts with `share` of the rows of large matrices, as far as they multiply many tokens."""
    program, _ = sample.engine._program("last")
    times = [1.0] * len(program.rows)
    if share == 1:
        return Thin(program, tuple(times))
    tape = program.tape.copy()
    for i, name in enumerate(program.names[: program.names.index("last")]):
        rows = int(tape[i, ROWS_SLOT])
        kept = max(LEAST_ROWS * sample.engine.n_threads, -(-int(rows * share) // LEAST_ROWS) * LEAST_ROWS)
        if name in MATRICES and kept < rows:
            tape[i, ROWS_SLOT], times[i] = kept, rows / kept
    return Thin(replace(program).lay(tape), tuple(times))


def _by_times(stretch: Stretch, times: tuple[float, ...]) -> list[Stretch]:
    """The stretch in runs of operations that count equally often."""
    first, end = stretch.rows
    cuts = [i for i in range(first + 1, end) if times[i] != times[i - 1]]
    edges = [first, *cuts, end]
    return [
        replace(stretch, rows=(a, b), times=stretch.times * (times[a] if a < b else 1.0))
        for a, b in pairwise(edges)
    ]


def _share(sample: Sample, batch: int, seconds: float) -> float:
    """The share of rows with which a batch of the stack takes about `seconds`: 1, 1/2, 1/4 and so on."""
    least, share = thinned(sample, LEAST_SHARE), 1.0
    probe = min(PROBE, batch)
    prefill_once(sample, min(COMPILING, batch), thin=least)
    expected = prefill_once(sample, probe, thin=least, stack=True) * batch / probe
    while expected * share > seconds and share > LEAST_SHARE:
        share /= 2
    return share


# -- attention behind the first batch ------------------------------------------------------------------------


def _behind_s(sample: Sample, n_tokens: int, batch: int) -> float:
    """Seconds that the attention of later batches takes beyond that of as many first ones."""
    program, _ = sample.engine._program("last")
    total, first = 0.0, 0
    places = [k for k, name in enumerate(program.names) if name in LOOKING_BACK]
    for kind in sample.part.kinds:
        layer = first if kind.n_run else len(program.marks) - 2
        edges = program.marks[layer].row, program.marks[layer + 1].row
        h = sample.engine.hyper
        window = h.windows[layer] if h.turns_near(layer) else 0  # compressed rows are of all tokens
        later = _seen(window, 0, n_tokens) - sum(
            _seen(window, 0, min(batch, n_tokens - at)) for at in range(0, n_tokens, batch)
        )
        for row in (k for k in places if edges[0] <= k < edges[1]):
            total += len(kind.layers) * later * _pair_s(sample, program, row, window, n_tokens)
        first += kind.n_run
    return total


def _seen(window: int, position: int, n_tokens: int) -> int:
    """Pairs of one of `n_tokens` tokens after `position` others and a token that it sees."""
    near = n_tokens if not window else min(n_tokens, max(0, window - position))  # these see all before them
    return near * position + near * (near + 1) // 2 + (n_tokens - near) * window


def _pair_s(sample: Sample, program: Program, row: int, window: int, n_tokens: int) -> float:
    """Seconds of attention for a pair of tokens: some tokens at the prompt's end against as many at its begin."""
    few = min(max(4, DEEP_ROWS // sample.engine.hyper.n_heads), sample.engine.n_batch)
    times: list[list[float]] = []
    started = time.perf_counter()
    ends = (0, n_tokens - few)
    while len(times) < 2 or (len(times) < 9 and time.perf_counter() - started < DEEP_S):
        each = []
        for position in ends:
            before = time.perf_counter()
            sample.engine.crew.run(program, few, position, (row, row + 1))
            each.append(time.perf_counter() - before)
        times.append(each)
    low, high = np.median(np.array(times), axis=0)
    pairs = _seen(window, ends[1], few) - _seen(window, 0, few)
    return max(0.0, float(high - low)) / pairs if pairs > 0 else 0.0
