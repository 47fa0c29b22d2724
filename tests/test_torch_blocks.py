"""Quantized blocks and FP8 on tensors: the same numbers as the reference, in as many bytes as the file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import runner_tiny
import test_runner_checkpoint

from modeldb.errors import BrokenFile, UnsupportedModel
from runner import float8, synthetic, weights
from runner import torch_blocks as blocks
from runner import torch_matrix as matrix
from runner.checkpoint import open_folder
from runner.dequantize import dequantize
from runner.torch_backend import TorchEngine
from runner.weights import Weight

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors")
pytest.importorskip("safetensors.torch")

TOKENS = list(range(3, 40))
CPU = torch.device("cpu")
PATHS = matrix.Paths(kernels=False, fp8_products=False, expanded=torch.float32)


@pytest.mark.parametrize("kind", blocks.FIELDS)
def test_planes_hold_the_bytes_of_the_file_and_expand_bit_equal(kind: str) -> None:
    data = synthetic.blocks(kind, 512, 6, np.random.default_rng(0), 0.05)
    wanted = dequantize(kind, data).reshape(6, 512)
    m = blocks.pack(kind, data, 512, 3, 2, "cpu")
    assert m.nbytes == data.nbytes
    np.testing.assert_array_equal(blocks.expand(m).numpy(), wanted)
    np.testing.assert_array_equal(blocks.pick(m, torch.tensor([4, 1])).numpy(), wanted[[4, 1]])
    np.testing.assert_array_equal(blocks.expand(blocks.part(m, 1, 2, 1)).numpy(), wanted[4:6])


def test_every_scale_and_code_of_mxfp4_expands_bit_equal() -> None:
    data = np.random.default_rng(0).integers(0, 256, (250, 17), np.uint8)
    data[:, 0] = np.arange(250)  # larger scales overflow float32
    found = blocks.expand(blocks.pack("MXFP4", data.reshape(-1), 32, 250, 1, "cpu")).numpy()
    np.testing.assert_array_equal(found.reshape(-1), dequantize("MXFP4", data))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "Q6_K"])
def test_products_by_tiles_are_those_of_the_expanded_matrix(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "TILE_WEIGHTS", 1)  # tiles of 128 rows
    rng = np.random.default_rng(1)
    weight = Weight("w", kind, (256, 300), synthetic.blocks(kind, 256, 300, rng, 0.05))
    held = matrix.load(weight, CPU, torch.float32, True)
    x = torch.from_numpy(rng.standard_normal((9, 256)).astype(np.float32))
    wanted = x.numpy() @ dequantize(kind, weight.data).reshape(300, 256).T
    np.testing.assert_allclose(matrix.product(held, x, PATHS).numpy(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["plain", "bf16", "Q8_0", blocks.FP8])
def test_chosen_and_grouped_experts_agree(kind: str) -> None:
    rng = np.random.default_rng(2)
    values = torch.from_numpy(rng.standard_normal((5, 32, 64)).astype(np.float32))
    held: object = values
    if kind == "bf16":
        held = values = values.bfloat16()
    elif kind == "Q8_0":
        data = synthetic.blocks("Q8_0", 64, 5 * 32, rng, 1.0)
        held = blocks.pack("Q8_0", data, 64, 32, 5, "cpu")
    elif kind == blocks.FP8:
        codes, scale = blocks.quantize_fp8(values.view(160, 64))
        held = blocks.pack_fp8(codes, scale, 32, 64, 5)
    dense = values.float() if isinstance(held, torch.Tensor) else blocks.expand(held).view(5, 32, 64)
    pairs = torch.tensor([0, 0, 1, 3, 3, 3, 4])
    x = torch.from_numpy(rng.standard_normal((7, 64)).astype(np.float32))
    if kind == "bf16":
        x = x.bfloat16().float()
    wanted = torch.einsum("pw,prw->pr", x, dense[pairs])
    ends = torch.tensor([2, 3, 3, 6, 7], dtype=torch.int32)
    loose = {"rtol": 2e-2, "atol": 0.3} if kind == "bf16" else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(matrix.chosen_product(held, x, pairs, 1, PATHS), wanted, **loose)
    torch.testing.assert_close(matrix.grouped_product(held, x, ends, PATHS), wanted, **loose)
    two = matrix.chosen_product(held, x[:1], pairs[:4], 4, PATHS)  # four experts of one token
    torch.testing.assert_close(two, torch.einsum("w,prw->pr", x[0], dense[pairs[:4]]), **loose)


@pytest.mark.parametrize("shape", [(1, 1), (200, 1), (2, 3)])
def test_fp8_scales_of_checkpoints_apply_per_tensor_row_and_block(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    rows, width = 200, 320
    codes = torch.from_numpy(rng.standard_normal((rows, width)).astype(np.float32)).to(torch.float8_e4m3fn)
    scale = torch.from_numpy(rng.uniform(0.5, 2, shape).astype(np.float32))
    m = blocks.pack_fp8(codes.view(torch.uint8), scale, rows, width)
    whole = np.repeat(np.repeat(scale.numpy(), 128, 0), 128, 1) if shape == (2, 3) else scale.numpy()
    wanted = codes.float().numpy() * np.broadcast_to(
        whole[:rows, :width] if shape == (2, 3) else whole, (rows, width)
    )
    np.testing.assert_array_equal(blocks.expand(m).numpy(), wanted)
    picked = torch.tensor([0, 199, 130])
    np.testing.assert_array_equal(blocks.pick(m, picked).numpy(), wanted[picked.numpy()])
    np.testing.assert_array_equal(blocks.expand(blocks.part(m, 128, 72)).numpy(), wanted[128:])


def test_scales_that_do_not_fit_or_are_not_finite_are_refused() -> None:
    codes = torch.zeros(200, 320, dtype=torch.uint8)
    with pytest.raises(BrokenFile, match=r"w: FP8 scales of shape \(3, 1\)"):
        blocks.pack_fp8(codes, torch.ones(3, 1), 200, 320, name="w")
    with pytest.raises(BrokenFile, match="do not serve 200 rows"):
        blocks.pack_fp8(codes, torch.ones(5, 5), 200, 320)
    with pytest.raises(BrokenFile, match="not finite"):
        blocks.pack_fp8(codes, torch.tensor(float("nan")), 200, 320)
    with pytest.raises(BrokenFile, match="not finite"):
        blocks.pack_fp8(codes | 127, torch.ones(1), 200, 320)


@pytest.mark.parametrize("per_row", [True, False])
def test_the_fp8_product_of_the_library_is_near_the_expanded_one(per_row: bool) -> None:
    rng = np.random.default_rng(4)
    values = torch.from_numpy(rng.standard_normal((48, 64)).astype(np.float32))
    m = blocks.pack_fp8(*blocks.quantize_fp8(values, per_row), 48, 64)
    x = torch.from_numpy(rng.standard_normal((8, 64)).astype(np.float32))
    assert matrix.fits_fp8_product(m)
    found, wanted = matrix.fp8_product(m, x), x @ blocks.expand(m).T
    assert float((found - wanted).norm() / wanted.norm()) < 0.05  # activations have three bits of fraction


def test_fp8_weights_are_held_in_half_the_bytes_and_said_to_be(tmp_path: Path) -> None:
    opened = weights.open_file(runner_tiny.write(tmp_path / "m.gguf", "qwen3moe", "BF16"))
    plain = TorchEngine(opened, n_context=64, device="cpu")
    eight = TorchEngine(opened, n_context=64, device="cpu", dtype="float8", static=True)
    name = "blk.0.ffn_up_exps.weight"
    assert eight.held_bytes[name] == opened.tensors[name].data.nbytes // 2 + 4 * 8 * 256
    assert "F8_E4M3 kept packed, tiles expanded to float32" in eight.note
    found, wanted = eight.prefill(TOKENS), plain.prefill(TOKENS)
    assert np.corrcoef(found, wanted)[0, 1] > 0.99
    assert np.corrcoef(eight.decode(5), plain.decode(5))[0, 1] > 0.99


@pytest.mark.parametrize(("name", "kind"), [("llama", "Q4_0"), ("qwen3moe", "Q4_K"), ("gpt-oss", "MXFP4"),
                                            ("qwen2", "Q8_0"), ("deepseek2", "Q6_K"), ("llama", "Q5_K")])  # fmt: skip
def test_packed_and_expanded_weights_give_the_same_logits(name: str, kind: str, tmp_path: Path) -> None:
    opened = weights.open_file(runner_tiny.write(tmp_path / "m.gguf", name, kind))
    packed = TorchEngine(opened, n_context=64, device="cpu", packed=True)
    expanded = TorchEngine(opened, n_context=64, device="cpu", packed=False)
    assert f"{kind} kept packed" in packed.note.replace("Q8_0, ", "") or kind in packed.note
    assert kind in expanded.note
    assert packed.meter.weight_bytes < expanded.meter.weight_bytes
    a, b = packed.prefill(TOKENS), expanded.prefill(TOKENS)
    np.testing.assert_allclose(a, b, atol=1e-3 * float(np.std(b)), rtol=1e-3)
    np.testing.assert_allclose(packed.decode(4), expanded.decode(4), atol=1e-3 * float(np.std(b)), rtol=1e-3)


def test_a_packed_model_takes_the_bytes_of_its_file_but_for_what_is_said(tmp_path: Path) -> None:
    opened = weights.open_file(runner_tiny.write(tmp_path / "m.gguf", "llama", "Q4_0"))
    packed = TorchEngine(opened, n_context=64, device="cpu", packed=True)
    assert packed.held_bytes == {n: w.data.nbytes for n, w in opened.tensors.items()}
    assert packed.meter.n_params == opened.n_params


def test_counts_of_a_step_are_those_of_the_compiled_runner(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    from runner import load

    for name in ("qwen2moe", "gpt-oss"):
        opened = weights.open_file(runner_tiny.write(tmp_path / f"{name}.gguf", name, "Q8_0"))
        engine = load(opened, n_context=64, n_threads=1)
        other = TorchEngine(opened, n_context=64, device="cpu", packed=True)
        assert other.meter.token_weight_bytes == engine.meter.token_weight_bytes, name
        assert other.meter.token_flops == engine.meter.token_flops, name
        engine.close()


@pytest.mark.parametrize(("name", "scales"), [("llama", "tensor"), ("qwen3", "row"), ("qwen3moe", "block"),
                                              ("mixtral", "tensor")])  # fmt: skip
def test_an_fp8_checkpoint_runs_with_its_own_scales(name: str, scales: str, tmp_path: Path) -> None:
    folder, dense = write_fp8_folders(tmp_path, name, scales)
    with pytest.raises(UnsupportedModel, match="packed as `fp8`"):
        weights.open_file(folder)
    eight_engine = TorchEngine(open_folder(folder, fp8=True), n_context=64, device="cpu", static=True)
    dense_engine = TorchEngine(weights.open_file(dense), n_context=64, device="cpu")
    assert "F8_E4M3 kept packed" in eight_engine.note
    assert eight_engine.meter.weight_bytes < 0.5 * dense_engine.meter.weight_bytes
    found, wanted = eight_engine.prefill(TOKENS), dense_engine.prefill(TOKENS)
    np.testing.assert_allclose(found, wanted, atol=1e-3 * float(np.std(wanted)), rtol=1e-3)
    np.testing.assert_allclose(eight_engine.decode(3), dense_engine.decode(3), atol=1e-3, rtol=1e-3)


def write_fp8_folders(tmp_path: Path, name: str, scales: str, kind: str = "F32") -> tuple[Path, Path]:
    """(a checkpoint whose matrices are FP8 under scales per `tensor`, `row` or `block`, the same numbers in `kind`)."""
    source = weights.open_file(runner_tiny.write(tmp_path / "m.gguf", name, kind))
    plain = test_runner_checkpoint.write_folder(tmp_path / "plain", name, kind, source)
    folder, dense = tmp_path / "eight", tmp_path / "dense"
    for copy in (folder, dense):
        shutil.copytree(plain, copy)
    for file in sorted(plain.glob("*.safetensors")):
        stored = safetensors.torch.load_file(file)
        eight, rounded = {}, dict(stored)
        for key, values in stored.items():
            eight[key] = values
            if ("_proj" not in key and ".experts." not in key) or not key.endswith(".weight"):
                continue
            scale, whole = _scales(values.float(), scales)
            codes = (values.float() / whole).clamp(-448, 448).to(torch.float8_e4m3fn)
            eight[key] = codes
            eight[key + ("_scale_inv" if scales == "block" else "_scale")] = scale
            eight[key.removesuffix("weight") + "input_scale"] = torch.ones(())
            rounded[key] = (codes.float() * whole).to(values.dtype)
        safetensors.torch.save_file(eight, folder / file.name)
        safetensors.torch.save_file(rounded, dense / file.name)
    config = json.loads((folder / "config.json").read_text())
    block = {"weight_block_size": [128, 128]} if scales == "block" else {}
    config["quantization_config"] = {"quant_method": "fp8", **block}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, dense


def _scales(values, kind: str):
    """(scales as stored, scales of every number)."""
    if kind == "tensor":
        scale = (values.abs().amax() / 448).reshape(())
        return scale, scale.expand_as(values)
    if kind == "row":
        scale = values.abs().amax(-1, keepdim=True) / 448
        return scale, scale.expand_as(values)
    rows, width = values.shape
    blocks_of = values.view(rows // 128, 128, width // 128, 128).abs().amax((1, 3)) / 448
    return blocks_of, blocks_of.repeat_interleave(128, 0).repeat_interleave(128, 1)


def test_seeded_fp8_codes_are_pytorchs_own_rounding_and_have_the_deviation_of_their_width() -> None:
    values = np.random.default_rng(5).standard_normal(20_000).astype(np.float32) * 100
    values[:3] = (0.0, 1e4, -1e4)
    wanted = torch.from_numpy(values).clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    np.testing.assert_array_equal(float8.rounded(values), wanted.numpy())
    for kind in float8.SCALED:
        codes, scale = float8.matrix("w", kind, (320, 200, 3), np.random.default_rng(0))
        m = blocks.pack_fp8(
            torch.from_numpy(codes.data.copy()), torch.from_numpy(scale.data.view(np.float32)).view(scale.shape[::-1]),
            200, 320, 3,
        )  # fmt: skip
        assert m.nbytes == codes.data.nbytes + float8.scale_bytes(kind, (320, 200, 3))
        assert float(blocks.expand(m).std()) == pytest.approx(320**-0.5, rel=0.02)
