"""config.json: the configuration of every supported type gives the catalogue's model, and no size-bearing
key is
passed over in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modeldb import catalogue, readers
from modeldb.errors import BrokenFile, ModelError, UnsupportedModel
from modeldb.hf_config import load_json, read_config
from modeldb.hf_families import FAMILIES
from modeldb.hf_quantization import scheme_of

CONFIGS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "data" / "readers" / "configs.json").read_text(encoding="utf-8")
)
CONFIGS.pop("_about")  # type: ignore[arg-type]
BY_HF_ID = {m.hf_id: m for m in catalogue.load().models}
# the published layer types; what the class's defaults hide, the catalogue's row shows
LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0},
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}


@pytest.mark.parametrize("hf_id", sorted(CONFIGS.keys() & BY_HF_ID.keys()))
def test_a_configuration_gives_the_catalogue_model(hf_id: str) -> None:
    expected = BY_HF_ID[hf_id]
    model, _ = readers.from_config(CONFIGS[hf_id], "config.json", "m")
    towers = () if expected.model_type == "whisper" else ("vision", "audio", "draft")
    assert model.caches() == expected.caches()
    assert model.n_layers == expected.n_layers
    wanted = [(t.name, t.shape) for t in expected.tensors() if t.role not in towers]
    assert [(t.name, t.shape) for t in model.tensors() if t.role not in towers] == wanted


def test_configurations_cover_the_types_that_are_read() -> None:
    read = set()
    for config in CONFIGS.values():
        inner = config.get("text_config", {}).get("model_type") if "text_config" in config else None
        read.add(inner or config["model_type"])
    unread = set(FAMILIES) - read
    # the same layout under another name
    assert unread <= {"qwen2_vl_text", "minimax_text_01", "ministral3", "ministral", "kimi_k2", "gemma4_text"}


def test_a_real_layout_is_read() -> None:
    model, scheme = readers.from_config(LLAMA, "config.json", "llama-3.1-8b")
    assert sum(t.n_elements for t in model.tensors()) == 8_030_261_248
    assert (model.max_context, model.rope_scaling, scheme.id) == (131072, "llama3", "bf16")


def test_step_3_5_in_its_own_words_is_the_catalogue_model() -> None:
    written = json.loads(json.dumps(CONFIGS["stepfun-ai/Step-3.7-Flash"]["text_config"]))
    for key in ("num_key_value_heads", "num_experts_per_tok", "n_routed_experts", "mlp_layer_types"):
        del written[key]
    written |= {
        "num_attention_groups": 8,
        "moe_num_experts": 288,
        "moe_top_k": 8,
        "moe_layers_enum": ",".join(str(i) for i in range(3, 45)),
        "layer_types": [*written["layer_types"], *["sliding_attention"] * 3],
        "num_nextn_predict_layers": 3,
        "rope_theta": [5e6, 1e4, 1e4, 1e4] * 12,
        "partial_rotary_factors": [0.5, 1.0, 1.0, 1.0] * 12,
        "use_head_wise_attn_gate": True,
    }
    model, _ = readers.from_config(written, "config.json", "m")
    assert sum(t.n_elements for t in model.tensors()) == 196_956_130_368
    assert model.caches() == BY_HF_ID["stepfun-ai/Step-3.5-Flash"].caches()
    assert model.rope_theta == 5e6


@pytest.mark.parametrize(
    "key",
    [
        "num_memory_slots",
        "n_copies",
        "extra_dim",
        "adapter_rank",
        "num_mtp_heads",
        "second_window",
        "moe_extra_experts",
        "kv_compression",
        "shared_layers",
        "cross_heads",
    ],
)
def test_a_size_bearing_key_that_is_not_understood_is_named(key: str) -> None:
    with pytest.raises(UnsupportedModel, match=key):
        readers.from_config({**LLAMA, key: 7}, "config.json", "m")


def test_a_size_bearing_key_that_is_off_is_passed() -> None:
    for off in (None, False, 0, "", [], {}):
        readers.from_config({**LLAMA, "num_memory_slots": off}, "config.json", "m")


def test_a_harmless_unknown_key_is_noted_and_remote_code_is_not_run() -> None:
    config = {**LLAMA, "favourite_colour": "blue", "auto_map": {"AutoModel": "evil.Model"}}
    model, _ = readers.from_config(config, "config.json", "m")
    assert "favourite_colour" in model.source
    assert "remote code is not run" in model.source


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_a_missing_key_is_named(key: str) -> None:
    config = {k: v for k, v in LLAMA.items() if k != key}
    with pytest.raises(BrokenFile, match=key):
        readers.from_config(config, "config.json", "m")


@pytest.mark.parametrize(
    "value", ["4096", -1, 1.5, True, [1, 2], {"a": 1}, 1 << 80, float("nan"), float("inf")]
)
def test_a_count_that_is_none_is_named(value: object) -> None:
    with pytest.raises(ModelError, match="hidden_size"):
        readers.from_config({**LLAMA, "hidden_size": value}, "config.json", "m")


def test_an_unknown_type_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedModel, match=r"`rwkv9` is not supported.*llama"):
        readers.from_config({**LLAMA, "model_type": "rwkv9"}, "config.json", "m")
    with pytest.raises(BrokenFile, match="model_type"):
        readers.from_config({"hidden_size": 1}, "config.json", "m")


def test_numbers_that_contradict_each_other_are_refused() -> None:
    bad: list[dict[str, Any]] = [
        {"num_attention_heads": 30, "num_key_value_heads": 7},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": 10**9},
        {"layer_types": ["full_attention"]},
        {"layer_types": ["telepathy"] * 32},
        {"layer_types": [[]] * 32},
        {"num_experts": 4, "num_experts_per_tok": 9},
        {"sliding_window_pattern": "XYZ"},
        {"rope_scaling": 3, "mlp_bias": 3},
    ]
    for change in bad:
        with pytest.raises(ModelError):
            readers.from_config({**LLAMA, **change}, "config.json", "m")


def test_windows_follow_each_family() -> None:
    gemma = {**CONFIGS["google/gemma-3-4b-it"]["text_config"], "model_type": "gemma3_text"}
    gemma.pop("layer_types")
    shape, _ = read_config(gemma, "config.json")
    assert shape.layer_pattern == "SSSSSF" * 5 + "SSSS"
    mistral = {**LLAMA, "model_type": "mistral"}
    assert read_config({**mistral, "sliding_window": None}, "c")[0].layer_pattern == "F*32"
    assert read_config({**mistral, "sliding_window": 4096}, "c")[0].layer_pattern == "S*32"
    qwen = {**LLAMA, "model_type": "qwen2", "sliding_window": 4096, "max_window_layers": 28}
    assert read_config({**qwen, "use_sliding_window": False}, "c")[0].layer_pattern == "F*32"
    assert read_config({**qwen, "use_sliding_window": True}, "c")[0].layer_pattern == "F" * 28 + "SSSS"


QUANTIZED = [
    ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq-4bit-g128"),
    ({"quant_method": "gptq", "bits": 8, "group_size": 32}, "gptq-8bit-g32"),
    ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}, "awq-4bit-g128"),
    ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8-block128x128"),
    ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "fp8-per-tensor"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bnb-nf4"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True}, "bnb-nf4-dq"),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bnb-int8"),
    ({"quant_method": "mxfp4"}, "mxfp4-hf"),
    (
        {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}},
        "hqq-4bit-g64",
    ),
    ({"quant_method": "torchao", "quant_type": "int4_weight_only"}, "torchao-int4wo-g128"),
    (
        {
            "quant_method": "compressed-tensors",
            "config_groups": {
                "group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}
            },
        },
        "fp8-per-channel",
    ),
    (
        {
            "quant_method": "compressed-tensors",
            "config_groups": {
                "group_0": {"weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}}
            },
        },
        "ct-w4a16-sym-g128",
    ),
    (
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}},
        },
        "int8-w8a8",
    ),
    ({"group_size": 64, "bits": 4}, "mlx-4bit-g64"),
]


@pytest.mark.parametrize(("table", "scheme_id"), QUANTIZED, ids=[s for _, s in QUANTIZED])
def test_a_quantization_is_a_known_scheme(table: dict[str, Any], scheme_id: str) -> None:
    key = "quantization_config" if "quant_method" in table else "quantization"
    assert readers.from_config({**LLAMA, key: table}, "config.json", "m")[1].id == scheme_id


@pytest.mark.parametrize(
    "table",
    [{"quant_method": "magic"}, {"quant_method": "gptq", "bits": 5, "group_size": 128}, {"quant_method": 3},
     {"quant_method": "gptq", "bits": "4"}, {"quant_method": "compressed-tensors"}, {"quant_method": []},
     {"quant_method": "fp8", "weight_block_size": [1, 2]}],
)  # fmt: skip
def test_an_unknown_quantization_is_refused(table: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"^c: "):
        scheme_of({"quantization_config": table}, "bf16", "c")


def test_hostile_json_is_one_line() -> None:
    hostile = [
        b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"{", b"", b"[]", b"3", b'{"a": 1, "a": 2}', b"nul",
        b'{"x": ' + b"9" * 5000 + b"}",
    ]  # fmt: skip
    for data in hostile:
        with pytest.raises(BrokenFile) as caught:
            load_json(data, "config.json")
        assert "\n" not in str(caught.value)
