"""The tensors that a model's file is said to hold are those of the tiny files, which llama.cpp loaded."""

# mypy: disable-error-code=no-untyped-def
from __future__ import annotations

import gguf
import pytest
import runner_tiny
from tiny_parts import HEAD_DIM, HEADS, HIDDEN, INNER, KV_HEADS, LAYERS, VOCAB

from modeldb import gguf_layout
from modeldb.shape import Shape, build

PLAIN = {"layer_pattern": f"F*{LAYERS}", "ffn_pattern": f"D*{LAYERS}", "n_heads": HEADS, "n_kv_heads": HEADS,
         "head_dim": HEAD_DIM, "intermediate_size": INNER}  # fmt: skip
MIXED = {"n_experts": 8, "moe_intermediate_size": 256, "n_shared_experts": 1, "shared_ff": 256}
LATENT = {**PLAIN, "head_dim": 96, "v_head_dim": 64, "attention_kind": "mla", "q_lora_rank": 64, "kv_lora_rank": 128,
          "qk_rope_head_dim": 32, "qk_nope_head_dim": 64}  # fmt: skip
GPT = {**PLAIN, "ffn_mats": 2}
BIASED = {**GPT, "norm_params_per_channel": 2, "mlp_bias": True}
SHAPES = {  # by the tiny model's name: Hugging Face's model_type, and what differs
    "bloom": ("bloom", {**BIASED, "emb_norm": 1, "qkv_bias": True, "o_bias": True}),
    "mpt": ("mpt", {**GPT, "n_kv_heads": KV_HEADS}),
    "gptj": ("gptj", {**BIASED, "lm_head_bias": True, "norms_per_layer": 1}),
    "minicpm3": ("minicpm3", LATENT),
    "minimax-01": ("minimax_text_01", {**PLAIN, "layer_pattern": "LLFL", "ffn_pattern": "E*4", "n_kv_heads": KV_HEADS,
                   "n_experts": 8, "experts_per_token": 2, "moe_intermediate_size": 256, "linear_kind": "lightning",
                   "lin_k_heads": HEADS, "lin_v_heads": HEADS, "lin_k_dim": HEAD_DIM, "lin_v_dim": HEAD_DIM}),
    "mistral4": ("mistral3", {**LATENT, **MIXED, "ffn_pattern": f"E*{LAYERS}", "experts_per_token": 2}),
    "ling3": ("bailing_hybrid", {**PLAIN, **MIXED, "layer_pattern": "LFLF", "ffn_pattern": "D+E*3", "head_dim": 128,
                                 "attention_kind": "hybrid:mla", "kv_lora_rank": 128, "qk_rope_head_dim": 64,
                                 "qk_nope_head_dim": 64, "v_head_dim": 32, "linear_kind": "kda", "lin_k_heads": HEADS,
                                 "lin_v_heads": HEADS, "lin_k_dim": 64, "lin_v_dim": 64, "conv_kernel": 4,
                                 "shared_ff": 128, "mla_gate_heads": True, "kda_full_gates": True, "mtp_layers": 1,
                                 "experts_per_token": 2}),
    "glm5-next": ("glm5_next", {**PLAIN, **MIXED, **LATENT, "layer_pattern": "LFLF", "ffn_pattern": "D+E*3",
                                "attention_kind": "hybrid:mla", "qk_rope_head_dim": 0, "v_head_dim": 64,
                                "linear_kind": "kda", "lin_k_heads": HEADS, "lin_v_heads": HEADS, "lin_k_dim": 64,
                                "lin_v_dim": 64, "conv_kernel": 4, "index_n_heads": 8, "index_head_dim": 128,
                                "index_topk": 12, "n_indexer_layers": 2, "idx_kpool": 4, "mhc": 4,
                                "experts_per_token": 2}),
    "step35": ("step3p7", {**PLAIN, **MIXED, "layer_pattern": "FSSF", "ffn_pattern": "D+E*3", "n_kv_heads": KV_HEADS,
                           "sliding_window": 16, "swa_heads": 6, "qk_norm": "head", "q_gate": "per_head",
                           "experts_per_token": 3, "score_bias_is_param": True, "rope_scaling": "llama3"}),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_a_layout_names_the_tensors_of_a_file_that_llama_cpp_loads(tmp_path, name: str) -> None:
    model_type, own = SHAPES[name]
    fields = {"hidden_size": HIDDEN, "vocab_size": VOCAB, **own}
    n_layers = 4 if name in ("step35", "ling3", "minimax-01", "glm5-next") else LAYERS
    model = build(Shape(model_type, n_layers, **fields), id=name, name=name)  # type: ignore[arg-type]
    found = {t.name: t.shape for t in gguf_layout.tensors(model)}
    file = gguf.GGUFReader(runner_tiny.write(tmp_path / "tiny.gguf", name))
    assert found == {t.name: tuple(int(n) for n in t.shape) for t in file.tensors}
