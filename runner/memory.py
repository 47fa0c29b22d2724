"""Arrays that begin with a cache line, the large ones on large pages; files read into such."""

from __future__ import annotations

import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

LINE_BYTES = 64
# from which on arrays ask for large pages, as numpy's own do where they need not be zero
LARGE_BYTES = 4 << 20
ARENA_BYTES = 64 << 20
CHUNK_BYTES = 32 << 20  # of a file, that a thread reads at a time
READERS = 2  # threads: memory takes no more than that
LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # of a control group, versions 2 and 1


def zeros(n: int, kind: Any, large: bool = True) -> np.ndarray:
    """`n` zeros of a type. Arrays of `numpy.zeros` begin 16 bytes into a line, so that each vector of 512 bits lies on
    two: prompts took 5 to 7% longer; and lie on small pages, of which the first touch takes nine times as long (Zen 5,
    2026). Pages are there once they are touched. Without `large`, what is never
    touched takes no memory, however near it lies to what is."""
    size = n * np.dtype(kind).itemsize
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if large and size >= LARGE_BYTES and advice is not None:
        # shared memory, which is what `mmap` gives by itself, has large pages only where the system is set so
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        pages.madvise(advice)
        return np.frombuffer(pages, np.uint8, size).view(kind)
    raw = np.zeros(size + LINE_BYTES, np.uint8)
    start = -raw.ctypes.data % LINE_BYTES
    return raw[start : start + size].view(kind)


class Arena:
    """Arrays cut from large pages one after another, however small each is."""

    def __init__(self) -> None:
        self._left = np.zeros(0, np.uint8)

    def bytes(self, n: int) -> np.ndarray:
        """`n` zeros that begin with a cache line."""
        size = -(-n // LINE_BYTES) * LINE_BYTES
        if size > len(self._left):
            self._left = zeros(max(size, ARENA_BYTES), np.uint8)
        found, self._left = self._left[:n], self._left[size:]
        return found


def spare_bytes(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that may be taken: what the system has available, within the limit of the process's control group."""
    import psutil

    found = int(psutil.virtual_memory().available)
    for name in LIMITS:
        try:
            found = min(found, int((groups / name).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return found


def file_bytes(path: Path) -> np.ndarray:
    """The bytes of a file, read into large pages where these take at most half of what memory has to spare (on small
    ones a step takes 5% longer: 1B in Q4_0, Zen 5 in a virtual machine, 2026); else mapped, to be read as they are
    touched. Raises OSError, and ValueError for an empty file."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not hasattr(mmap, "MADV_HUGEPAGE") or size < LARGE_BYTES:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        if size > spare_bytes() / 2:
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            pages.madvise(mmap.MADV_HUGEPAGE)  # followed as far as the system has not read the file yet
            return np.frombuffer(pages, np.uint8)
        found = zeros(size, np.uint8)
        with ThreadPoolExecutor(READERS) as threads:
            for _ in threads.map(lambda at: _read(file.fileno(), found, at), range(0, size, CHUNK_BYTES)):
                pass
    found.flags.writeable = False
    return found


def _read(descriptor: int, out: np.ndarray, at: int) -> None:
    """The chunk of a file that begins at a byte."""
    end = min(at + CHUNK_BYTES, len(out))
    while at < end:
        n = os.preadv(descriptor, [out[at:end].data], at)
        if n == 0:
            raise OSError("it ends before its length")
        at += n
