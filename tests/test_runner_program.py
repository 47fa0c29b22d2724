"""Threads that run programs together."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from runner import kernel_ops
from runner.program import Crew, Program


def program(x: np.ndarray, out: np.ndarray, n: int) -> Program:
    """out += x, n times over, each after the one before."""
    made = Program()
    for _ in range(n):
        made.add("add", kernel_ops.add, x, out, len(x), len(x), len(x), 1.0)
    return made.finish()


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_programs_are_run_once_whether_threads_slept_before_them_or_not(n_threads: int) -> None:
    crew = Crew(n_threads)
    x, out = np.ones(64, np.float32), np.zeros(64, np.float32)
    steps = program(x, out, 5)
    for run in range(60):
        crew.run(steps, 1, 0)
        if run % 10 == 0:
            time.sleep(0.02)  # threads go to sleep meanwhile
    crew.run(steps, 1, 0, (1, 3))
    crew.run(steps, 1, 0, (2, 2))
    assert out.tolist() == [60 * 5 + 2.0] * 64
    crew.close()


def test_a_closed_crews_threads_end() -> None:
    before = set(threading.enumerate())
    crew = Crew(3)
    own = set(threading.enumerate()) - before
    assert len(own) == 2
    crew.close()
    for thread in own:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in own)
