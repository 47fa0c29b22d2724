"""Headers of safetensors files: names, types, shapes and places of tensors. Tensor data is never read.

Format: https://huggingface.co/docs/safetensors (8 bytes little-endian length, a JSON table, the data).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from modeldb.errors import BrokenFile, UnsupportedModel

MAX_HEADER_BYTES = 32 << 20  # the library itself allows 100 MB; the largest real headers are a few MB
MAX_TENSORS = 1 << 18
MAX_DIMS = 16
INDEX = "model.safetensors.index.json"
# dtype -> bits per element
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
    "F32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a safetensors file; `shape` in the file's order, `offset` in bytes from the file's
    start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    file: str


def parse_header(table: bytes, data_bytes: int, name: str) -> tuple[StoredTensor, ...]:
    """The tensors of a header's JSON; `data_bytes` is what the file holds after it.

    Raises BrokenFile for anything that cannot be true of the file.
    """
    from modeldb.hf_config import load_json

    entries = load_json(table, name)
    entries.pop("__metadata__", None)
    if len(entries) > MAX_TENSORS:
        raise BrokenFile(f"{name}: {len(entries):,} tensors are not plausible")
    start = 8 + len(table)
    found = [_tensor(key, entry, data_bytes, start, name) for key, entry in entries.items()]
    end = start
    for t in sorted(found, key=lambda t: (t.offset, t.nbytes)):
        if t.offset < end:
            raise BrokenFile(f"{name}: tensor `{t.name[:80]}` overlaps another")
        end = t.offset + t.nbytes
    return tuple(found)


def _tensor(key: str, entry: Any, data_bytes: int, start: int, name: str) -> StoredTensor:
    what = f"{name}: tensor `{key[:80]}`"
    if not isinstance(entry, dict):
        raise BrokenFile(f"{what} is not described by a table")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise UnsupportedModel(f"{what} has unknown dtype {str(dtype)[:30]!r}")
    if shape is None or not _counts(shape) or len(shape) > MAX_DIMS:
        raise BrokenFile(f"{what} has an impossible shape")
    if offsets is None or not _counts(offsets) or len(offsets) != 2:
        raise BrokenFile(f"{what} has an impossible place")
    begin, end = offsets
    n_bits = prod(shape) * DTYPE_BITS[dtype]
    if n_bits % 8 or end - begin != n_bits // 8:
        raise BrokenFile(f"{what} takes {end - begin:,} bytes, its shape needs {n_bits // 8:,}")
    if end > data_bytes:
        raise BrokenFile(f"{what} ends beyond the file: truncated, download it again")
    return StoredTensor(key, dtype, tuple(shape), start + begin, end - begin, Path(name).name)


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(x) is int and 0 <= x < 1 << 60 for x in value)


def read_header(read: Callable[[int, int], bytes], file_bytes: int, name: str) -> tuple[StoredTensor, ...]:
    """The tensors of one file, of which `read(offset, n)` returns bytes; at most the header is read."""
    if file_bytes < 10:
        raise BrokenFile(f"{name}: too short for a safetensors file ({file_bytes} bytes)")
    length = int.from_bytes(read(0, 8)[:8], "little")
    if length > file_bytes - 8:
        raise BrokenFile(f"{name}: truncated or not safetensors: its header would take {length:,} bytes, "
                         f"the file has {file_bytes:,}")  # fmt: skip
    if length > MAX_HEADER_BYTES:
        raise BrokenFile(f"{name}: a header of {length:,} bytes is not plausible")
    table = read(8, length)
    if len(table) != length:
        raise BrokenFile(f"{name}: its header could not be read to the end")
    return parse_header(table, file_bytes - 8 - length, name)


def open_safetensors(path: Path) -> tuple[StoredTensor, ...]:
    """The tensors of one local file."""
    try:
        with path.open("rb") as file:

            def read(offset: int, n_bytes: int) -> bytes:
                file.seek(offset)
                return file.read(n_bytes)

            return read_header(read, path.stat().st_size, str(path))
    except OSError as error:
        raise BrokenFile(f"{path}: cannot be read: {error.strerror}") from None


def shard_names(index: bytes, name: str) -> dict[str, str]:
    """tensor -> file of a `model.safetensors.index.json`. Raises BrokenFile when files are not plain
    names."""
    from modeldb.hf_config import load_json

    table = load_json(index, name).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise BrokenFile(f"{name}: has no `weight_map`")
    for shard in table.values():
        if not isinstance(shard, str) or not shard.endswith(".safetensors") or "/" in shard or "\\" in shard:
            raise BrokenFile(f"{name}: {json.dumps(shard)[:60]} is not the name of a file beside it")
    return table


def joined(
    parts: list[tuple[StoredTensor, ...]], weight_map: dict[str, str], name: str
) -> tuple[StoredTensor, ...]:
    """All shards' tensors, held against the index: none missing, none twice."""
    tensors = tuple(t for part in parts for t in part)
    names = {t.name for t in tensors}
    if len(names) != len(tensors):
        raise BrokenFile(f"{name}: a tensor occurs in two files")
    if missing := sorted(weight_map.keys() - names):
        raise BrokenFile(
            f"{name}: {len(missing)} tensors of the index are in no file, first `{missing[0][:80]}`"
        )
    return tensors


def open_folder(folder: Path) -> tuple[StoredTensor, ...]:
    """The tensors of a model's folder: those of its index, else of its `*.safetensors`; () where there
    are none."""
    index = folder / INDEX
    if index.is_file():
        if index.stat().st_size > MAX_HEADER_BYTES * 2:
            raise BrokenFile(f"{index}: too long for an index")
        weight_map = shard_names(index.read_bytes(), str(index))
        shards = sorted(set(weight_map.values()))
        if missing := [s for s in shards if not (folder / s).is_file()]:
            raise BrokenFile(
                f"{folder}: {len(missing)} of {len(shards)} files are missing, first {missing[0]}"
            )
        return joined([open_safetensors(folder / s) for s in shards], weight_map, str(index))
    files = [folder / "model.safetensors"]
    if not files[0].is_file():
        # Mistral publishes its weights twice; `consolidated` is its own layout
        files = [
            f
            for f in sorted(folder.glob("*.safetensors"))
            if not f.name.startswith(("consolidated", "adapter"))
        ]
    return joined([open_safetensors(f) for f in files], {}, str(folder))
