"""Weights in their quantized form: of a GGUF file or a Hugging Face folder (`runner.checkpoint`), or generated (see
`runner.synthetic`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from modeldb.errors import BrokenFile, UnsupportedModel
from runner.dequantize import FORMATS, STORED, TABLES, scales_are_finite
from runner.memory import file_bytes

MAX_DRAFTS = 64  # far beyond any model


@dataclass(frozen=True)
class Weight:
    """One tensor: `shape` in ggml order (fastest first), `data` its bytes (uint8): flat, or [piece][byte] where pieces
    of its rows share memory (`runner.pool`)."""

    name: str
    format: str
    shape: tuple[int, ...]
    data: np.ndarray = field(repr=False)

    @property
    def width(self) -> int:
        return self.shape[0]

    @property
    def rows(self) -> int:
        return self.shape[1] if len(self.shape) > 1 else 1

    @property
    def row_bytes(self) -> int:
        return row_bytes(self.format, self.width)

    @property
    def address(self) -> int:
        return int(self.data.ctypes.data)

    def pieces(self) -> list[Weight]:
        """The matrix as runs of rows, each flat: itself, where it is one."""
        if self.data.ndim == 1:
            return [self]
        shape = (self.width, self.rows // len(self.data))
        return [Weight(self.name, self.format, shape, piece) for piece in self.data]


def is_table(name: str) -> bool:
    """Whether a tensor's numbers are looked up rather than multiplied."""
    return name.endswith("_tid2eid.weight")


def row_bytes(format_id: str, width: int) -> int:
    block_weights, block_bytes = STORED[format_id]
    return width // block_weights * block_bytes


@dataclass(frozen=True)
class Weights:
    """All tensors of a model by name, with the metadata that describe it. `load_array` reads long metadata
    arrays."""

    name: str
    metadata: dict[str, Any] = field(repr=False)
    tensors: dict[str, Weight] = field(repr=False)
    file: Any = field(default=None, repr=False)

    def get(self, name: str, shape: tuple[int, ...] | None = None) -> Weight:
        """The tensor of this name. Raises BrokenFile when it is missing or not of `shape`."""
        weight = self.tensors.get(name)
        if weight is None:
            raise BrokenFile(f"{self.name}: tensor `{name}` is missing")
        if shape is not None and weight.shape != shape:
            raise BrokenFile(
                f"{self.name}: tensor `{name}` has shape {weight.shape}, its model needs {shape}"
            )
        return weight

    def find(self, name: str, shape: tuple[int, ...] | None = None) -> Weight | None:
        return self.get(name, shape) if name in self.tensors else None

    def head(self, n_spare: int = 0) -> Weight:
        """What logits are made with: a matrix of its own, without `n_spare` of the embeddings, or the embeddings."""
        table = self.get("token_embd.weight")
        return self.find("output.weight", (table.width, table.rows - n_spare)) or table

    @property
    def weight_bytes(self) -> int:
        return sum(w.data.nbytes for w in self.tensors.values())

    @property
    def n_params(self) -> int:
        return sum(prod(w.shape) for w in self.tensors.values())


def open_file(path: str | Path, fp8: bool = False) -> Weights:
    """Map a GGUF file (all its parts), or the safetensors of a Hugging Face folder (`fp8`: also of FP8, see
    `runner.checkpoint`). Raises BrokenFile or UnsupportedModel with one line."""
    if Path(path).is_dir() or str(path).endswith((".safetensors", "config.json")):
        from runner.checkpoint import open_folder

        return open_folder(path, fp8)
    from modeldb.gguf_file import open_gguf

    file = open_gguf(path)
    if file.byte_order != "<":
        raise UnsupportedModel(f"{path}: a big-endian GGUF; the runner reads little-endian files")
    maps = [contents(part) for part in file.paths]
    tensors = {}
    for t in file.tensors:
        if not t.name.isprintable():
            raise BrokenFile(f"{path}: a tensor's name holds control characters")
        if t.type not in (TABLES if is_table(t.name) else FORMATS):
            raise UnsupportedModel(
                f"{path}: tensor `{t.name}` is {t.type}, which the runner has no kernel for"
            )
        expected = row_bytes(t.type, t.shape[0]) * prod(t.shape[1:])
        if t.shape[0] % STORED[t.type][0] or expected != t.nbytes:
            raise BrokenFile(f"{path}: tensor `{t.name}` of shape {t.shape} does not fill {t.type} blocks")
        data = maps[t.part][t.offset : t.offset + t.nbytes]
        if data.nbytes != t.nbytes:
            raise BrokenFile(f"{path}: truncated: tensor `{t.name}` ends beyond the file")
        tensors[t.name] = Weight(t.name, t.type, t.shape, data)
    return Weights(str(path), file.metadata, _without_drafts(file.metadata, tensors), file)


def _without_drafts(metadata: dict[str, Any], tensors: dict[str, Weight]) -> dict[str, Weight]:
    """Without the layers that predict a token further (multi-token prediction), which a text step leaves alone."""
    prefix = str(metadata.get("general.architecture"))
    n_all, n_drafts = (metadata.get(f"{prefix}.{key}") for key in ("block_count", "nextn_predict_layers"))
    if (
        not isinstance(n_all, int)
        or not isinstance(n_drafts, int)
        or not 0 < n_drafts < min(n_all, MAX_DRAFTS)
    ):
        return tensors
    drafts = tuple(f"blk.{i}." for i in range(n_all - n_drafts, n_all))
    return {name: t for name, t in tensors.items() if not name.startswith(drafts)}


def contents(path: Path) -> np.ndarray:
    """The bytes of a file. Raises BrokenFile."""
    try:
        return file_bytes(path)
    except (OSError, ValueError) as error:
        raise BrokenFile(f"{path}: cannot be read: {error}") from None


def check(weights: Weights) -> None:
    """Read every tensor's scales once (which also brings the file into memory) and refuse what is not
    finite."""
    for weight in weights.tensors.values():
        if not scales_are_finite(weight.format, weight.data):
            raise BrokenFile(f"{weights.name}: tensor `{weight.name}` holds numbers that are not finite")
