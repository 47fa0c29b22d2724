"""Readers of mixtures of experts of Hugging Face, and of latent attention: how their keys make a Shape."""

from __future__ import annotations

from modeldb.hf_base import base, experts, indexer, latent, layer_count
from modeldb.hf_keys import Config
from modeldb.hf_layers import compress, placed
from modeldb.hf_plain import Family, Fields, everywhere, plain, unbiased_output, with_values


def ernie_moe(c: Config) -> Fields:
    """ERNIE 4.5: experts in every n-th layer from a first to a last one."""
    f = everywhere(c)
    c.get("moe_norm_min", "moe_use_aux_free", "moe_gate_act", "moe_capacity")
    first, last = (
        c.count("moe_layer_start_index", default=0),
        c.count("moe_layer_end_index", default=f["n_layers"] - 1),
    )
    step = c.count("moe_layer_interval", default=1) or 1
    at = [i for i in range(f["n_layers"]) if (i + 1) % step == 0 and first <= i <= last]
    return {**f, "ffn_pattern": compress(placed(f["n_layers"], at, "E", "D")), "score_bias_is_param": True}


def phimoe(c: Config) -> Fields:
    """Phi-3.5-MoE: LayerNorm, and a bias on the head."""
    return {**base(c), "norm_params_per_channel": 2, "lm_head_bias": c.flag("lm_head_bias")}


def gpt_oss(c: Config) -> Fields:
    """gpt-oss: windows in every other layer, sinks, biases on projections, experts and router."""
    f = base(c, period=2)
    inner = c.count("intermediate_size")
    return {**f, "moe_intermediate_size": inner, "intermediate_size": 0, "qkv_bias": True, "o_bias": True,
            "router_bias": True, "expert_bias": True, "sinks": "all"}  # fmt: skip


def llama4(c: Config) -> Fields:
    """Llama 4: attention in chunks with every fourth layer full, one shared expert, dense layers between."""
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


def deepseek(*, bias_is_param: bool = False, indexed: bool = False) -> Family:
    """DeepSeek and kin: latent attention and a shared expert. `bias_is_param`: the selection bias is counted;
    `indexed`: with a sparse indexer."""

    def read(c: Config) -> Fields:
        f = {**base(c), **latent(c), "qkv_bias": False, "o_bias": False}
        c.require("attention_bias", False, "a bias on the latent projections")
        if indexed:
            f.update(indexer(c, f["n_layers"]))
        f["mtp_layers"] = c.count("num_nextn_predict_layers", default=0)
        return {**f, "score_bias_is_param": bias_is_param}

    return read


def mla_dense(c: Config) -> Fields:
    """MiniCPM3: latent attention over dense layers."""
    return {**base(c), **latent(c)}


def glm4_moe(c: Config) -> Fields:
    """GLM-4.5 and later: experts after dense layers, norms of queries and keys on request."""
    f = unbiased_output(plain())(c)
    f["mtp_layers"] = c.count("num_nextn_predict_layers", default=0)
    return {**f, "qk_norm": "head" if c.flag("use_qk_norm") else ""}


def longcat(c: Config) -> Fields:
    """LongCat-Flash: two latent attentions and two dense feed-forwards per layer beside experts, some of which
    compute nothing."""
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


def mimo_v2(c: Config) -> Fields:
    """MiMo-V2: a pattern of sliding and full layers with their own key heads, values of their own width."""
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


def minimax_m2(c: Config) -> Fields:
    """MiniMax-M2: experts everywhere, norms over all queries and keys."""
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


def minimax_m3(c: Config) -> Fields:
    """MiniMax-M3: dense layers first, a sparse indexer in the others."""
    f = {**base(c), **_minimax_experts(c)}
    n_dense, block = f["ffn_pattern"].count("D"), c.count("index_block_size", default=128)
    f["intermediate_size"] = c.count("dense_intermediate_size", default=0)
    f.update(
        indexer(
            with_values(c, index_topk=c.count("index_topk_blocks", default=0) * block),
            f["n_layers"] - max(n_dense, 3),
        ),
        index_block=block,
    )
    return {**f, "qk_norm": "head"}


def bailing(c: Config) -> Fields:
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


def dbrx(c: Config) -> Fields:
    """DBRX: attention and experts in sections of their own."""
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
    f = base(with_values(c, num_key_value_heads=kv))
    inner, n, per_token = ffn.count("ffn_hidden_size"), ffn.count("moe_num_experts"), ffn.count("moe_top_k")
    for section in (attention, ffn):
        section.unknown()
    return {**f, "n_experts": n, "experts_per_token": per_token, "moe_intermediate_size": inner,
            "ffn_pattern": f"E*{f['n_layers']}", "intermediate_size": 0}  # fmt: skip


def _step3_keys(c: Config) -> Config:
    """What Step-3.5's own configurations say, under the names that Transformers has for it. Their lists by layer reach
    into the layers that draft."""
    own: Fields = {}
    n = layer_count(c)
    for key, usual in (("num_attention_groups", "num_key_value_heads"), ("moe_top_k", "num_experts_per_tok")):
        if c.has(key):
            own[usual] = c.count(key)
    if types := c.items("layer_types"):
        own["layer_types"] = types[:n]
    sparse = c.get("moe_layers_enum")
    if isinstance(sparse, str) and all(part.strip().isdigit() for part in sparse.split(",")):
        at = {int(part) for part in sparse.split(",")}
        own["mlp_layer_types"] = ["sparse" if i in at else "dense" for i in range(n)]
    if isinstance(theta := c.get("rope_theta"), list) and theta:
        own["rope_theta"] = theta[0]
    c.require("sink", False, "a sink of attention")
    c.get("use_moe", "moe_every_n_layer", "partial_rotary_factors")
    return with_values(c, **own)


def step3(c: Config) -> Fields:
    """Step-3.5: gated attention, more heads in sliding layers, one shared expert."""
    c = _step3_keys(c)
    f = base(c)
    other = c.section("attention_other_setting")
    n_kv = other.count("num_attention_groups", default=f["n_kv_heads"])
    near = c.count(
        "num_sliding_attention_heads", default=other.count("num_attention_heads", default=f["n_heads"])
    )
    f["swa_heads"] = near if near != f["n_heads"] else 0
    f["swa_kv_heads"] = n_kv if n_kv != f["n_kv_heads"] else 0
    other.require("head_dim", f["head_dim"], "another width of heads in sliding layers")
    other.get("attention_type", "true_head_dim")
    other.unknown()
    f["mtp_layers"] = c.count("num_nextn_predict_layers", default=0)
    c.get("mtp_layer_types", "mtp_mlp_layer_types", "swiglu_limits", "swiglu_limits_shared")
    c.require("per_layer_config", {}, "a table per layer")
    f["n_shared_experts"] = 1
    bias = c.flag("use_moe_router_bias")
    normed, gated = (c.flag(key, default=True) for key in ("use_qk_norm", "use_head_wise_attn_gate"))
    return {
        **f,
        "qk_norm": "head" if normed else "",
        "q_gate": "per_head" if gated else "",
        "score_bias_is_param": bias,
    }
