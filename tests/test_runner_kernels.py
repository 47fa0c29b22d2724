"""Laws of the quantized kernels: the same numbers as the `gguf` package, whatever the format, width and
thread count."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import runner_tiny

from runner import synthetic
from runner.dequantize import FORMATS, dequantize, scales_are_finite
from runner.kernel_matmul import block_tokens, matmul, scratch_bytes, uses_bytes
from runner.kernel_matvec import matvec
from runner.kernel_tools import FEW, SEVERAL
from runner.program import Crew, Program
from runner.room import Packed

FLOATS = ("F32", "F16", "BF16")


def rows_of(kind: str, rows: int, width: int, seed: int = 3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind in FLOATS:
        values = rng.standard_normal((rows, width)).astype(np.float32)
        return gguf.quantize(values, gguf.GGMLQuantizationType[kind]).reshape(rows, -1).view(np.uint8)
    if kind in runner_tiny.QUANTIZED:
        return gguf.quantize(
            rng.standard_normal((rows, width)).astype(np.float32), gguf.GGMLQuantizationType[kind]
        )
    return runner_tiny.blocks(kind, rows, width, rng, 0.3)


def int8_activations(x: np.ndarray) -> np.ndarray:
    """What llama.cpp's Q8_0 makes of activations: int8 with a float16 scale per 32."""
    groups = x.reshape(-1, 32)
    top = np.abs(groups).max(1, keepdims=True)
    codes = np.rint(groups * np.where(top > 0, 127 / np.maximum(top, 1e-30), 0))
    return (codes * (top / 127).astype(np.float16).astype(np.float32)).reshape(x.shape)


def multiply(kind: str, data: np.ndarray, x: np.ndarray, n_threads: int = 2) -> np.ndarray:
    """W x through the packing operation and the kernel of `kind`."""
    from runner import kernel_pack

    (rows, row_bytes), (n, width) = data.shape, x.shape
    padded = -(-n // block_tokens()) * block_tokens()
    p, out = Packed.room(padded * width), np.zeros((n, rows), np.float32)
    size = -(-scratch_bytes() // 64) * 64
    program = Program()
    program.add(
        "pack", kernel_pack.pack, x, width, width, p.floats, p.quants, p.scales, p.sums32, p.sums16, 1, 0
    )
    program.add("multiply", (matvec if n == 1 else matmul)(kind), data, row_bytes, rows, width, out, rows, 0, None,
                x if n == 1 else p.floats, p.quants, p.scales, p.sums32, p.sums16,
                np.zeros(size * n_threads, np.uint8), size)  # fmt: skip
    crew = Crew(n_threads)
    crew.run(program.finish(), n, 0)
    crew.close()
    return out


@pytest.mark.parametrize("kind", FORMATS)
def test_dequantization_is_bit_equal_to_gguf(kind: str) -> None:
    rng = np.random.default_rng(5)
    _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    data = rows_of(kind, 8, 2048)
    if kind not in FLOATS and kind != "MXFP4":  # every bit pattern of codes and small scales, too
        wild = rng.integers(0, 256, data.shape, dtype=np.uint8).reshape(-1, size)
        for o in runner_tiny.SCALES.get(kind, (0, 2) if kind in ("Q4_1", "Q5_1") else (0,)):
            wild[:, o + 1] &= 0xBB
        data = np.concatenate([data, wild.reshape(data.shape)])
    elif kind == "MXFP4":
        data = data.reshape(-1, size).copy()
        data[:, 0] = np.arange(len(data)) % 250
    expected = gguf.dequantize(data.view({"F32": np.float32, "F16": np.float16}.get(kind, np.uint8)),
                               gguf.GGMLQuantizationType[kind])  # fmt: skip
    found = dequantize(kind, data)
    assert np.array_equal(found.view(np.uint32), np.asarray(expected, np.float32).reshape(-1).view(np.uint32))


@pytest.mark.parametrize("kind", FORMATS)
def test_one_token_and_many_tokens_multiply_as_the_dequantized_matrix(kind: str) -> None:
    # a width that is no multiple of 256 where blocks allow it, and rows that fill no tile
    width = 2048 + (32 if FORMATS[kind][0] <= 32 else 256)
    data = rows_of(kind, 70, width)
    dense = dequantize(kind, data).reshape(70, width)
    x = np.random.default_rng(1).standard_normal((29, width)).astype(np.float32)
    coarse = int8_activations(x)
    one = multiply(kind, data, x[:1].copy())
    expected = (x if kind in FLOATS else coarse)[:1] @ dense.T
    assert np.abs(one - expected).max() <= 4e-6 * np.abs(dense).max() * width**0.5 * 4
    # row by row, several, and blocks with a third, two thirds and all of the last
    for n in (2, 3, 5, 13, 29):
        many = multiply(kind, data, x[:n].copy())
        as_bytes = uses_bytes(kind) or (n <= FEW and kind not in FLOATS)
        expected = (coarse if as_bytes else x)[:n] @ dense.T
        assert np.abs(many - expected).max() <= 4e-6 * np.abs(dense).max() * width**0.5 * 4


@pytest.mark.parametrize("n", [5, SEVERAL + 1])
def test_floats_multiply_at_any_width(n: int) -> None:
    data = rows_of("F16", 70, 1000)
    x = np.random.default_rng(1).standard_normal((n, 1000)).astype(np.float32)
    expected = x @ dequantize("F16", data).reshape(70, 1000).T
    assert np.abs(multiply("F16", data, x) - expected).max() <= 1e-5 * np.abs(expected).max() * 4


def test_the_result_does_not_depend_on_the_number_of_threads() -> None:
    data = rows_of("Q4_K", 300, 512)
    x = np.random.default_rng(2).standard_normal((5, 512)).astype(np.float32)
    assert np.array_equal(multiply("Q4_K", data, x, 1), multiply("Q4_K", data, x, 3))
    assert np.array_equal(multiply("Q4_K", data, x[:1].copy(), 1), multiply("Q4_K", data, x[:1].copy(), 3))


@pytest.mark.parametrize("kind", FORMATS)
def test_synthetic_blocks_have_the_wanted_spread_and_no_bias(kind: str) -> None:
    data = synthetic.blocks(kind, 1024, 256, np.random.default_rng(0), 0.05)
    assert data.nbytes == 1024 * 256 * FORMATS[kind][1] // FORMATS[kind][0]
    values = dequantize(kind, data)
    assert 0.035 < values.std() < 0.07
    assert abs(values.mean()) < 0.01
    assert scales_are_finite(kind, data)


@pytest.mark.parametrize("kind", [k for k in FORMATS if k != "MXFP4"])
def test_a_number_that_is_not_finite_is_seen(kind: str) -> None:
    data = rows_of(kind, 4, 512).reshape(-1).copy()
    offset = {"Q2_K": 80, "Q3_K": 108, "Q6_K": 208}.get(kind, 0)
    nan = {"F32": np.float32, "BF16": np.uint16}.get(kind, np.float16)
    data[offset : offset + np.dtype(nan).itemsize] = np.array(
        [0x7FC0 if kind == "BF16" else np.nan], nan
    ).view(np.uint8)
    assert not scales_are_finite(kind, data)
