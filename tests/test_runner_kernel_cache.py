"""Compiled kernels are found again by the next process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")

KEYS = """
from runner import kernel_matmul, kernel_matvec
from runner.kernel_tools import _said
for made in (kernel_matvec.matvec("Q4_0"), kernel_matvec.matvec("Q8_0"), kernel_matmul.matmul("Q4_K"),
             kernel_matvec.expert_matvec("F16")):
    print(_said(made.function))
"""


def test_a_kernel_made_of_other_kernels_has_one_name_in_every_process() -> None:
    said = []
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", KEYS], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed}, cwd=Path(__file__).parent.parent,
        )  # fmt: skip
        said.append(done.stdout.splitlines())
    assert said[0] == said[1]
    assert len(set(said[0])) == 4
    assert "rows_times_token" in said[0][0]
    assert "'Q4_0'" in said[0][0]
