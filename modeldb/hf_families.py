"""What each `model_type` of Hugging Face means: how its keys and its fixed traits make a Shape.

Field names follow the configuration classes of Transformers 5.23.0; models with remote code (internlm2, mimo,
nemotron-nas, bailing_moe_v2, the older Qwen and MiniMax) follow the config.json of their repositories.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modeldb.errors import UnsupportedModel
from modeldb.hf_base import base, experts, indexer, latent
from modeldb.hf_hybrids import HYBRIDS
from modeldb.hf_keys import Config
from modeldb.hf_layers import compress, placed, qwen_windows

Fields = dict[str, Any]
Family = Callable[[Config], Fields]


def plain(*, period: int | None = None, mats: int = 3, **fixed: Any) -> Family:
    """A decoder of the ordinary kind with fixed traits."""

    def read(c: Config) -> Fields:
        return {**base(c, period=period, mats=mats), **fixed}

    return read


def qwen(**fixed: Any) -> Family:
    """Qwen 2 and 3: windows by `max_window_layers` and biased queries, keys and values where `fixed` says
    so."""

    def read(c: Config) -> Fields:
        f = {**base(c), **fixed}
        f["qkv_bias"] = c.flag("qkv_bias", default=bool(f["qkv_bias"]))
        f["layer_pattern"] = compress(qwen_windows(c, f["n_layers"], f["sliding_window"]))
        if f.get("shared_gate") and not f.get("shared_ff"):
            f["shared_gate"] = False
        return f

    return read


def _unbiased_output(family: Family) -> Family:
    """`attention_bias` (or `bias`) reaches queries, keys and values, not the output projection."""

    def read(c: Config) -> Fields:
        return {**family(c), "o_bias": c.flag("attention_out_bias")}

    return read


def _everywhere(c: Config) -> Fields:
    """StarCoder2 and ERNIE: `use_bias` means all projections."""
    starcoder = c.text("model_type") == "starcoder2"
    f = base(c, period=0, mats=2 if starcoder else 3)
    bias = c.flag("use_bias")
    return {**f, "qkv_bias": bias, "o_bias": bias, "mlp_bias": bias, "norm_params_per_channel": 1 + starcoder}


def _ernie_moe(c: Config) -> Fields:
    f = _everywhere(c)
    c.get("moe_norm_min", "moe_use_aux_free", "moe_gate_act", "moe_capacity")
    first, last = (
        c.count("moe_layer_start_index", default=0),
        c.count("moe_layer_end_index", default=f["n_layers"] - 1),
    )
    step = c.count("moe_layer_interval", default=1) or 1
    at = [i for i in range(f["n_layers"]) if (i + 1) % step == 0 and first <= i <= last]
    return {**f, "ffn_pattern": compress(placed(f["n_layers"], at, "E", "D")), "score_bias_is_param": True}


def _cohere(c: Config) -> Fields:
    f = base(c, period=4)
    return {**f, "norms_per_layer": 1, "qk_norm": "full" if c.flag("use_qk_norm") else ""}


def _olmo(c: Config) -> Fields:
    return {**base(c), "norm_params_per_channel": 0}


def _stablelm(c: Config) -> Fields:
    f = base(c)
    f.update(norm_params_per_channel=2, qkv_bias=c.flag("use_qkv_bias"), o_bias=False)
    f["norms_per_layer"] = 1 if c.flag("use_parallel_residual") else 2
    return {**f, "qk_norm": "full" if c.flag("qk_layernorm") else ""}


def _phi(c: Config) -> Fields:
    c.require("qk_layernorm", False, "a norm of queries and keys")
    return {
        **base(c, mats=2),
        "norm_params_per_channel": 2,
        "norms_per_layer": 1,
        "qkv_bias": True,
        "o_bias": True,
        "mlp_bias": True,
        "lm_head_bias": True,
    }


def _phimoe(c: Config) -> Fields:
    return {**base(c), "norm_params_per_channel": 2, "lm_head_bias": c.flag("lm_head_bias")}


def _falcon(c: Config) -> Fields:
    f = base(c, mats=2)
    new, bias = c.flag("new_decoder_architecture"), c.flag("bias")
    if not new:
        f["n_kv_heads"] = 1 if c.flag("multi_query", default=True) else f["n_heads"]
    n_norms = c.count("num_ln_in_parallel_attn", default=2 if new else 1)
    f["norms_per_layer"] = n_norms if new or c.flag("parallel_attn", default=True) else 2
    f["intermediate_size"] = f["intermediate_size"] or 4 * f["hidden_size"]
    c.require("alibi", False, "a position encoding by ALiBi")
    f["attention_kind"] = "mqa" if f["n_kv_heads"] == 1 else "gqa"
    return {**f, "norm_params_per_channel": 2, "qkv_bias": bias, "o_bias": bias, "mlp_bias": bias}


def _gpt(**fixed: Any) -> Family:
    """GPT-2 and its kin: LayerNorm, biases everywhere, 4 x hidden inside."""

    def read(c: Config) -> Fields:
        f = base(c, mats=2)
        f["intermediate_size"] = f["intermediate_size"] or 4 * f["hidden_size"]
        if "multi_query" in c.values:
            f["n_kv_heads"] = 1 if c.flag("multi_query") else f["n_heads"]
            f["attention_kind"] = "mqa" if f["n_kv_heads"] == 1 else "mha"
        f.update(norm_params_per_channel=2, qkv_bias=True, o_bias=True, mlp_bias=True)
        return {**f, "learned_pos": f["max_context"], **fixed}

    return read


def _opt(c: Config) -> Fields:
    f = _gpt()(c)
    if c.count("word_embed_proj_dim", default=f["hidden_size"]) != f["hidden_size"]:
        raise UnsupportedModel(
            f"{c.name}: `word_embed_proj_dim` differs from `hidden_size`: not supported yet"
        )
    c.require("do_layer_norm_before", True, "a norm after the residual")
    c.get("enable_bias", "layer_norm_elementwise_affine")
    return {**f, "learned_pos": f["max_context"] + 2}


def _bert(c: Config) -> Fields:
    return {**base(c, mats=2), **BERT, "learned_pos": c.count("max_position_embeddings"),
            "type_vocab": c.count("type_vocab_size", default=2), "pooler": True}  # fmt: skip


def _nomic_bert(c: Config) -> Fields:
    c.get(
        "pad_vocab_size_multiple",
        "rotary_emb_fraction",
        "qkv_proj_bias",
        "mlp_fc1_bias",
        "mlp_fc2_bias",
        "use_rms_norm",
        "fused_bias_fc",
        "attn_pdrop",
    )
    f = base(c)
    f.update(
        qkv_bias=c.flag("qkv_proj_bias"), o_bias=c.flag("qkv_proj_bias"), mlp_bias=c.flag("mlp_fc1_bias")
    )
    return {**f, "type_vocab": c.count("type_vocab_size", default=2), "emb_norm": 1, "final_norm": 0,
            "norm_params_per_channel": 2, "has_lm_head": False}  # fmt: skip


BERT: Fields = {
    "qkv_bias": True,
    "o_bias": True,
    "mlp_bias": True,
    "norm_params_per_channel": 2,
    "emb_norm": 1,
    "final_norm": 0,
    "has_lm_head": False,
    "tie_word_embeddings": True,
}


def _whisper(c: Config) -> Fields:
    f = base(_with(c, num_hidden_layers=c.count("decoder_layers")), mats=2)  # that key counts the encoder's
    c.get("encoder_attention_heads", "encoder_ffn_dim", "use_weighted_layer_sum")
    return {
        **f,
        "n_kv_heads": f["n_heads"],
        "encoder_layers": c.count("encoder_layers"),
        "attention_kind": "mha",
        "mel": c.count("num_mel_bins"),
        "src_pos": c.count("max_source_positions"),
        "tgt_pos": c.count("max_target_positions"),
        "intermediate_size": c.count("decoder_ffn_dim"),
        "norm_params_per_channel": 2,
        "max_context": c.count("max_target_positions"),
    }


def _gpt_oss(c: Config) -> Fields:
    f = base(c, period=2)
    inner = c.count("intermediate_size")
    return {**f, "moe_intermediate_size": inner, "intermediate_size": 0, "qkv_bias": True, "o_bias": True,
            "router_bias": True, "expert_bias": True, "sinks": "all"}  # fmt: skip


def _gemma3n(c: Config) -> Fields:
    c.get("altup_active_idx", "altup_coef_clip", "altup_correct_scale", "activation_sparsity_pattern")
    f = base(c, period=5)
    return {**f, **_per_layer_embeddings(c), "norms_per_layer": 4, "qk_norm": "head",
            "kv_shared_layers": c.count("num_kv_shared_layers", default=0),
            "altup": c.count("altup_num_inputs"), "laurel_rank": c.count("laurel_rank")}  # fmt: skip


def _per_layer_embeddings(c: Config) -> Fields:
    width = c.count("hidden_size_per_layer_input", default=0)
    rows = c.count("vocab_size_per_layer_input", default=0)
    return {"ple_dim": width, "ple_vocab": rows} if width else {}


def _gemma4(c: Config) -> Fields:
    f = base(c, period=6)
    k_eq_v, moe = c.flag("attention_k_eq_v"), c.flag("enable_moe_block")
    own = _full_layers(c, f["n_layers"])
    f.update(
        norms_per_layer=4,
        qk_norm="head",
        global_head_dim=own.get("head_dim", 0),
        global_kv_heads=own.get("num_key_value_heads", 0),
        k_eq_v=k_eq_v,
        kv_shared_layers=c.count("num_kv_shared_layers", default=0),
        double_wide_mlp=c.flag("use_double_wide_mlp"),
        gemma4_moe=moe,
        **_per_layer_embeddings(c),
    )
    if moe:
        f["ffn_pattern"] = f"B*{f['n_layers']}"
    return f


def _full_layers(c: Config, n_layers: int) -> dict[str, int]:
    """Where Gemma 4's full-attention layers differ: `global_head_dim` keys, or one table per layer."""
    own = {
        "head_dim": c.count("global_head_dim", default=0),
        "num_key_value_heads": c.count("num_global_key_value_heads", default=0),
    }
    tables = c.section("per_layer_config").values.values()
    distinct = {tuple(sorted(t.items())) if isinstance(t, dict) else None for t in tables}
    if len(distinct) > 1 or None in distinct:
        raise UnsupportedModel(f"{c.name}: `per_layer_config` differs between layers: not supported yet")
    for key, value in distinct.pop() if distinct else ():  # type: ignore[union-attr]
        if key not in own or not isinstance(value, int):
            raise UnsupportedModel(f"{c.name}: `per_layer_config` sets `{key}`: not supported yet")
        own[key] = value
    return {k: v for k, v in own.items() if v}


