"""The loop that each thread runs over a program, and the barrier between operations."""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def,var-annotated"

from __future__ import annotations

import os

from numba import njit, types

from runner.ir import call_at, fetch_add, i64_at, load_acquire
from runner.kernel_tools import OPTIONS

SLOT_BYTES = 28 * 8
SPINS = 4000  # waits longer than this let another thread have the processor

if os.name == "posix":
    give_way = types.ExternalFunction("sched_yield", types.int32())
else:  # pragma: no cover - no POSIX scheduler to ask

    @njit(**OPTIONS)
    def give_way():
        return 0


@njit(nogil=True, **OPTIONS)
def execute(tape, n, state, barrier, thread, n_threads):
    """Run `n` operations of `tape` as one of `n_threads` threads."""
    passed = 0
    for i in range(n):
        at = tape + i * SLOT_BYTES
        operation = i64_at(at)
        call_at(operation[0], at + 16, state, thread)
        if operation[1] != 0 or i == n - 1:
            passed += n_threads
            fetch_add(barrier, 1)
            spins = 0
            while load_acquire(barrier) < passed:
                spins += 1
                if spins > SPINS:
                    give_way()
