"""GGUF files on disk: one part or many, their metadata, and where each tensor lies."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeldb.errors import BrokenFile
from modeldb.gguf_header import GgufTensor, Header, LongArray, NeedMore, parse

FIRST_READ_BYTES = 4 << 20
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_LETTERS = {
    "uint8": "B", "int8": "b", "uint16": "H", "int16": "h", "uint32": "I", "int32": "i", "float32": "f",
    "bool": "?", "uint64": "Q", "int64": "q", "float64": "d",
}  # fmt: skip


@dataclass(frozen=True)
class GgufFile:
    """A GGUF model: `metadata` (long arrays as LongArray: use `load_array`) and all parts' tensors.

    A tensor's bytes are `tensor.nbytes` at `tensor.offset` of `paths[tensor.part]`.
    """

    paths: tuple[Path, ...]
    version: int
    byte_order: str
    alignment: int
    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]
    file_bytes: int

    def load_array(self, key: str) -> tuple[Any, ...]:
        """The values of an array of the metadata, read from the file when they were left there."""
        value = self.metadata[key]
        if not isinstance(value, LongArray):
            return tuple(value)
        with self.paths[value.part].open("rb") as file:
            file.seek(value.offset)
            if value.type != "string":
                layout = struct.Struct(f"{self.byte_order}{value.count}{_LETTERS[value.type]}")
                return layout.unpack(file.read(layout.size))
            return _strings(file.read, value.count, self.byte_order)


def _strings(read: Callable[[int], bytes], count: int, byte_order: str) -> tuple[str, ...]:
    length = struct.Struct(byte_order + "Q")
    return tuple(read(length.unpack(read(8))[0]).decode("utf-8", "replace") for _ in range(count))


def read_header(read: Callable[[int], bytes], file_bytes: int, name: str, part: int = 0) -> Header:
    """Parse a header with as few bytes as it takes: `read(n)` returns the first n bytes of the file."""
    wanted = FIRST_READ_BYTES
    while True:
        buffer = read(min(wanted, file_bytes))
        if len(buffer) < min(wanted, file_bytes):
            raise BrokenFile(f"{name}: could be read only to byte {len(buffer):,} of {file_bytes:,}")
        try:
            return parse(buffer, file_bytes, name, part)
        except NeedMore as more:
            wanted = max(8 * wanted, more.n_bytes)


def part_names(name: str) -> list[str]:
    """The file names of all parts of the model that file `name` belongs to."""
    match = _PART.search(name)
    if match is None:
        return [name]
    n_parts = int(match[2])
    if not 1 <= int(match[1]) <= n_parts <= 9999:
        raise BrokenFile(f"{name}: not a part of a split model")
    return [f"{name[: match.start()]}-{i:05d}-of-{n_parts:05d}.gguf" for i in range(1, n_parts + 1)]


def join(headers: list[Header], paths: tuple[Path, ...], name: str) -> GgufFile:
    """One model from the headers of its parts; the first part's metadata describe it."""
    first = headers[0]
    declared = first.metadata.get("split.count", len(headers) if len(headers) > 1 else 0)
    if declared and declared != len(headers):
        raise BrokenFile(
            f"{name}: says it has {declared} parts, {len(headers)} found; give the path of one part"
        )
    tensors = tuple(t for header in headers for t in header.tensors)
    if len({t.name for t in tensors}) != len(tensors):
        raise BrokenFile(f"{name}: a tensor occurs in two parts")
    total = first.metadata.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise BrokenFile(f"{name}: its parts hold {len(tensors)} tensors, not the {total} declared")
    return GgufFile(
        paths, first.version, first.byte_order, first.alignment, first.metadata, tensors,
        sum(h.file_bytes for h in headers),
    )  # fmt: skip


def open_gguf(path: str | Path) -> GgufFile:
    """Read the header of a GGUF file, or of all parts when it is one of several.

    Raises BrokenFile for a truncated, inconsistent or incomplete model.
    """
    path = Path(path)
    paths = tuple(path.parent / name for name in part_names(path.name))
    missing = [p.name for p in paths if not p.is_file()]
    if missing and len(paths) == 1:
        raise BrokenFile(f"{path}: {'a folder' if path.is_dir() else 'no such file'}")
    if missing:
        raise BrokenFile(f"{path}: {len(missing)} of {len(paths)} parts are missing, first {missing[0]}")
    return join([_local_header(p, i) for i, p in enumerate(paths)], paths, str(path))


def _local_header(path: Path, part: int) -> Header:
    try:
        with path.open("rb") as file:

            def read(n_bytes: int) -> bytes:
                file.seek(0)
                return file.read(n_bytes)

            return read_header(read, path.stat().st_size, str(path), part)
    except OSError as error:
        raise BrokenFile(f"{path}: cannot be read: {error.strerror}") from None
