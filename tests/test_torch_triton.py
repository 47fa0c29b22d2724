"""The Triton kernels, in Triton's interpreter, against the reference dequantization; and compiled, for real targets."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import runner_tiny

from modeldb import readers, schemes
from runner import synthetic, weights
from runner import torch_blocks as blocks
from runner import torch_matrix as matrix
from runner.dequantize import dequantize
from runner.torch_backend import TorchEngine

os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
torch = pytest.importorskip("torch")
pytest.importorskip("triton")
kernels = importlib.import_module("runner.torch_triton")

PATHS = matrix.Paths(kernels=True, fp8_products=False, expanded=torch.float32)


def _packed(kind: str, n: int, rows: int, width: int) -> tuple[blocks.Packed, np.ndarray]:
    rng = np.random.default_rng(0)
    if kind == blocks.FP8:
        values = torch.from_numpy(rng.standard_normal((n * rows, width)).astype(np.float32))
        m = blocks.pack_fp8(*blocks.quantize_fp8(values), rows, width, n)
        return m, blocks.expand(m).numpy()
    data = synthetic.blocks(kind, width, n * rows, rng, 0.05)
    return blocks.pack(kind, data, width, rows, n, "cpu"), dequantize(kind, data).reshape(n * rows, width)


@pytest.mark.parametrize("kind", [*blocks.FIELDS, blocks.FP8])
@pytest.mark.parametrize(("rows", "width"), [(5, 256), (6, 1280)])
def test_blocks_expand_bit_equal(kind: str, rows: int, width: int) -> None:
    m, wanted = _packed(kind, 1, rows, width)
    np.testing.assert_array_equal(kernels.expand(m, torch.empty(rows, width)).numpy(), wanted)
    # not bfloat16: the interpreter cuts its last bits off where hardware rounds
    half = kernels.expand(m, torch.empty(rows, width, dtype=torch.float16))
    np.testing.assert_array_equal(half.numpy(), wanted.astype(np.float16))


@pytest.mark.parametrize("kind", [*blocks.FIELDS, blocks.FP8])
def test_products_with_vectors_are_those_of_the_reference(kind: str) -> None:
    m, dense = _packed(kind, 1, 7, 1280)
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((3, 1280)).astype(np.float32))
    wanted = x.numpy().astype(np.float64) @ dense.T.astype(np.float64)
    np.testing.assert_allclose(
        matrix.product(m, x, PATHS).numpy(), wanted, atol=3e-5 * np.abs(wanted).max() + 1e-6
    )


@pytest.mark.parametrize("kind", ["Q4_0", "Q6_K", "MXFP4", blocks.FP8, "plain"])
def test_products_with_chosen_experts_are_those_of_the_reference(kind: str) -> None:
    rng = np.random.default_rng(2)
    chosen = torch.tensor([3, 0, 2, 3])
    x = torch.from_numpy(rng.standard_normal((2, 256)).astype(np.float32))
    if kind == "plain":
        dense = rng.standard_normal((4 * 6, 256)).astype(np.float32)
        m = torch.from_numpy(dense).view(4, 6, 256)
    else:
        m, dense = _packed(kind, 4, 6, 256)
    wanted = np.stack([dense.reshape(4, 6, 256)[e] @ x[i // 2].numpy() for i, e in enumerate(chosen)])
    found = matrix.chosen_product(m, x, chosen, 2, PATHS)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3)])
def test_fp8_scales_per_tensor_and_per_block_reach_the_kernels(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    codes = torch.from_numpy(rng.standard_normal((130, 320)).astype(np.float32)).to(torch.float8_e4m3fn)
    m = blocks.pack_fp8(codes.view(torch.uint8), torch.rand(shape) + 0.5, 130, 320)
    wanted = blocks.expand(m)
    torch.testing.assert_close(kernels.expand(m, torch.empty(130, 320)), wanted, rtol=0, atol=0)
    x = torch.from_numpy(rng.standard_normal((1, 320)).astype(np.float32))
    torch.testing.assert_close(kernels.matvec(m, x), x @ wanted.T, rtol=1e-4, atol=1e-3)


def test_every_fp8_code_is_decoded_bit_equal() -> None:
    codes = torch.tensor([c for c in range(256) if c & 127 != 127] + [0, 0], dtype=torch.uint8).view(8, 32)
    m = blocks.pack_fp8(codes, torch.ones(1), 8, 32)
    torch.testing.assert_close(kernels.expand(m, torch.empty(8, 32)), codes.view(torch.float8_e4m3fn).float())


@pytest.mark.parametrize(("name", "kind"), [("llama", "Q4_K"), ("gpt-oss", "MXFP4")])
def test_a_model_decoded_by_the_kernels_gives_the_logits_of_the_expanded_one(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "ROWS", 256)  # the interpreter's time goes by programs
    opened = weights.open_file(runner_tiny.write(tmp_path / "m.gguf", name, kind))
    by_kernels = TorchEngine(opened, n_context=16, device="cpu", kernels=True, static=True)
    plain = TorchEngine(opened, n_context=16, device="cpu", packed=False)
    assert "by a Triton kernel" in by_kernels.note
    tokens = [5, 9, 7, 20, 33]  # more than FEW: by tiles
    a, b = by_kernels.prefill(tokens), plain.prefill(tokens)
    np.testing.assert_allclose(a, b, atol=1e-3 * float(np.std(b)), rtol=1e-3)
    np.testing.assert_allclose(by_kernels.decode(6), plain.decode(6), atol=1e-3 * float(np.std(b)), rtol=1e-3)


COMPILE = """
import re, warnings
warnings.simplefilter("ignore")
import triton
from triton.compiler import ASTSource
from triton.backends.compiler import GPUTarget
from runner import torch_triton as kernels
TYPES = {"Q4_0": "u8 u8 u8 fp16", "Q8_0": "i8 i8 i8 fp16", "MXFP4": "u8 u8 u8 u8", "Q4_K": "u8 u8 u8 fp16",
         "Q5_K": "u8 u8 u8 fp16", "Q6_K": "u8 u8 i8 fp16", "F8_E4M3": "u8 u8 u8 fp32", "PLAIN": "bf16 bf16 bf16 bf16"}
