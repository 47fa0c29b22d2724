"""Reference dequantization in numpy, block by block: the oracle of the fused kernels. Bit-equal to the
`gguf` package.

Block layouts: ggml/src/ggml-common.h of llama.cpp. Every function takes blocks as uint8 [n][block bytes]
and returns
float32 [n][block weights].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

FORMATS: dict[str, tuple[int, int]] = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22),
    "Q5_1": (32, 24), "Q8_0": (32, 34), "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144),
    "Q5_K": (256, 176), "Q6_K": (256, 210), "IQ4_NL": (32, 18), "IQ4_XS": (256, 136), "MXFP4": (32, 17),
}  # fmt: skip
# of numbers that are looked up: the experts of a token
TABLES = {"I32": (1, 4)}
STORED = FORMATS | TABLES
# where each block keeps its float16 scales (byte offsets)
SCALE_OFFSETS: dict[str, tuple[int, ...]] = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,), "MXFP4": (),
}  # fmt: skip
_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
_MXFP4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


def dequantize(format_id: str, data: np.ndarray) -> np.ndarray:
    """Bytes (uint8, any shape, whole blocks) -> float32 (flat)."""
    raw = np.ascontiguousarray(data).reshape(-1)
    if format_id == "F32":
        return raw.view(np.float32).copy()
    if format_id == "F16":
        return raw.view(np.float16).astype(np.float32)
    if format_id == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return _BLOCKS[format_id](raw.reshape(-1, FORMATS[format_id][1])).reshape(-1)


def scales_are_finite(format_id: str, data: np.ndarray) -> bool:
    """Whether the scales (for float formats, the numbers) are finite; reads in pieces to bound memory."""
    if format_id in TABLES:
        return True
    offsets = SCALE_OFFSETS.get(format_id)
    size = FORMATS[format_id][1]
    if offsets is None:
        bits: Any
        bits, mask = (
            (np.uint32, 0x7F800000)
            if format_id == "F32"
            else (np.uint16, 0x7C00 if format_id == "F16" else 0x7F80)
        )
        numbers = data.view(bits)
        return all(
            not np.any((numbers[i : i + (1 << 22)] & mask) == mask) for i in range(0, len(numbers), 1 << 22)
        )
    blocks = data.reshape(-1, size)
    if format_id == "MXFP4":
        return not bool(np.any(blocks[:, 0] == 255))
    return not any(np.any((blocks[:, o + 1] & 0x7C) == 0x7C) for o in offsets)


def _half(blocks: np.ndarray, offset: int) -> np.ndarray:
    return blocks[:, offset : offset + 2].copy().view(np.float16).astype(np.float32)


def _nibbles(q: np.ndarray) -> np.ndarray:
    return np.concatenate([q & 15, q >> 4], axis=1)


def _fifth_bits(bits: np.ndarray) -> np.ndarray:
    return np.unpackbits(bits, axis=1, bitorder="little") << 4


def _q4_0(b: np.ndarray) -> np.ndarray:
    return _half(b, 0) * (_nibbles(b[:, 2:]).astype(np.int8) - np.int8(8)).astype(np.float32)


def _q4_1(b: np.ndarray) -> np.ndarray:
    return _half(b, 0) * _nibbles(b[:, 4:]).astype(np.float32) + _half(b, 2)


def _q5_0(b: np.ndarray) -> np.ndarray:
    q = (_nibbles(b[:, 6:]) | _fifth_bits(b[:, 2:6])).astype(np.int8) - np.int8(16)
    return _half(b, 0) * q.astype(np.float32)


def _q5_1(b: np.ndarray) -> np.ndarray:
    q = _nibbles(b[:, 8:]) | _fifth_bits(b[:, 4:8])
    return _half(b, 0) * q.astype(np.float32) + _half(b, 2)


def _q8_0(b: np.ndarray) -> np.ndarray:
    return _half(b, 0) * b[:, 2:].view(np.int8).astype(np.float32)


def _iq4_nl(b: np.ndarray) -> np.ndarray:
    return _half(b, 0) * _IQ4[_nibbles(b[:, 2:])].astype(np.float32)


def _mxfp4(b: np.ndarray) -> np.ndarray:
    e = b[:, :1].astype(np.uint32)
    bits = np.where(e < 2, np.uint32(0x00200000) << np.minimum(e, 1), (np.maximum(e, 1) - 1) << np.uint32(23))
    return bits.astype(np.uint32).view(np.float32) * _MXFP4[_nibbles(b[:, 1:])].astype(np.float32)


def _planes(q: np.ndarray, shifts: tuple[int, ...]) -> np.ndarray:
    """Each run of 32 bytes -> one group of 32 per shift, in order."""
    runs = q.reshape(len(q), -1, 1, 32) >> np.array(shifts, np.uint8).reshape(1, 1, -1, 1)
    return runs.reshape(len(q), -1, 32)


def _q2_k(b: np.ndarray) -> np.ndarray:
    scale = (_half(b, 80) * (b[:, :16] & 15).astype(np.float32)).reshape(-1, 16, 1)
    least = (_half(b, 82) * (b[:, :16] >> 4).astype(np.float32)).reshape(-1, 16, 1)
    q = (_planes(b[:, 16:80], (0, 2, 4, 6)) & 3).reshape(-1, 16, 16)
    return scale * q.astype(np.float32) - least


def _q3_k(b: np.ndarray) -> np.ndarray:
    low, high = _nibbles(b[:, 96:104]), _planes(b[:, 104:108].repeat(8, 1), (0, 2, 4, 6))[:, :, ::8] & 3
    six = (low | (high.reshape(-1, 16) << 4)).astype(np.int8) - np.int8(32)
    q = (_planes(b[:, 32:96], (0, 2, 4, 6)) & 3).astype(np.int8)
    bits = _planes(b[:, :32], tuple(range(8))) & 1
    q = (q - ((bits ^ 1) << 2).astype(np.int8)).reshape(-1, 16, 16)
    return (_half(b, 108) * six.astype(np.float32)).reshape(-1, 16, 1) * q.astype(np.float32)


def _six_bit_pairs(b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y, z = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scale = np.concatenate([x & 63, (z & 15) | ((x >> 6) << 4)], axis=1).astype(np.float32)
    least = np.concatenate([y & 63, (z >> 4) | ((y >> 6) << 4)], axis=1).astype(np.float32)
    return (_half(b, 0) * scale).reshape(-1, 8, 1), (_half(b, 2) * least).reshape(-1, 8, 1)


def _q4_k(b: np.ndarray) -> np.ndarray:
    scale, least = _six_bit_pairs(b)
    return scale * (_planes(b[:, 16:], (0, 4)) & 15).astype(np.float32) - least


def _q5_k(b: np.ndarray) -> np.ndarray:
    scale, least = _six_bit_pairs(b)
    fifth = (_planes(b[:, 16:48], tuple(range(8))) & 1) << 4
    return scale * ((_planes(b[:, 48:], (0, 4)) & 15) | fifth).astype(np.float32) - least


def _q6_k(b: np.ndarray) -> np.ndarray:
    low: np.ndarray = b[:, :128].reshape(-1, 2, 1, 64) >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1)
    low = (low & 15).reshape(-1, 8, 32)
    high = (_planes(b[:, 128:192], (0, 2, 4, 6)) & 3) << 4
    q = ((low | high).astype(np.int8) - np.int8(32)).reshape(-1, 16, 16)
    scale = (_half(b, 208) * b[:, 192:208].view(np.int8).astype(np.float32)).reshape(-1, 16, 1)
    return scale * q.astype(np.float32)


def _iq4_xs(b: np.ndarray) -> np.ndarray:
    low = np.stack([b[:, 4:8] & 15, b[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    both = b[:, 2:4].copy().view(np.uint16)
    high = (both >> np.arange(0, 16, 2, dtype=np.uint16)) & 3
    six = (low | (high.astype(np.uint8) << 4)).astype(np.int8) - np.int8(32)
    q = _IQ4[np.concatenate([b[:, 8:].reshape(-1, 8, 16) & 15, b[:, 8:].reshape(-1, 8, 16) >> 4], axis=2)]
    return (_half(b, 0) * six.astype(np.float32)).reshape(-1, 8, 1) * q.astype(np.float32)


_BLOCKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "IQ4_NL": _iq4_nl,
    "MXFP4": _mxfp4, "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
    "IQ4_XS": _iq4_xs,
}  # fmt: skip
