"""The loop that each thread runs over a program, the barrier between operations, and how threads meet for a program.

A crew's `meeting` is a row of cache lines: how many programs began, the program at hand (tape, operations, arrivals at
the barrier before it), arrivals at the barrier, and for each thread but the first whether it sleeps.
"""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def,var-annotated"

from __future__ import annotations

import os

from numba import njit, types

from runner.ir import call_at, fetch_add, i64_at, load_acquire
from runner.kernel_tools import OPTIONS

SLOT_BYTES = 32 * 8
LINE_BYTES = 64
SPINS = 4000  # waits longer than this let another thread have the processor
PATIENCE = 1000  # more spins, offering the processor in each, after which a thread without a program sleeps
BEGUN, AT_HAND, BARRIER, SLEEPS = 0, LINE_BYTES, 2 * LINE_BYTES, 3 * LINE_BYTES
TAPE, N_OPERATIONS, ARRIVED = 0, 1, 2  # of the program at hand

if os.name == "posix":
    give_way = types.ExternalFunction("sched_yield", types.int32())
else:  # pragma: no cover - no POSIX scheduler to ask

    @njit(**OPTIONS)
    def give_way():
        return 0


@njit(nogil=True, **OPTIONS)
def announce(meeting, tape, n):
    """Begin a program of `n` operations: threads that wait for one go."""
    job = i64_at(meeting + AT_HAND)
    job[TAPE], job[N_OPERATIONS], job[ARRIVED] = tape, n, load_acquire(meeting + BARRIER)
    fetch_add(meeting + BEGUN, 1)


@njit(nogil=True, **OPTIONS)
def execute(meeting, state, thread, n_threads):
    """Run the program at hand as one of `n_threads` threads. All have done all when the first returns."""
    job, barrier = i64_at(meeting + AT_HAND), meeting + BARRIER
    tape, n, passed = job[TAPE], job[N_OPERATIONS], job[ARRIVED]
    for i in range(max(n, 1)):
        wait = True
        if i < n:
            at = tape + i * SLOT_BYTES
            operation = i64_at(at)
            call_at(operation[0], at + 16, state, thread)
            wait = operation[1] != 0 or i == n - 1
        if wait:
            passed += n_threads
            fetch_add(barrier, 1)
            spins = 0
            while load_acquire(barrier) < passed:
                spins += 1
                if spins > SPINS:
                    give_way()


@njit(nogil=True, **OPTIONS)
def follow(meeting, state, thread, n_threads, begun):
    """Run programs after number `begun` as they begin; the number of the last when none came for a while."""
    spins = 0
    while spins < SPINS + PATIENCE:
        if load_acquire(meeting + BEGUN) != begun:
            begun += 1
            execute(meeting, state, thread, n_threads)
            spins = 0
        spins += 1
        if spins > SPINS:
            give_way()
    return begun


@njit(nogil=True, **OPTIONS)
def falls_asleep(meeting, thread, begun):
    """Say that this thread sleeps, unless a program began meanwhile. The first thread looks who sleeps after it began
    one, and both are in one order for all, so that one of the two sees the other."""
    sleeps = meeting + SLEEPS + (thread - 1) * LINE_BYTES
    fetch_add(sleeps, 1)
    if fetch_add(meeting + BEGUN, 0) == begun:
        return True
    fetch_add(sleeps, -1)
    return False


@njit(nogil=True, **OPTIONS)
def wakes(meeting, thread):
    """Say that this thread no longer sleeps."""
    fetch_add(meeting + SLEEPS + (thread - 1) * LINE_BYTES, -1)


@njit(nogil=True, **OPTIONS)
def asleep(meeting, thread):
    return fetch_add(meeting + SLEEPS + (thread - 1) * LINE_BYTES, 0) != 0
