"""Buffers of the runner begin with a cache line."""

from __future__ import annotations

import numpy as np
import pytest

from runner.memory import LINE_BYTES, zeros


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.float32, np.int64])
@pytest.mark.parametrize("n", [0, 1, 63, 1000, 3 << 20])
def test_arrays_are_zero_of_their_length_and_begin_with_a_line(n: int, kind: type) -> None:
    found = zeros(n, kind)
    assert found.shape == (n,)
    assert found.dtype == kind
    assert found.nbytes == n * np.dtype(kind).itemsize
    assert found.ctypes.data % LINE_BYTES == 0 or n == 0
    assert not found.any()
    found[:] = 1
    assert found.sum() == n
