"""Seeded weights of any model and scheme, made in their quantized form: random codes under sane scales.

A matrix with `width` inputs gets numbers of standard deviation 1 / sqrt(width), so that activations neither
die nor
explode; norm weights are near one and biases near zero. Repeating one megabyte of random codes makes
gigabytes take
seconds; rows are shifted against each other, so that no two adjacent rows are equal.
"""

from __future__ import annotations

import struct
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from modeldb.errors import UnsupportedModel
from modeldb.model import Model
from modeldb.scheme import Scheme
from runner import float8, model_tensors
from runner.dequantize import FORMATS, SCALE_OFFSETS, TABLES, dequantize
from runner.memory import Arena
from runner.weights import Weight, Weights, is_table, row_bytes

PATTERN_BLOCKS = 1 << 14  # distinct blocks before codes repeat
ALIGNMENT = 32


def weights(model: Model, scheme: Scheme, seed: int = 0, fp8: bool = False) -> Weights:
    """Every tensor of this model's file under this scheme. `fp8`: whoever asks can run FP8 (see `runner.checkpoint`).
    Raises UnsupportedModel for a format that the runner has no kernel for."""
    from modeldb import gguf_layout, gguf_metadata
    from modeldb.sublayers import split

    pairs = model_tensors.held(model, scheme, fp8)
    metadata = gguf_metadata.header(split(model), gguf_layout.graph(model), [t for t, _ in pairs])
    rng = np.random.default_rng(seed)
    arena, made = Arena(), list[Weight]()
    for t, format_id in pairs:
        if format_id in float8.SCALED:
            made += float8.matrix(t.name, format_id, t.shape, rng)
        else:
            made.append(tensor(t.name, format_id, t.shape, rng, arena))
    return Weights(f"{model.id} ({scheme.id}, synthetic)", metadata, {w.name: w for w in made})


