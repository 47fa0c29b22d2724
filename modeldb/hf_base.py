"""The keys that most Hugging Face configurations share, as fields of Shape."""

from __future__ import annotations

from typing import Any

from modeldb.errors import BrokenFile
from modeldb.hf_keys import Config
from modeldb.hf_layers import MAX_LAYERS, compress, feed_forwards, windowed

DTYPES = {"bfloat16": "bf16", "float16": "f16", "float32": "f32", "float8_e4m3fn": "fp8"}


def base(c: Config, *, period: int | None = None, mats: int = 3) -> dict[str, Any]:
    """Fields of an ordinary decoder: sizes, attention, windows by `period`, experts, rope. Families amend
    them."""
    n_layers = layer_count(c)
    hidden = c.count("hidden_size", "n_embd", "d_model", "n_embed")
    n_heads = c.count("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", default=0)
    n_kv = c.count("num_key_value_heads", "num_kv_heads", default=n_heads)
    head_dim = c.count("head_dim", "attention_head_dim", default=hidden // n_heads if n_heads else 0)
    if n_heads and (n_kv == 0 or n_heads % n_kv):
        raise BrokenFile(f"{c.name}: {n_heads} heads cannot share {n_kv} key/value heads")
    max_context = c.count(
        "max_position_embeddings",
        "n_positions",
        "n_ctx",
        "max_seq_len",
        "model_max_length",
        "max_sequence_length",
        "max_seq_length",
        "seq_length",
        default=0,
    )
    window = sliding_window(c, max_context)
    fields: dict[str, Any] = {
        "n_layers": n_layers,
        "hidden_size": hidden,
        "vocab_size": c.count("vocab_size", "padded_vocab_size"),
        "n_heads": n_heads,
        "n_kv_heads": n_kv,
        "head_dim": head_dim,
        "intermediate_size": c.count("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", default=0),
        "ffn_mats": mats,
        "max_context": max_context,
        "sliding_window": window,
        "layer_pattern": compress(windowed(c, n_layers, window, period)),
        "tie_word_embeddings": c.flag("tie_word_embeddings", default=False),
        "attention_kind": attention_kind(n_heads, n_kv),
        "native_dtype": DTYPES.get(
            str(c.get("torch_dtype", "dtype", default="bfloat16")).removeprefix("torch."), "bf16"
        ),
    }
    fields.update(_rope(c, head_dim))
    fields.update(_biases(c))
    fields.update(experts(c, n_layers, fields["intermediate_size"]))
    if c.has("kv_lora_rank"):
        fields.update(latent(c))
    return fields


def layer_count(c: Config) -> int:
    """Layers, under whichever key. Raises BrokenFile for a number that no model has."""
    n_layers = c.count("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
    if not 1 <= n_layers <= MAX_LAYERS:
        raise BrokenFile(f"{c.name}: {n_layers} layers are not plausible")
    return n_layers


def attention_kind(n_heads: int, n_kv: int) -> str:
    """`none`, `mha`, `mqa` or `gqa`, by the numbers of heads."""
    return "none" if not n_heads else "mha" if n_heads == n_kv else "mqa" if n_kv == 1 else "gqa"


def sliding_window(c: Config, max_context: int) -> int:
    """Tokens of the window; 0 when it is off, or reaches beyond the context."""
    window = c.count("sliding_window", "sliding_window_size", default=0)
    on = c.flag("use_sliding_window", default=True)
    return 0 if not on or (max_context and window > max_context) else window


def _rope(c: Config, head_dim: int) -> dict[str, Any]:
    scaling = c.get("rope_scaling", "rope_parameters", default={})
    scaling = scaling if isinstance(scaling, dict) else {}
    kind = scaling.get("rope_type") or scaling.get("type") or ""
    share = c.get("partial_rotary_factor", "rotary_pct", default=scaling.get("partial_rotary_factor", 1.0))
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise BrokenFile(f"{c.name}: `partial_rotary_factor` is {share!r:.40}, not between 0 and 1")
    rotary = c.count("rotary_dim", default=0)
    theta = c.get("rope_theta", "rotary_emb_base", default=scaling.get("rope_theta", 0))
    return {
        "rope_scaling": "" if not isinstance(kind, str) or kind == "default" else kind,
        "rope_theta": float(theta) if isinstance(theta, int | float) and not isinstance(theta, bool) else 0.0,
        "partial_rotary_factor": rotary / head_dim
        if rotary and head_dim and rotary <= head_dim
        else float(share),
    }


def _biases(c: Config) -> dict[str, Any]:
    bias = c.flag("attention_bias", "use_bias", "bias", default=False)
    return {
        "qkv_bias": bias,
        "o_bias": c.flag("attention_out_bias", default=bias),
        "mlp_bias": c.flag("mlp_bias"),
    }


def experts(c: Config, n_layers: int, inner: int) -> dict[str, Any]:
    """Routed and shared experts, and which layers have them."""
    n_experts = c.count("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", default=0)
    per_token = c.count(
        "num_experts_per_tok",
        "experts_per_token",
        "num_experts_per_token",
        "moe_topk",
        "moe_k",
        "top_k_experts",
        default=0,
    )
    moe_inner = c.count(
        "moe_intermediate_size", "expert_ffn_hidden_size", "moe_ffn_hidden_size", "expert_intermediate_size",
        default=inner,
    )  # fmt: skip
    n_shared = c.count(
        "n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts", default=0
    )
    shared = c.count(
        "shared_expert_intermediate_size", "shared_intermediate_size", "moe_shared_expert_intermediate_size",
        "share_expert_dim", default=n_shared * moe_inner,
    )  # fmt: skip
    letters = feed_forwards(c, n_layers, n_experts)
    if not n_experts:
        return {"ffn_pattern": compress(letters)}
    if not 1 <= per_token <= n_experts:
        raise BrokenFile(f"{c.name}: {per_token} of {n_experts} experts per token is impossible")
    return {
        "ffn_pattern": compress(letters),
        "n_experts": n_experts,
        "experts_per_token": per_token,
        "moe_intermediate_size": moe_inner,
        "n_shared_experts": n_shared or int(bool(shared)),
        "shared_ff": shared,
    }


def latent(c: Config) -> dict[str, Any]:
    """Multi-head latent attention, and its indexer where there is one."""
    rope, nope = c.count("qk_rope_head_dim"), c.count("qk_nope_head_dim")
    c.get("qk_head_dim", "head_dim")
    return {
        "attention_kind": "mla",
        "q_lora_rank": c.count("q_lora_rank", default=0),
        "kv_lora_rank": c.count("kv_lora_rank"),
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": nope,
        "head_dim": rope + nope,
        "v_head_dim": c.count("v_head_dim"),
        "partial_rotary_factor": 1.0,
    }


def indexer(c: Config, n_layers: int) -> dict[str, Any]:
    """The sparse-attention indexer of DeepSeek-V3.2 and GLM-5: a layer of type `shared` reuses another's."""
    kinds = c.items("indexer_types")
    shares = "shared" in kinds and len(kinds) == n_layers
    return {
        "index_n_heads": c.count("index_n_heads"),
        "index_head_dim": c.count("index_head_dim"),
        "index_topk": c.count("index_topk"),
        "n_indexer_layers": sum(k != "shared" for k in kinds) if kinds else n_layers,
        "index_pattern": "+".join("s" if k == "shared" else "I" for k in kinds) if shares else "",
    }
