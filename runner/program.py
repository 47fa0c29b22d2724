"""A step of the model as a list of operations, and the threads that run it.

Compiling the forward pass to a flat program costs one Python call per step and one barrier per operation,
so that
even small models decode at memory speed.
"""

from __future__ import annotations

import queue
import struct
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from runner.kernel_execute import announce, asleep, execute, falls_asleep, follow, wakes
from runner.kernel_stream import FOLLOWING
from runner.kernel_tools import POSITION, PREFIX, THREADS, TOKENS
from runner.memory import zeros

SLOTS = 32  # int64 per operation: its function, whether all wait for it, its arguments
ARGUMENTS = FOLLOWING  # at most
LINE = 8  # int64 per cache line


def bits(value: float) -> int:
    """A float argument as an int64 slot."""
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


@dataclass(frozen=True)
class Mark:
    """Where a layer begins (or, the last mark, what follows the layers): its first operation, and the weight bytes
    and FLOPs of one token before it."""

    row: int
    touched: int
    flops: float


@dataclass
class Program:
    """Operations in order. `marks` say where each layer begins and where the last one ends."""

    names: list[str] = field(default_factory=list)
    rows: list[tuple[int, tuple[int, ...], int]] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)  # arrays whose addresses the arguments hold
    tape: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    address: int = 0  # of the tape
    counters: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    marks: list[Mark] = field(default_factory=list)
    streams: set[int] = field(default_factory=set)  # rows that are products of one token

    def add(
        self, name: str, operation: Any, *arguments: int | float | np.ndarray | None, wait: bool = True,
            streams: bool = False) -> None:  # fmt: skip
        """Append an operation. Arrays pass as addresses, floats as bits, None as 0. Without `wait`, threads
        go on to the next operation at once, which must not read what this one writes. `streams`: it is
        `kernel_matvec.matvec`, and what comes before it may ask for its weights."""
        if streams:
            self.streams.add(len(self.rows))
        slots = []
        for argument in arguments:
            if isinstance(argument, np.ndarray):
                self.kept.append(argument)
                slots.append(int(argument.ctypes.data))
            elif isinstance(argument, float):
                slots.append(bits(argument))
            else:
                slots.append(int(argument or 0))
        self.kept.append(operation)
        self.names.append(name)
        self.rows.append((operation.address, tuple(slots), int(wait)))

    def last(self, operation: Any) -> tuple[int, ...] | None:
        """The arguments of the last operation, if it is this one and all wait for it."""
        if not self.rows or not self.rows[-1][2] or self.rows[-1][0] != operation.address:
            return None
        return self.rows[-1][1]

    def replace(self, name: str, operation: Any, *arguments: int | float | np.ndarray | None) -> None:
        """Another operation in the last one's place."""
        self.names.pop()
        self.rows.pop()
        self.add(name, operation, *arguments)

    def finish(self) -> Program:
        """Lay out the tape: per operation its function, whether a barrier follows, and its arguments."""
        n = len(self.rows)
        self.counters = np.zeros(n * LINE, np.int64)
        tape = np.zeros((n, SLOTS), np.int64)
        base = self.counters.ctypes.data
        following = 0
        for i, (address, slots, wait) in reversed(list(enumerate(self.rows))):
            assert len(slots) < ARGUMENTS, self.names[i]
            tape[i, 0], tape[i, 1], tape[i, 2] = address, wait, base + i * LINE * 8
            tape[i, 3 : 3 + len(slots)] = slots
            tape[i, FOLLOWING + 2] = following
            if i in self.streams:
                following = tape.ctypes.data + (i * SLOTS + 2) * 8
        return self.lay(tape)

    def lay(self, tape: np.ndarray) -> Program:
        """Run from this tape: operations in order, their arguments perhaps others than those that were added."""
        self.tape, self.address = tape, int(tape.ctypes.data)
        return self


class Crew:
    """Threads that run programs together. The calling thread is one of them; the others look for the next program for a
    while, a fraction of a millisecond, before they sleep: waking them takes longer than a layer. `prefixed`: of a run
    from the first position on, all tokens but the last see each other."""

    def __init__(self, n_threads: int, prefixed: bool = False) -> None:
        self.n_threads, self.prefixed = n_threads, prefixed
        self.state = zeros(LINE, np.int64)
        self.meeting = zeros((3 + n_threads) * LINE, np.int64)
        self._addresses = int(self.meeting.ctypes.data), int(self.state.ctypes.data)
        self.beds: list[queue.SimpleQueue] = [queue.SimpleQueue() for _ in range(n_threads - 1)]
        for i in range(n_threads - 1):
            threading.Thread(target=self._work, args=(i + 1, self.beds[i]), daemon=True).start()

    def _work(self, thread: int, bed: queue.SimpleQueue) -> None:
        begun, (meeting, state), awake = 0, self._addresses, True
        while awake:
            begun = follow(meeting, state, thread, self.n_threads, begun)
            if falls_asleep(meeting, thread, begun):
                awake = bed.get()
                wakes(meeting, thread)

    def run(
        self, program: Program, n_tokens: int, position: int, rows: tuple[int, int] | None = None
    ) -> None:
        """One step over `n_tokens` tokens, the first at `position`; of its operations only those from rows[0] up to
        rows[1], where given."""
        first, end = rows or (0, len(program.rows))
        meeting, state = self._addresses
        self.state[TOKENS], self.state[POSITION], self.state[THREADS] = n_tokens, position, self.n_threads
        if self.prefixed and position == 0:
            self.state[PREFIX] = n_tokens - 1
        program.counters.fill(0)
        announce(meeting, program.address + first * SLOTS * 8, end - first)
        for i, bed in enumerate(self.beds):
            if asleep(meeting, i + 1):
                bed.put(True)
        execute(meeting, state, 0, self.n_threads)

    def close(self) -> None:
        """End the threads."""
        for bed in self.beds:
            bed.put(False)
        self.beds = []
