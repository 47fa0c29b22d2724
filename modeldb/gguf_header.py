"""The header of a GGUF file, parsed from its first bytes; tensor data is never read.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, either byte order).
Everything declared in the file is checked against the file's size before it is believed, so that a hostile
header costs neither memory nor time.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from typing import Any

from modeldb.errors import BrokenFile, UnsupportedModel

HEADER_LIMIT_BYTES = 256 << 20  # the largest real headers (256k vocabularies) are near 20 MB
MAX_TENSORS = 1 << 17
MAX_METADATA = 1 << 16
MAX_STRINGS = 1 << 24  # in all arrays together
MAX_NAME_BYTES = 1024
MAX_KEY_BYTES = 65535  # the specification's own limit
MAX_DIMS = 4  # GGML_MAX_DIMS
KEPT_NUMBERS = 4096  # longer arrays stay in the file
KEPT_STRINGS = 64

# ggml type number -> (name, weights per block, bytes per block); ggml/src/ggml-common.h of llama.cpp
# 0c1e57098.
GGML_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2),
    26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip
REMOVED_TYPES = {
    4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8",
    36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8",
}  # fmt: skip

# metadata value type -> struct letter
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_TYPE_NAMES = {
    0: "uint8", 1: "int8", 2: "uint16", 3: "int16", 4: "uint32", 5: "int32", 6: "float32", 7: "bool",
    8: "string", 9: "array", 10: "uint64", 11: "int64", 12: "float64",
}  # fmt: skip


class NeedMore(Exception):
    """The header goes on beyond the bytes at hand: read at least `n_bytes` of the file and parse again."""

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes
        super().__init__(n_bytes)


@dataclass(frozen=True, slots=True)
class LongArray:
    """A long metadata array left in the file: `count` values of `type`, the first at byte `offset` of
    `part`."""

    type: str
    count: int
    offset: int
    part: int = 0

    def __len__(self) -> int:
        return self.count


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor's place: `shape` in ggml order, `offset` from the start of its part's file, sizes in
    bytes."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int
    part: int = 0


@dataclass(frozen=True)
class Header:
    """What one GGUF file says before its tensor data, which starts at `data_offset`."""

    version: int
    byte_order: str  # "<" or ">"
    alignment: int
    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]
    data_offset: int
    file_bytes: int


class _Cursor:
    """A position in the bytes at hand, which are the first of a file of `size` bytes."""

    __slots__ = ("at", "buffer", "name", "order", "part", "size", "strings_left")

    def __init__(self, buffer: bytes, size: int, name: str, part: int) -> None:
        self.buffer, self.size, self.name, self.part = buffer, size, name, part
        self.at, self.order, self.strings_left = 0, "<", MAX_STRINGS

    def broken(self, what: str) -> BrokenFile:
        # names in a damaged file may hold line breaks; a message is one line
        return BrokenFile(f"{self.name}: {''.join(c if c.isprintable() else '?' for c in what)}")

    def short(self, n_bytes: int) -> Exception:
        if n_bytes > self.size:
            return self.broken(
                f"truncated or broken GGUF: the header reaches byte {n_bytes:,}, the file has {self.size:,}; "
                "download it again"
            )
        if n_bytes > HEADER_LIMIT_BYTES:
            return self.broken(f"not a sane GGUF: its header is longer than {HEADER_LIMIT_BYTES >> 20} MiB")
        return NeedMore(n_bytes)

    def take(self, n_bytes: int) -> bytes:
        end = self.at + n_bytes
        if end > len(self.buffer):
            raise self.short(end)
        piece = self.buffer[self.at : end]
        self.at = end
        return piece

    def skip(self, n_bytes: int) -> None:
        if self.at + n_bytes > self.size:
            raise self.short(self.at + n_bytes)
        self.at += n_bytes

    def numbers(self, letters: str) -> tuple[Any, ...]:
        layout = struct.Struct(self.order + letters)
        return layout.unpack(self.take(layout.size))

    def string(self, limit: int, what: str) -> str:
        (length,) = self.numbers("Q")
        if length > limit:
            if self.at + length > self.size:
                raise self.short(self.at + length)
            raise self.broken(f"{what} of {length:,} bytes is not plausible")
        return self.take(length).decode("utf-8", "replace")

    def skip_strings(self, count: int) -> None:
        if count * 8 > self.size - self.at:
            raise self.short(self.at + count * 8)
        self.strings_left -= count
        if self.strings_left < 0:
            raise self.broken(f"more than {MAX_STRINGS:,} strings in metadata arrays")
        unpack, buffer, at = struct.Struct(self.order + "Q").unpack_from, self.buffer, self.at
        try:
            for _ in range(count):
                at += 8 + unpack(buffer, at)[0]
        except (struct.error, OverflowError):
            raise self.short(at + 8) from None
        self.at = at
        if at > len(buffer):
            raise self.short(at)

    def value(self, type_number: int, key: str) -> Any:
        if type_number in _SCALARS:
            return self.numbers(_SCALARS[type_number])[0]
        if type_number == _STRING:
            return self.string(HEADER_LIMIT_BYTES, f"string `{key}`")
        if type_number == _ARRAY:
            return self.array(key)
        raise self.broken(f"metadata key `{key}` has unknown type {type_number}")

    def array(self, key: str) -> Any:
        element, count = self.numbers("IQ")
        start = self.at
        if element in _SCALARS:
            n_bytes = count * struct.calcsize("<" + _SCALARS[element])
            if count <= KEPT_NUMBERS:
                return self.numbers(f"{count}{_SCALARS[element]}")
            self.skip(n_bytes)
        elif element == _STRING:
            if count <= KEPT_STRINGS:
                return tuple(self.string(HEADER_LIMIT_BYTES, f"string in `{key}`") for _ in range(count))
            self.skip_strings(count)
        elif element == _ARRAY:
            raise self.broken(f"metadata key `{key}` is an array of arrays, which GGUF does not allow")
        else:
            raise self.broken(f"array `{key}` has elements of unknown type {element}")
        return LongArray(_TYPE_NAMES[element], count, start, self.part)


def parse(buffer: bytes, file_bytes: int, name: str, part: int = 0) -> Header:
    """Parse the header that `buffer`, the first bytes of a file of `file_bytes` bytes, begins with.

    Raises NeedMore when the buffer ends inside the header, BrokenFile or UnsupportedModel (one line, naming
    the file by `name`) when the header cannot be trusted.
    """
    cursor = _Cursor(buffer, file_bytes, name, part)
    version, n_tensors, n_metadata = _preamble(cursor)
    metadata: dict[str, Any] = {}
    for _ in range(n_metadata):
        key = cursor.string(MAX_KEY_BYTES, "metadata key")
        if key in metadata:
            raise cursor.broken(f"metadata key `{key}` occurs twice")
        metadata[key] = cursor.value(cursor.numbers("I")[0], key)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1) or alignment > 1 << 20:
        raise cursor.broken(f"general.alignment is {alignment!r}, not a small power of two")
    entries = [_tensor_entry(cursor) for _ in range(n_tensors)]
    data_offset = -(-cursor.at // alignment) * alignment
    tensors = _placed(cursor, entries, data_offset, alignment)
    return Header(version, cursor.order, alignment, metadata, tensors, data_offset, file_bytes)


def _preamble(cursor: _Cursor) -> tuple[int, int, int]:
    magic = cursor.take(min(4, cursor.size))
    if magic != b"GGUF":
        raise cursor.broken(f"not a GGUF file: it starts with {magic!r}")
    version = cursor.numbers("I")[0]
    if version & 0xFFFF == 0:
        cursor.order = ">"
        version = int.from_bytes(version.to_bytes(4, "little"), "big")
    if version == 1:
        raise UnsupportedModel(
            f"{cursor.name}: GGUF version 1 (2023) is not read; convert it again with llama.cpp"
        )
    if version not in (2, 3):
        raise cursor.broken(f"GGUF version {version} is unknown; versions 2 and 3 are read")
    n_tensors, n_metadata = cursor.numbers("QQ")
    if n_tensors > MAX_TENSORS or n_metadata > MAX_METADATA:
        raise cursor.broken(f"{n_tensors:,} tensors and {n_metadata:,} metadata entries are not plausible")
    return version, n_tensors, n_metadata


def _tensor_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string(MAX_NAME_BYTES, "tensor name")
    (n_dims,) = cursor.numbers("I")
    if not 1 <= n_dims <= MAX_DIMS:
        raise cursor.broken(f"tensor `{name}` has {n_dims} dimensions; 1 to {MAX_DIMS} are possible")
    *shape, type_number, offset = cursor.numbers(f"{n_dims}QIQ")
    return name, tuple(shape), type_number, offset


def _placed(
    cursor: _Cursor, entries: list[tuple[str, tuple[int, ...], int, int]], data_offset: int, alignment: int
) -> tuple[GgufTensor, ...]:
    """The tensors with names, types, sizes and places checked: inside the file, and none over another."""
    tensors, seen = [], set()
    for name, shape, type_number, offset in entries:
        if name in seen:
            raise cursor.broken(f"tensor `{name}` occurs twice")
        seen.add(name)
        type_name, nbytes = _size(cursor, name, shape, type_number)
        if offset % alignment:
            raise cursor.broken(f"tensor `{name}` starts at {offset}, not a multiple of {alignment}")
        tensors.append(GgufTensor(name, shape, type_name, data_offset + offset, nbytes, cursor.part))
    end = data_offset
    for tensor in sorted(tensors, key=lambda t: t.offset):
        if tensor.offset < end:
            raise cursor.broken(f"tensor `{tensor.name}` overlaps another")
        end = tensor.offset + tensor.nbytes
    if tensors and end > cursor.size:
        raise cursor.broken(
            f"truncated GGUF: its tensors reach byte {end:,}, the file has {cursor.size:,}; download it again"
        )
    return tuple(tensors)


def _size(cursor: _Cursor, name: str, shape: tuple[int, ...], type_number: int) -> tuple[str, int]:
    if type_number in REMOVED_TYPES:
        raise UnsupportedModel(
            f"{cursor.name}: tensor `{name}` has type {REMOVED_TYPES[type_number]}, which llama.cpp removed; "
            "quantize the model again"
        )
    if type_number not in GGML_TYPES:
        raise UnsupportedModel(f"{cursor.name}: tensor `{name}` has unknown ggml type {type_number}")
    type_name, block, block_bytes = GGML_TYPES[type_number]
    n_elements = prod(shape)
    if n_elements == 0 or n_elements >= 1 << 62:
        raise cursor.broken(f"tensor `{name}` has impossible dimensions {shape}")
    if shape[0] % block:
        raise cursor.broken(
            f"tensor `{name}` has rows of {shape[0]}, not a multiple of {type_name}'s {block}"
        )
    return type_name, n_elements // block * block_bytes