for kind, types in TYPES.items():
    for kernel in (kernels._matvec, kernels._expand) if kind == "Q4_K" else (kernels._matvec,):
        names = [n for n in kernel.arg_names if n.islower()]
        kinds = {n: "*" + t for n, t in zip(names, types.split())}
        kinds |= {"x": "*bf16", "out": "*fp32" if kernel is kernels._matvec else "*bf16", "chosen": "*i64"}
        lanes = kernels.LANES[kind]
        fixed = {"FORMAT": kind, "PAIR": kind not in kernels.ONE, "CHOSEN": False, "ROWS": kernels.ROWS,
                 "GROUPS": kernels.TILE_BYTES // lanes, "LANES": lanes}
        fixed = {n: v for n, v in fixed.items() if n in kernel.arg_names}
        signature = {n: "constexpr" if n in fixed else kinds.get(n, "i32") for n in kernel.arg_names}
        aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names)
                   if signature[n].startswith("*") or n in ("n_rows", "width", "groups")}
        source = ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=aligned)
        made = triton.compile(source, target=GPUTarget("cuda", TARGET, 32))
        loads = re.findall(r"ld[.]global\\S*", made.asm["ptx"])
        print(kind, kernel.fn.__name__, sum("v4" in l for l in loads), len(made.asm["cubin"]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler is for Linux")
def test_kernels_compile_for_a_gpu_and_read_codes_in_16_bytes(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    found = subprocess.run(
        [sys.executable, "-c", COMPILE.replace("TARGET", "90")], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parent.parent, env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    rows = [line.split() for line in found.stdout.splitlines()]
    assert len(rows) == len(blocks.FIELDS) + 3
    assert all(int(wide) >= 1 and int(size) > 1000 for _, _, wide, size in rows)


def test_fp8_weights_of_a_scheme_give_the_same_logits_through_the_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "ROWS", 256)  # the interpreter's time goes by programs
    model, _ = readers.read(str(runner_tiny.write(tmp_path / "m.gguf", "qwen3", "F16")), offline=True)
    for quant in ("fp8", "fp8-per-channel", "fp8-block128x128"):
        made = synthetic.weights(replace(model, file_tensors=()), schemes.get(quant), fp8=True)
        plain = TorchEngine(made, n_context=16, device="cpu", kernels=False)
        through = TorchEngine(made, n_context=16, device="cpu", kernels=True, static=True)
        wanted, found = plain.prefill([3, 1, 4]), through.prefill([3, 1, 4])
        np.testing.assert_allclose(found, wanted, atol=1e-3 * float(np.std(wanted)), rtol=1e-3)
        np.testing.assert_allclose(
            through.decode(1), plain.decode(1), atol=1e-3 * float(np.std(wanted)), rtol=1e-3
        )