def _with(c: Config, **values: Any) -> Config:
    """The same configuration with some keys replaced; what is understood is shared."""
    changed = Config({**c.values, **values}, c.defaults, c.name)
    changed.understood = c.understood
    return changed


def _llama4(c: Config) -> Fields:
    f = base(c)
    n = f["n_layers"]
    chunk = c.count("attention_chunk_size", default=8192)
    c.get("no_rope_layers", "no_rope_layer_interval", "use_qk_norm", "for_llm_compressor")
    if "layer_types" not in c.values:
        f["layer_pattern"] = compress("".join("F" if (i + 1) % 4 == 0 else "C" for i in range(n)))
    step = c.count("interleave_moe_layer_step", default=1) or 1
    at = c.numbers("moe_layers") or list(range(step - 1, n, step))
    inner = f["intermediate_size"]
    return {**f, "sliding_window": chunk, "ffn_pattern": compress(placed(n, at, "E", "D")),
            "moe_intermediate_size": inner, "n_shared_experts": 1, "shared_ff": inner,
            "intermediate_size": c.count("intermediate_size_mlp")}  # fmt: skip


def _mllama(c: Config) -> Fields:
    f = base(c)
    at = c.numbers("cross_attention_layers")
    return {**f, "layer_pattern": compress(placed(f["n_layers"], at, "X", "F")), "extra_embed_rows": 8}


