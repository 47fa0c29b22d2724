"""safetensors headers and folders: exactly the bytes that the files hold, under roles, and nothing
believed unchecked."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import readers_files as files

from modeldb import formats, readers, schemes
from modeldb.errors import BrokenFile, ModelError, UnsupportedModel
from modeldb.safetensors_file import INDEX, open_safetensors

H, KV, FF, V, L = 64, 16, 128, 256, 2
CONFIG = {
    "model_type": "qwen3", "hidden_size": H, "num_hidden_layers": L, "num_attention_heads": 4, "head_dim": 16,
    "num_key_value_heads": 1, "intermediate_size": FF, "vocab_size": V, "tie_word_embeddings": False,
    "max_position_embeddings": 512,
}  # fmt: skip
SHAPES = {
    "self_attn.q_proj": (H, H),
    "self_attn.k_proj": (KV, H),
    "self_attn.v_proj": (KV, H),
    "self_attn.o_proj": (H, H),
    "mlp.gate_proj": (FF, H),
    "mlp.up_proj": (FF, H),
    "mlp.down_proj": (H, FF),
}
NORMS = {"input_layernorm": H, "post_attention_layernorm": H, "self_attn.q_norm": 16, "self_attn.k_norm": 16}
OUTER = {"model.embed_tokens.weight": (V, H), "model.norm.weight": (H,), "lm_head.weight": (V, H)}


def plain(dtype: str = "BF16") -> dict[str, tuple[str, tuple[int, ...]]]:
    found: dict[str, tuple[str, tuple[int, ...]]] = {name: (dtype, shape) for name, shape in OUTER.items()}
    for i in range(L):
        found |= {f"model.layers.{i}.{n}.weight": (dtype, s) for n, s in SHAPES.items()}
        found |= {f"model.layers.{i}.{n}.weight": (dtype, (s,)) for n, s in NORMS.items()}
    return found


def folder(tmp_path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]], **config: Any) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **config}))
    files.write_safetensors(tmp_path / "model.safetensors", tensors)
    return tmp_path


def n_bytes(model: Any, scheme: Any) -> int:
    return sum(f.n_bytes(t.shape) for t, f in schemes.assign(scheme, model))


def test_a_checkpoint_is_the_walk_of_its_configuration(tmp_path: Path) -> None:
    model, scheme = readers.read(str(folder(tmp_path, plain())))
    bare, _ = readers.read(str(tmp_path / "config.json"))
    stored = {t.name: (t.shape, t.role) for t in model.tensors()}
    assert stored == {t.name: (t.shape, t.role) for t in bare.tensors()}
    assert (scheme.id, scheme.label, scheme.nominal_bits) == ("file", "BF16", 16)


def test_the_safetensors_library_writes_what_is_read(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    from safetensors.numpy import save_file

    arrays = {
        "a": numpy.zeros((3, 5), "float32"),
        "b": numpy.zeros((7,), "int8"),
        "c": numpy.zeros((), "float16"),
    }
    save_file(arrays, tmp_path / "x.safetensors", metadata={"format": "pt"})
    read = {t.name: (t.dtype, t.shape, t.nbytes) for t in open_safetensors(tmp_path / "x.safetensors")}
    assert read == {"a": ("F32", (3, 5), 60), "b": ("I8", (7,), 7), "c": ("F16", (), 2)}


def quantized(method: str) -> tuple[dict[str, tuple[str, tuple[int, ...]]], dict[str, Any]]:
    """The linear layers packed in a method's own layout, groups of 32."""
    found = {k: v for k, v in plain("F16").items() if not any(f"{n}." in k for n in SHAPES)}
    config: dict[str, Any] = {}
    for i in range(L):
        for name, (outputs, inputs) in SHAPES.items():
            at = f"model.layers.{i}.{name}"
            match method:
                case "gptq":
                    found[f"{at}.qweight"] = ("I32", (inputs // 8, outputs))
                    found[f"{at}.qzeros"] = ("I32", (inputs // 32, outputs // 8))
                    found[f"{at}.scales"] = ("F16", (inputs // 32, outputs))
                    found[f"{at}.g_idx"] = ("I32", (inputs,))
                case "awq":
                    found[f"{at}.qweight"] = ("I32", (inputs, outputs // 8))
                    found[f"{at}.qzeros"] = ("I32", (inputs // 32, outputs // 8))
                    found[f"{at}.scales"] = ("F16", (inputs // 32, outputs))
                case "compressed-tensors":
                    found[f"{at}.weight_packed"] = ("I32", (outputs, inputs // 8))
                    found[f"{at}.weight_scale"] = ("BF16", (outputs, inputs // 32))
                    found[f"{at}.weight_shape"] = ("I64", (2,))
                case "mlx":
                    found[f"{at}.weight"] = ("U32", (outputs, inputs // 8))
                    found[f"{at}.scales"] = ("BF16", (outputs, inputs // 32))
                    found[f"{at}.biases"] = ("BF16", (outputs, inputs // 32))
                case "bitsandbytes":
                    found[f"{at}.weight"] = ("U8", (outputs * inputs // 2, 1))
                    found[f"{at}.weight.absmax"] = ("F32", (outputs * inputs // 64,))
                    found[f"{at}.weight.quant_map"] = ("F32", (16,))
                    found[f"{at}.weight.quant_state.bitsandbytes__nf4"] = ("U8", (90,))
                case "fp8":
                    found[f"{at}.weight"] = ("F8_E4M3", (outputs, inputs))
                    found[f"{at}.weight_scale_inv"] = ("F32", (-(-outputs // 128), -(-inputs // 128)))
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
    config["quantization_config"] = {
        "quant_method": method,
        "bits": 4,
        "group_size": 32,
        "config_groups": {"group_0": {"weights": weights}},
        "weight_block_size": [128, 128],
    }
    if method == "mlx":
        config = {"quantization": {"bits": 4, "group_size": 32}}
    return found, config


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors", "mlx", "bitsandbytes", "fp8"])
def test_packed_weights_keep_their_bytes_and_their_logical_size(method: str, tmp_path: Path) -> None:
    tensors, config = quantized(method)
    model, scheme = readers.read(str(folder(tmp_path, tensors, **config)))
    held = files.safetensors_bytes(tensors)[1]
    assert n_bytes(model, scheme) == held
    bare, _ = readers.read(str(tmp_path / "config.json"))
    linear = ("attention", "dense")
    logical = sum(t.n_elements for t in model.tensors() if t.role in linear and t.name.endswith(".weight"))
    assert logical == sum(t.n_elements for t in bare.tensors() if t.role in linear)
    assert scheme.label == readers.read(str(tmp_path / "config.json"))[1].id
    if method not in ("bitsandbytes",):  # which keeps no shape in its header
        shapes = {t.name: t.shape for t in bare.tensors()}
        assert all(shapes[t.name] == t.shape for t in model.tensors() if t.name in shapes)


def test_experts_become_stacks(tmp_path: Path) -> None:
    moe = {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    tensors = {k: v for k, v in plain().items() if ".mlp." not in k}
    for i in range(L):
        tensors[f"model.layers.{i}.mlp.gate.weight"] = ("BF16", (4, H))
        for e in range(4):
            at = f"model.layers.{i}.mlp.experts.{e}"
            tensors |= {
                f"{at}.gate_proj.weight": ("BF16", (32, H)),
                f"{at}.up_proj.weight": ("BF16", (32, H)),
                f"{at}.down_proj.weight": ("BF16", (H, 32)),
            }
    model, scheme = readers.read(str(folder(tmp_path, tensors, **moe)))
    bare, _ = readers.read(str(tmp_path / "config.json"))
    stored = {t.name: (t.shape, t.role) for t in model.tensors()}
    assert stored == {t.name: (t.shape, t.role) for t in bare.tensors()}
    assert n_bytes(model, scheme) == files.safetensors_bytes(tensors)[1]


def test_shards_and_their_index(tmp_path: Path) -> None:
    tensors = plain()
    names = sorted(tensors)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    shards = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for shard, members in shards.items():
        files.write_safetensors(tmp_path / shard, {n: tensors[n] for n in members})
    weight_map = {n: shard for shard, members in shards.items() for n in members}
    index = tmp_path / INDEX
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    model, scheme = readers.read(str(tmp_path))
    assert n_bytes(model, scheme) == files.safetensors_bytes(tensors)[1]
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BrokenFile, match=r"1 of 2 files are missing.*00002"):
        readers.read(str(tmp_path))
    for lie in ({"a": "../../etc/passwd.safetensors"}, {"a": 3}, {}, []):
        index.write_text(json.dumps({"weight_map": lie}))
        with pytest.raises(BrokenFile):
            readers.read(str(tmp_path))
    index.write_text(json.dumps({"weight_map": {"x": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(BrokenFile, match="in no file"):
        readers.read(str(tmp_path))


def raw(table: object) -> bytes:
    data = json.dumps(table).encode()
    return struct.pack("<Q", len(data)) + data + b"\0" * 64


def one(dtype: object = "F32", shape: object = (4,), offsets: object = (0, 16)) -> bytes:
    return raw({"t": {"dtype": dtype, "shape": shape, "data_offsets": offsets}})


LIES = {
    "nothing": b"",
    "short": b"\0" * 9,
    "10 GB header": struct.pack("<Q", 10 << 30) + b"{}" + b"\0" * 64,
    "header of 2^64-1": struct.pack("<Q", (1 << 64) - 1) + b"{}" + b"\0" * 64,
    "not JSON": struct.pack("<Q", 8) + b"nonsense" + b"\0" * 64,
    "a list": raw([1]),
    "entry is a number": raw({"t": 3}),
    "unknown dtype": one("F7"),
    "dtype is a list": one(["F32"]),
    "negative shape": one(shape=[-4]),
    "shape is text": one(shape="4"),
    "shape of floats": one(shape=[4.0]),
    "shape overflows": one(shape=[1 << 59, 1 << 59]),
    "bytes do not match": one(offsets=[0, 8]),
    "ends beyond the file": one(shape=[400], offsets=[0, 1600]),
    "backwards": one(offsets=[16, 0]),
    "one offset": one(offsets=[0]),
    "overlap": raw({n: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for n in "ab"}),
    "tensor twice": struct.pack("<Q", 17) + b'{"a": {}, "a":{}}' + b"\0" * 64,
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_is_one_line_and_fast(lie: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors").write_bytes(LIES[lie])
    started = time.process_time()
    with pytest.raises(ModelError) as caught:
        readers.read(str(tmp_path))
    assert time.process_time() - started < 1
    assert "\n" not in str(caught.value)
    assert "model.safetensors" in str(caught.value)


def test_packed_weights_without_a_configuration_of_them_are_refused(tmp_path: Path) -> None:
    tensors, _ = quantized("gptq")
    with pytest.raises(UnsupportedModel, match="quantization_config"):
        readers.read(str(folder(tmp_path, tensors)))


@pytest.mark.parametrize(
    ("text", "is_path"),
    [
        ("./qwen3-8b", True),
        ("/models/x", True),
        ("~/x.gguf", True),
        ("model.gguf", True),
        ("config.json", True),
        ("C:\\models\\x.gguf", True),
        (".", True),
        ("qwen3-8b", False),
        ("Qwen/Qwen3-8B", False),
        ("llama-3.1-8b", False),
    ],
)
def test_paths_are_told_from_names(text: str, is_path: bool) -> None:
    assert readers.looks_like_path(text) is is_path


@pytest.mark.parametrize("make", ["empty folder", "text file", "missing", "lone safetensors", "two ggufs"])
def test_what_is_no_model_is_one_line(make: str, tmp_path: Path) -> None:
    path = tmp_path
    if make == "text file":
        path = tmp_path / "notes.txt"
        path.write_text("hello")
    if make == "missing":
        path = tmp_path / "gone.gguf"
    if make == "lone safetensors":
        path = tmp_path / "m.safetensors"
        files.write_safetensors(path, plain())
    if make == "two ggufs":
        for name in ("a.gguf", "b.gguf"):
            (tmp_path / name).write_bytes(b"")
    with pytest.raises(ModelError) as caught:
        readers.read(str(path))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_all_formats_that_the_mapping_names_exist() -> None:
    from modeldb.safetensors_model import FORMATS

    for name in FORMATS.values():
        formats.get(name)
