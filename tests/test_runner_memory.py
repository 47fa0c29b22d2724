"""Buffers of the runner begin with a cache line, and files are held as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runner import memory
from runner.memory import LINE_BYTES, Arena, file_bytes, spare_bytes, zeros


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


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="pages are told by Linux")
def test_large_arrays_are_the_processs_own_which_may_lie_on_large_pages() -> None:
    """Shared memory gets large pages only where the system is set so."""

    def told() -> dict[str, int]:
        lines = Path("/proc/self/status").read_text().splitlines()
        return {line.split()[0]: int(line.split()[1]) for line in lines if "Rss" in line}

    before, found = told(), zeros(32 << 20, np.uint8)
    found[:] = 1
    after = told()
    assert after["RssAnon:"] - before["RssAnon:"] > 24 << 10
    assert after["RssShmem:"] == before["RssShmem:"]


def test_an_arenas_arrays_are_zero_begin_with_a_line_and_share_no_byte(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "ARENA_BYTES", 1000)
    arena, sizes = Arena(), [1, 64, 65, 900, 5000, 0, 3]
    found = [arena.bytes(n) for n in sizes]
    for i, each in enumerate(found):
        assert len(each) == sizes[i]
        assert each.ctypes.data % LINE_BYTES == 0 or not sizes[i]
        assert not each.any()
        each[:] = i + 1
    assert [set(each.tolist()) for each in found] == [{i + 1} if n else set() for i, n in enumerate(sizes)]


@pytest.mark.parametrize("n", [1, 999, 1000, 4096, 10_001])
@pytest.mark.parametrize("spare", [0, 1 << 30])
def test_a_file_is_held_as_it_is_read_or_mapped(
    n: int, spare: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "LARGE_BYTES", 1000)
    monkeypatch.setattr(memory, "CHUNK_BYTES", 3000)
    monkeypatch.setattr(memory, "spare_bytes", lambda: spare)
    content = np.random.default_rng(n).integers(0, 256, n, dtype=np.uint8)
    path = tmp_path / "file"
    content.tofile(path)
    found = file_bytes(path)
    assert not found.flags.writeable
    assert np.array_equal(found, content)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="empty"):
        file_bytes(path)


def test_memory_to_spare_lies_within_the_limit_of_the_control_group(tmp_path: Path) -> None:
    free = spare_bytes(tmp_path)
    assert free > 1 << 20
    (tmp_path / "memory.max").write_text("max\n")
    assert spare_bytes(tmp_path) > 1 << 20
    (tmp_path / "memory.max").write_text("1048576\n")
    assert spare_bytes(tmp_path) == 1 << 20