def _deepseek(*, bias_is_param: bool = False, indexed: bool = False) -> Family:
    def read(c: Config) -> Fields:
        f = {**base(c), **latent(c), "qkv_bias": False, "o_bias": False}
        c.require("attention_bias", False, "a bias on the latent projections")
        if indexed:
            f.update(indexer(c, f["n_layers"]))
        f["mtp_layers"] = c.count("num_nextn_predict_layers", default=0)
        return {**f, "score_bias_is_param": bias_is_param}

    return read


def _mla_dense(c: Config) -> Fields:
    return {**base(c), **latent(c)}


def _glm4_moe(c: Config) -> Fields:
    f = _unbiased_output(plain())(c)
    f["mtp_layers"] = c.count("num_nextn_predict_layers", default=0)
    return {**f, "qk_norm": "head" if c.flag("use_qk_norm") else ""}


def _longcat(c: Config) -> Fields:
    f = {**base(c), **latent(c)}
    c.require("zero_expert_type", "identity", "a kind of zero-computation expert")
    c.get("mla_scale_q_lora", "mla_scale_kv_lora", "router_bias")
    return {
        **f,
        "ffn_pattern": f"B*{f['n_layers']}",
        "norms_per_layer": 4,
        "mla_per_layer": 2,
        "dense_per_layer": 2,
        "zero_experts": c.count("zero_expert_num", default=0),
    }