def tensor(
    name: str, format_id: str, shape: tuple[int, ...], rng: np.random.Generator, arena: Arena | None = None
) -> Weight:
    """One tensor: a norm, a bias, a rotation table, rates of a recurrent state, or a matrix, in the arena where there
    is one."""
    if format_id in TABLES:  # rows of experts, of the least number that a sampled run keeps
        rows = np.argsort(rng.random((shape[1], 2 * shape[0])))[:, : shape[0]]
        return Weight(name, format_id, shape, rows.astype(np.int32).reshape(-1).view(np.uint8))
    if (rates := _rates(name, prod(shape), rng)) is not None:
        return Weight(name, format_id, shape, _encoded(format_id, rates))
    if not is_matrix(name, shape):
        n = prod(shape)
        if name.endswith(".bias") or "sinks" in name:
            values = rng.standard_normal(n) * 0.02
        elif "rope_" in name:
            values = np.ones(n)
        else:
            values = 1 + rng.standard_normal(n) * 0.02
        return Weight(name, format_id, shape, _encoded(format_id, values.astype(np.float32)))
    # embeddings are looked up, not summed over: unit numbers
    sigma = 1.0 if name == "token_embd.weight" else 1 / sqrt(shape[0])
    out = arena.bytes(row_bytes(format_id, shape[0]) * prod(shape[1:])) if arena else None
    return Weight(name, format_id, shape, blocks(format_id, shape[0], prod(shape[1:]), rng, sigma, out))


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is multiplied with (or looked up in): no vector, by shape or by name."""
    vector = (".bias", "_norm.weight", ".ssm_a", ".ssm_d")
    return len(shape) > 1 and not name.endswith(vector) and not is_table(name)


def _rates(name: str, n: int, rng: np.random.Generator) -> np.ndarray | None:
    """Decay rates -16 to -1 and step sizes 0.001 to 0.1 (through softplus), as Mamba-2 begins its training
    (arXiv 2405.21060), so that states neither grow nor vanish; None for other tensors."""
    if name.endswith(".ssm_a"):
        values = -rng.uniform(1.0, 16.0, n)
    elif name.endswith(".ssm_dt.bias"):
        values = np.log(np.expm1(np.exp(rng.uniform(np.log(0.001), np.log(0.1), n))))
    elif name.endswith(".ssm_d"):
        values = np.ones(n)
    else:
        return None
    return values.astype(np.float32)


def _encoded(format_id: str, values: np.ndarray) -> np.ndarray:
    if format_id == "F32":
        return values.view(np.uint8)
    if format_id == "F16":
        return values.astype(np.float16).view(np.uint8)
    if format_id == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    return blocks(format_id, len(values), 1, np.random.default_rng(0), 1.0)


def blocks(format_id: str, width: int, rows: int, rng: np.random.Generator, sigma: float,
           out: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
    """`rows` rows of `width` numbers of standard deviation near `sigma`, as bytes of the format; written to `out` where
    it is given."""
    n_weights, n_bytes = FORMATS[format_id]
    if width % n_weights:
        raise UnsupportedModel(
            f"rows of {width} numbers cannot be stored as {format_id} (blocks of {n_weights})"
        )
    total = width // n_weights * rows
    # odd: rows shift against each other
    distinct = min(total, PATTERN_BLOCKS - 1 if n_weights > 1 else (1 << 20) - 1)
    if n_weights == 1:
        pattern = _encoded(format_id, (rng.standard_normal(distinct) * sigma).astype(np.float32))
    else:
        pattern = _random_blocks(format_id, distinct, rng, sigma).reshape(-1)
    return _repeated(pattern, np.empty(total * n_bytes, np.uint8) if out is None else out)


def _random_blocks(format_id: str, n: int, rng: np.random.Generator, sigma: float) -> np.ndarray:
    data = rng.integers(0, 256, (n, FORMATS[format_id][1]), dtype=np.uint8)
    if format_id == "MXFP4":
        # code values have standard deviation 5.5 in doubled units
        data[:, 0] = np.clip(round(np.log2(sigma / 5.5) + 128), 2, 250)
        return data
    for offset in SCALE_OFFSETS[format_id]:
        data[:, offset : offset + 2] = np.array([1.0], np.float16).view(np.uint8)
    minimum = SCALE_OFFSETS[format_id][1:]
    unit = dequantize(format_id, data[: min(n, 256)])
    if minimum:  # the two scales of a block together centre its codes
        for o in minimum:
            data[:, o : o + 2] = 0
        above = dequantize(format_id, data[: min(n, 256)])
        offset_mean = float(np.mean(above - unit)) or 1.0
        ratio = float(np.mean(above)) / offset_mean
        data[:, minimum[0] : minimum[0] + 2] = np.array([ratio], np.float16).view(np.uint8)
        unit = dequantize(format_id, data[: min(n, 256)])
    else:
        ratio = 0.0
    # scales vary by a factor of two, as trained ones do
    spread = rng.uniform(0.7, 1.3, n) * sigma / max(float(np.std(unit)), 1e-30)
    for i, offset in enumerate(SCALE_OFFSETS[format_id]):
        scale = (spread * (1.0 if i == 0 else ratio)).astype(np.float16)
        data[:, offset : offset + 2] = scale.view(np.uint8).reshape(n, 2)
    return data


def _repeated(pattern: np.ndarray, out: np.ndarray) -> np.ndarray:
    """`out`, full of the pattern."""
    for at in range(0, len(out), len(pattern)):
        more = min(len(pattern), len(out) - at)
        out[at : at + more] = pattern[:more]
    return out


_TYPE_NUMBERS = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12,
    "Q5_K": 13, "Q6_K": 14, "IQ4_NL": 20, "IQ4_XS": 23, "I32": 26, "BF16": 30, "MXFP4": 39,
}  # fmt: skip


def write_gguf(w: Weights, path: str | Path) -> int:
    """Write weights at hand as a GGUF file (version 3); bytes written. Layout: ggml/docs/gguf.md."""
    head = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(w.tensors), len(w.metadata)))
    for key, value in w.metadata.items():
        head += _string(key) + _value(value)
    offset = 0
    for t in w.tensors.values():
        head += _string(t.name) + struct.pack(f"<I{len(t.shape)}Q", len(t.shape), *t.shape)
        head += struct.pack("<IQ", _TYPE_NUMBERS[t.format], offset)
        offset += -(-t.data.nbytes // ALIGNMENT) * ALIGNMENT
    with open(path, "wb") as file:
        file.write(head)
        file.write(bytes(-len(head) % ALIGNMENT))
        for t in w.tensors.values():
            t.data.tofile(file)
            file.write(bytes(-t.data.nbytes % ALIGNMENT))
        return file.tell()


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value) if 0 <= value < 1 << 32 else struct.pack("<Iq", 11, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    kinds = [_value(v) for v in value]
    return (
        struct.pack("<I", 9) + kinds[0][:4] + struct.pack("<Q", len(value)) + b"".join(k[4:] for k in kinds)
    )
