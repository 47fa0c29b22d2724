"""Laws of safetensors weights: the model of a GGUF file gives the same logits from a Hugging Face folder."""

# mypy: disable-error-code=no-untyped-def
from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runner_tiny

from modeldb.errors import BrokenFile, UnsupportedModel
from runner import checkpoint, weights
from runner.dequantize import dequantize
from runner.engine import load

T = runner_tiny
COMMON: dict[str, Any] = {
    "hidden_size": T.HIDDEN, "num_hidden_layers": T.LAYERS, "num_attention_heads": T.HEADS, "head_dim": T.HEAD_DIM,
    "num_key_value_heads": T.KV_HEADS, "intermediate_size": T.INNER, "vocab_size": T.VOCAB, "rope_theta": 10000.0,
    "max_position_embeddings": T.CONTEXT, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
# OPT says none
ROTATING = (
    "intermediate_size",
    "rope_theta",
    "rms_norm_eps",
    "head_dim",
    "num_key_value_heads",
)
PHI = {"rope_type": "longrope", "attention_factor": 1.1, "original_max_position_embeddings": T.CONTEXT}
GEMMA = {
    "query_pre_attn_scalar": 64,
    "sliding_window": 16,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3"},
    "qwen3moe": {"model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 256,
                 "norm_topk_prob": True},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "gemma2": {"model_type": "gemma2", **GEMMA, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3": {"model_type": "gemma3_text", **GEMMA, "tie_word_embeddings": False, "rope_local_base_freq": 10000.0,
               "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
               "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "phi3": {"model_type": "phi3", "rope_scaling": PHI},
    "opt": {"model_type": "opt", "ffn_dim": T.INNER, "activation_function": "relu", "word_embed_proj_dim": T.HIDDEN,
            "do_layer_norm_before": True},
}  # fmt: skip
STEMS = {v: k for k, v in checkpoint._STEMS.items() if "block_sparse" not in k and k != "mlp.gate_up_proj"}
GEMMA_STEMS = STEMS | {v: k for k, v in checkpoint._GEMMA_STEMS.items()}
OPT_STEMS = STEMS | {v: k for k, v in checkpoint._OPT_STEMS.items()}


def write_folder(folder: Path, name: str, kind: str, source: weights.Weights) -> Path:
    """A Hugging Face folder of the tensors of a GGUF file: two shards, experts one by one, Gemma's norms less one."""
    stored: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    config, body = (
        json.loads(json.dumps(COMMON | CONFIGS[name])),
        "model.decoder." if name == "opt" else "model.",
    )
    if name == "opt":
        config = {k: v for k, v in config.items() if k not in ROTATING}
    for t in source.tensors.values():
        shape, data = tuple(reversed(t.shape)), t.data
        if t.name.startswith("rope_factors_"):
            config["rope_scaling"][t.name[13:].partition(".")[0] + "_factor"] = dequantize(
                "F32", data
            ).tolist()
            continue
        # undo llama.cpp's order of rotary pairs
        if name in ("llama", "mixtral") and re.search(r"attn_[qk]\.", t.name):
            rows = data.reshape(-1, runner_tiny.HEAD_DIM // 2, 2, t.row_bytes)
            data = np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(-1)
        if name.startswith("gemma") and t.name.endswith("norm.weight"):
            data = (dequantize("F32", data) - np.float32(1)).view(np.uint8)
        final = "final_layer_norm." if name == "opt" else "norm."
        outer = {v: k for k, v in checkpoint._OUTER.items() if "norm." not in k or k.startswith(final)}
        if t.name in outer:
            prefix = "" if outer[t.name].startswith("lm_head") else body
            stored[prefix + outer[t.name]] = (t.format, shape, data.tobytes())
            continue
        _, layer, stem, suffix = t.name.split(".")
        if stem.endswith("_exps"):
            modules = {"gate": "w1", "up": "w3", "down": "w2"} if name == "mixtral" else \
                {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}  # fmt: skip
            part = "block_sparse_moe" if name == "mixtral" else "mlp"
            for i, one in enumerate(data.reshape(shape[0], -1)):
                own = f"model.layers.{layer}.{part}.experts.{i}.{modules[stem[4:-5]]}.weight"
                stored[own] = (t.format, shape[1:], one.tobytes())
            continue
        stems = OPT_STEMS if name == "opt" else GEMMA_STEMS if name.startswith("gemma") else STEMS
        module = "mlp.gate_up_proj" if name == "phi3" and stem == "ffn_up" else stems[stem]
        stored[f"{body}layers.{layer}.{module}.{suffix}"] = (t.format, shape, data.tobytes())
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    names = list(stored)
    for i, half in enumerate((names[::2], names[1::2])):
        write_shard(folder / f"model-{i}.safetensors", {n: stored[n] for n in half})
    return folder


def write_shard(path: Path, stored: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    table, at = {}, 0
    for name, (dtype, shape, data) in stored.items():
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    head = json.dumps(table).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"".join(d for _, _, d in stored.values()))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_gives_the_logits_of_the_gguf_file(tmp_path: Path, name: str) -> None:
    file = weights.open_file(runner_tiny.write(tmp_path / "x.gguf", name, "F16"))
    folder = weights.open_file(write_folder(tmp_path / "hf", name, "F16", file))
    assert folder.n_params == file.n_params
    engines = [load(w, n_context=256, n_batch=64, n_threads=1) for w in (file, folder)]
    expected, found = (e.prefill(runner_tiny.prompt(), all_logits=True) for e in engines)
    # llama's pairs stand elsewhere, so that sums round in another order; Gemma's norms lose a bit to the 1
    assert np.abs(found - expected).max() <= 2e-3 * expected.std()
    if name in ("qwen2", "qwen3", "qwen3moe"):
        assert np.array_equal(found, expected)
    for engine in engines:
        engine.close()


def folder_of(tmp_path: Path, config: dict, dtype: str = "F16") -> Path:
    (tmp_path / "config.json").write_text(json.dumps(COMMON | config))
    size = {"F16": 2, "F8_E4M3": 1}[dtype]
    shape = (T.VOCAB, T.HIDDEN)
    write_shard(
        tmp_path / "model.safetensors", {"lm_head.weight": (dtype, shape, bytes(T.VOCAB * T.HIDDEN * size))}
    )
    return tmp_path


@pytest.mark.parametrize(("config", "dtype", "said"), [
    ({"model_type": "llama", "quantization_config": {"quant_method": "awq"}}, "F16", "packed as `awq`"),
    ({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}, "F16", "packed as `gptq`"),
    ({"model_type": "llama"}, "F8_E4M3", "`lm_head.weight` is F8_E4M3"),
    ({"model_type": "mamba2"}, "F16", "no `mamba2` architecture"),
    ({"model_type": "opt", "do_layer_norm_before": False}, "F16", "norm after the residual"),
    ({"model_type": "opt", "word_embed_proj_dim": 64}, "F16", "`word_embed_proj_dim` differs"),
    ({"model_type": "opt", "activation_function": "gelu"}, "F16", "activation `gelu`"),
    ({"model_type": "llama", "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "F16", "`dynamic`"),
])  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(
    tmp_path: Path, config: dict, dtype: str, said: str
) -> None:
    with pytest.raises(UnsupportedModel, match=said):
        load(folder_of(tmp_path, config, dtype))


def test_a_folder_without_its_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BrokenFile, match=r"`token_embd.weight` is missing"):
        load(folder_of(tmp_path, {"model_type": "llama"}))
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-2])
    with pytest.raises(BrokenFile, match="truncated"):
        load(tmp_path)