def _mimo_v2(c: Config) -> Fields:
    f = base(c)
    flags = c.numbers("hybrid_layer_pattern")
    if flags:
        f["layer_pattern"] = compress("".join("S" if x else "F" for x in flags))
    c.require("swa_head_dim", f["head_dim"], "another head_dim in sliding layers")
    v_dim = c.count("v_head_dim", default=f["head_dim"])
    c.require("swa_v_head_dim", v_dim, "another v_head_dim in sliding layers")
    c.require("swa_num_attention_heads", f["n_heads"], "another number of heads in sliding layers")
    c.get("add_swa_attention_sink_bias", "add_full_attention_sink_bias", "attention_chunk_size")
    return {
        **f,
        "v_head_dim": v_dim,
        "sinks": "S",
        "swa_kv_heads": c.count("swa_num_key_value_heads", "num_sliding_key_value_heads", default=8),
    }


def _minimax_m2(c: Config) -> Fields:
    f = base(c)
    c.get(
        "use_qk_norm",
        "qk_norm_type",
        "use_mtp",
        "num_mtp_modules",
        "mtp_transformer_layers",
        "attn_type_list",
        "use_routing_bias",
        "shared_intermediate_size",
    )
    return {**f, **_minimax_experts(c), "qk_norm": "full"}


def _minimax_experts(c: Config) -> Fields:
    """MiniMax names the inner width of an expert `intermediate_size`."""
    n_layers, inner = c.count("num_hidden_layers"), c.count("intermediate_size")
    return {**experts(c, n_layers, inner), "moe_intermediate_size": inner, "intermediate_size": 0}


def _minimax_m3(c: Config) -> Fields:
    f = {**base(c), **_minimax_experts(c)}
    n_dense = f["ffn_pattern"].count("D")
    f["intermediate_size"] = c.count("dense_intermediate_size", default=0)
    f.update(
        indexer(_with(c, index_topk=c.count("index_topk_blocks", default=0)), f["n_layers"] - max(n_dense, 3))
    )
    return {**f, "qk_norm": "head"}


def _bailing(c: Config) -> Fields:
    """Ling 2.0."""
    c.require("use_qk_norm", True, "attention without norms of queries and keys")
    c.get(
        "moe_router_enable_expert_bias",
        "moe_router_enable_shared_expert",
        "max_window_layers",
        "num_nextn_predict_layers",
    )
    f = base(c)
    f["mtp_layers"] = c.count("num_nextn_predict_layers", default=0)
    bias = c.flag("use_qkv_bias")
    return {
        **f,
        "qkv_bias": bias,
        "o_bias": c.flag("use_bias"),
        "qk_norm": "head",
        "score_bias_is_param": True,
    }


