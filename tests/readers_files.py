"""Writers of the files that the readers' tests read: weight-sparse GGUF by the `gguf` package,
safetensors headers,
and GGUF byte by byte where a test needs to lie."""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from modeldb import gguf_layout, schemes
from modeldb.gguf_metadata import header
from modeldb.model import Model
from modeldb.tensor import Tensor

# architectures whose converter writes which layers slide, one by one
WINDOWS_BY_LAYER = {"gemma4", "mimo2", "step35"}
FILE_TYPES = {"F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15, "Q6_K": 18, "MXFP4_MOE": 38}


def write_model(path: Path, model: Model, scheme_id: str = "Q4_K_M", tokens: int = 0) -> int:
    """A GGUF of a catalogue model whose tensor data is a hole in the file. Returns its length in bytes."""
    pairs = schemes.assign(schemes.get(scheme_id), model)
    metadata = header(model, model.architecture, [t for t, _ in pairs])
    windows = [any(c.layer == i and c.window_tokens for c in model.caches()) for i in range(model.n_layers)]
    if model.architecture in WINDOWS_BY_LAYER:
        metadata[f"{model.architecture}.attention.sliding_window_pattern"] = windows
    sharing = sum(getattr(m, "shares_cache", False) for block in model.blocks for m in block.mixers)
    if model.architecture == "gemma4" and sharing:
        metadata["gemma4.attention.shared_kv_layers"] = sharing
    metadata["general.file_type"] = FILE_TYPES[scheme_id]
    return write(path, metadata, [(t, f.id) for t, f in pairs], tokens)


def write(path: Path, metadata: dict[str, Any], tensors: list[tuple[Tensor, str]], tokens: int = 0) -> int:
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key != "general.architecture":
            _add(writer, key, value)
    if tokens:
        writer.add_token_list([f"token {i}" for i in range(tokens)])
        writer.add_token_scores([0.5] * tokens)
    end = 0
    for tensor, format_id in tensors:
        kind = gguf.GGMLQuantizationType[format_id]
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        n_bytes = prod(tensor.shape) // block * block_bytes
        end += -(-n_bytes // 32) * 32
        writer.add_tensor_info(
            tensor.name, tuple(reversed(tensor.shape)), np.dtype(np.float16), n_bytes, raw_dtype=kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    start = -(-path.stat().st_size // 32) * 32
    with path.open("r+b") as file:
        file.truncate(start + end)
    return start + end


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, list(value))


def tensors_of(model: Model) -> tuple[Tensor, ...]:
    return gguf_layout.tensors(model)


# --- GGUF by hand


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def entry(key: str, kind: int, data: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + data


def tensor_entry(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def assemble(
    entries: list[bytes],
    tensors: list[bytes],
    data_bytes: int = 0,
    version: int = 3,
    counts: tuple[int, int] = (0, 0),
) -> bytes:
    """A GGUF of these entries; `counts` lies about how many there are when it is not (0, 0)."""
    n_tensors, n_entries = counts if counts != (0, 0) else (len(tensors), len(entries))
    body = (
        b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_entries) + b"".join(entries) + b"".join(tensors)
    )
    body += b"\0" * (-len(body) % 32)
    return body + b"\0" * data_bytes


ARCHITECTURE = entry("general.architecture", 8, text("llama"))


# --- safetensors


def safetensors_bytes(
    tensors: dict[str, tuple[str, tuple[int, ...]]], hole: bool = True
) -> tuple[bytes, int]:
    """(header with its length, bytes of data after it)."""
    from modeldb.safetensors_file import DTYPE_BITS

    table, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        n_bytes = prod(shape) * DTYPE_BITS[dtype] // 8
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + n_bytes]}
        end += n_bytes
    data = json.dumps(table).encode()
    return struct.pack("<Q", len(data)) + data, end


def write_safetensors(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> int:
    """A safetensors file whose data is a hole. Returns the bytes of data."""
    head, n_bytes = safetensors_bytes(tensors)
    path.write_bytes(head)
    with path.open("r+b") as file:
        file.truncate(len(head) + n_bytes)
    return n_bytes