def _dbrx(c: Config) -> Fields:
    attention, ffn = c.section("attn_config"), c.section("ffn_config")
    kv = attention.count("kv_n_heads", default=1)
    attention.get("clip_qkv", "attn_pdrop", "rope_theta")
    ffn.get(
        "moe_jitter_eps",
        "moe_loss_weight",
        "moe_normalize_expert_weights",
        "ffn_act_fn",
        "uniform_expert_assignment",
    )
    f = base(_with(c, num_key_value_heads=kv))
    inner, n, per_token = ffn.count("ffn_hidden_size"), ffn.count("moe_num_experts"), ffn.count("moe_top_k")
    for section in (attention, ffn):
        section.unknown()
    return {**f, "n_experts": n, "experts_per_token": per_token, "moe_intermediate_size": inner,
            "ffn_pattern": f"E*{f['n_layers']}", "intermediate_size": 0}  # fmt: skip


def _qwen1(c: Config) -> Fields:
    f = base(c)
    c.get("kv_channels", "use_dynamic_ntk", "use_logn_attn", "no_bias", "attn_dropout_prob", "seq_length")
    return {**f, "n_kv_heads": f["n_heads"], "attention_kind": "mha", "qkv_bias": True, "o_bias": False,
            "intermediate_size": f["intermediate_size"] // 2}  # fmt: skip


def _step3(c: Config) -> Fields:
    f = base(c)
    c.require("num_sliding_attention_heads", f["n_heads"], "another number of heads in sliding layers")
    f["mtp_layers"] = c.count("num_nextn_predict_layers", default=0)
    c.get("mtp_layer_types", "mtp_mlp_layer_types", "swiglu_limits", "swiglu_limits_shared")
    c.require("per_layer_config", {}, "a table per layer")
    f["n_shared_experts"] = 1
    return {**f, "qk_norm": "head", "q_gate": "per_head"}


def _nas(c: Config) -> Fields:
    """NVIDIA's pruned Llamas: each layer has its own attention or none, and its own feed-forward width."""
    f = base(c)
    layers = []
    for entry in c.items("block_configs"):
        attention, ffn = (
            (entry.get("attention"), entry.get("ffn")) if isinstance(entry, dict) else (None, None)
        )
        if (
            not isinstance(attention, dict)
            or not isinstance(ffn, dict)
            or attention.get("replace_with_linear")
        ):
            raise UnsupportedModel(f"{c.name}: `block_configs` has a kind of layer that is not supported yet")
        group = 0 if attention.get("no_op") else attention.get("n_heads_in_group")
        multiple = 0 if ffn.get("no_op") else ffn.get("ffn_mult")
        if not isinstance(group, int) or isinstance(multiple, bool) or not isinstance(multiple, int | float):
            raise UnsupportedModel(f"{c.name}: `block_configs` has a kind of layer that is not supported yet")
        inner = int(2 * multiple * f["hidden_size"] / 3)
        layers.append((group, -(-inner // 256) * 256))
    letters = "".join("F" if group else "-" for group, _ in layers)
    group = max((g for g, _ in layers), default=0)
    return {**f, "nas": tuple(layers), "layer_pattern": compress(letters), "ffn_pattern": f"D*{len(layers)}",
            "n_kv_heads": f["n_heads"] // group if group else 0, "intermediate_size": 0}  # fmt: skip


def _mtp(family: Family) -> Family:
    def read(c: Config) -> Fields:
        n = c.count("num_nextn_predict_layers", "mtp_num_layers", default=0)
        return {**family(c), "mtp_layers": n}

    return read


# model_type -> its reader. Text models inside multimodal ones bear their own types (`gemma3_text`).
FAMILIES: dict[str, Family] = {
    "llama": plain(),
    "mistral": plain(period=0),
    "ministral": plain(period=0),
    "ministral3": plain(period=0),
    "mistral4": _deepseek(),
    "mixtral": plain(period=0),
    "arcee": plain(mats=2),
    "apertus": plain(mats=2, qk_norm="head", act_params_per_layer=2),
    "smollm3": plain(),
    "granite": plain(),
    "granite_swa": plain(period=4, sinks="all"),
    "granitemoe": plain(),
    "internlm2": plain(),
    "internlm3": plain(),
    "olmo": _olmo,
    "olmo2": plain(qk_norm="full"),
    "olmo3": plain(period=4, qk_norm="full"),
    "olmoe": plain(qk_norm="full"),
    "exaone4": plain(qk_norm="head"),
    "seed_oss": _unbiased_output(plain()),
    "hunyuan_v1_dense": plain(qk_norm="head"),
    "hunyuan_v1_moe": plain(qk_norm="head"),
    "hy_v3": _mtp(plain(qk_norm="head")),
    "ernie4_5": _everywhere,
    "ernie4_5_moe": _ernie_moe,
    "starcoder2": _everywhere,
    "dots1": plain(qk_norm="head"),
    "solar_open": plain(),
    "bitnet": plain(sub_norms=True),
    "bailing_moe_v2": _bailing,
    "afmoe": plain(
        period=4, norms_per_layer=4, qk_norm="head", q_gate="per_channel", score_bias_is_param=True
    ),
    "muse_glimmer_text": plain(period=4, norms_per_layer=4, q_gate="per_channel"),
    "qwen": _qwen1,
    "qwen2": qwen(qkv_bias=True),
    "qwen2_moe": qwen(qkv_bias=True, shared_gate=True),
    "qwen2_vl_text": qwen(qkv_bias=True),
    "qwen2_5_vl_text": qwen(qkv_bias=True),
    "qwen3": qwen(qk_norm="head"),
    "qwen3_moe": qwen(qk_norm="head"),
    "qwen3_vl_text": qwen(qk_norm="head"),
    "qwen3_vl_moe_text": qwen(qk_norm="head"),
    "mimo": _mtp(qwen(qkv_bias=True)),
    "gemma": plain(),
    "gemma2": plain(period=2, norms_per_layer=4),
    "gemma3_text": plain(period=6, norms_per_layer=4, qk_norm="head"),
    "gemma3n_text": _gemma3n,
    "gemma4_text": _gemma4,
    "gemma4_unified_text": _gemma4,
    "glm": _unbiased_output(plain()),
    "glm4": _unbiased_output(plain(norms_per_layer=4)),
    "glm4_moe": _glm4_moe,
    "glm4_moe_lite": _deepseek(),
    "glm_moe_dsa": _deepseek(indexed=True),
    "phi": _phi,
    "phi3": plain(period=0),
    "phimoe": _phimoe,
    "cohere": _cohere,
    "cohere2": _cohere,
    "stablelm": _stablelm,
    "falcon": _falcon,
    "gpt2": _gpt(),
    "gpt_bigcode": _gpt(),
    "gpt_neox": _gpt(learned_pos=0),
    "gptj": _gpt(learned_pos=0, qkv_bias=False, o_bias=False, norms_per_layer=1, lm_head_bias=True),
    "bloom": _gpt(learned_pos=0, emb_norm=1),
    "opt": _opt,
    "bert": _bert,
    "xlm-roberta": _bert,
    "nomic_bert": _nomic_bert,
    "whisper": _whisper,
    "gpt_oss": _gpt_oss,
    "llama4_text": _llama4,
    "mllama_text_model": _mllama,
    "deepseek_v2": _deepseek(),
    "deepseek_v3": _deepseek(),
    "kimi_k2": _deepseek(),
    "deepseek_v32": _deepseek(indexed=True),
    "minicpm3": _mla_dense,
    "longcat_flash": _longcat,
    "mimo_v2_flash": _mimo_v2,
    "minimax_m2": _minimax_m2,
    "minimax_m3_vl_text": _minimax_m3,
    "dbrx": _dbrx,
    "step3p5": _step3,
    "nemotron-nas": _nas,
    **HYBRIDS,
}
