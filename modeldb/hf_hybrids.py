"""Configurations of models that mix attention with recurrent layers, and of the purely recurrent ones."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

from modeldb.errors import UnsupportedModel
from modeldb.hf_base import base, experts, indexer, latent
from modeldb.hf_keys import Config
from modeldb.hf_layers import MIXERS, compress, named, placed

Fields = dict[str, Any]


def hybrid(fields: Fields, letters: str, linear_kind: str, **more: Any) -> Fields:
    """The fields with these mixers; `hybrid:` marks the kind of the attention among them."""
    kind = fields["attention_kind"]
    mixed = any(x in letters for x in "LMKH") and kind != "none"
    return {
        **fields, "layer_pattern": compress(letters), "linear_kind": linear_kind,
        "attention_kind": f"hybrid:{kind}" if mixed else kind, **more,
    }  # fmt: skip


def mamba2(c: Config) -> Fields:
    """Mamba 2 by any of its three sets of names (Granite and Falcon, Nemotron, Mamba itself)."""
    heads = c.count("mamba_n_heads", "mamba_num_heads", "num_heads")
    width = c.get("mamba_d_head", "mamba_head_dim", default="auto")
    inner = c.count("mamba_d_ssm", default=0) or c.count("mamba_expand", "expand", default=2) * c.count(
        "hidden_size"
    )
    # "auto" in Granite's configurations
    head_dim = inner // heads if width == "auto" else c.count("mamba_d_head", "mamba_head_dim")
    if c.flag("mamba_proj_bias") or not c.flag("mamba_conv_bias", "use_conv_bias", default=True):
        raise UnsupportedModel(
            f"{c.name}: `mamba_proj_bias` or a convolution without bias is not supported yet"
        )
    return {
        "ssm_heads": heads,
        "ssm_head_dim": head_dim,
        "ssm_state": c.count("mamba_d_state", "ssm_state_size", "state_size"),
        "ssm_groups": c.count("mamba_n_groups", "n_groups", default=1),
        "conv_kernel": c.count("mamba_d_conv", "conv_kernel"),
    }


def mamba1(c: Config) -> Fields:
    """Fields of Mamba-1 layers, whose step sizes come from a low-rank projection."""
    hidden = c.count("hidden_size")
    rank = c.get("mamba_dt_rank", "time_step_rank", default="auto")
    if c.flag("mamba_proj_bias", "use_bias") or not c.flag("mamba_conv_bias", "use_conv_bias", default=True):
        raise UnsupportedModel(
            f"{c.name}: `mamba_proj_bias` or a convolution without bias is not supported yet"
        )
    return {
        "ssm_d_inner": c.count("mamba_expand", "expand", default=2) * hidden,
        "ssm_state": c.count("mamba_d_state", "state_size"),
        "ssm_dt_rank": ceil(hidden / 16) if rank == "auto" else c.count("mamba_dt_rank", "time_step_rank"),
        "conv_kernel": c.count("mamba_d_conv", "conv_kernel"),
    }


def _pure(c: Config, mixer: Fields, kind: str) -> Fields:
    """Mamba alone: no attention, no feed-forward."""
    c.get("num_heads", "head_dim", "intermediate_size", "d_inner", "d_model", "n_layer", "use_mambapy",
          "use_associative_scan", "mixer_rms_eps", "norm_before_gate", "rms_norm")  # fmt: skip
    fields = dict(base(c), n_heads=0, n_kv_heads=0, head_dim=0, intermediate_size=0, attention_kind="none")
    n = fields["n_layers"]
    return {**hybrid(fields, "M" * n, kind, **mixer), "ffn_pattern": f"-*{n}", "norms_per_layer": 1,
            "mlp_bias": False, "qkv_bias": False, "o_bias": False}  # fmt: skip


def _dense_only(f: Fields) -> Fields:
    """Without what describes experts: sizes that a configuration states and its layers do not use."""
    unused = ("n_experts", "experts_per_token", "moe_intermediate_size", "n_shared_experts", "shared_ff")
    return {key: value for key, value in f.items() if key not in unused}


def _mamba(c: Config) -> Fields:
    return _pure(c, mamba1(c), "mamba1")


def _mamba2(c: Config) -> Fields:
    c.get("time_step_rank")
    c.require("use_conv_bias", True, "a convolution without bias")
    c.require("use_bias", False, "a bias on the projections")
    return _pure(c, _mamba2_own(c), "mamba2")


def _mamba2_own(c: Config) -> Fields:
    heads = c.count("num_heads")
    width = c.count(
        "head_dim", default=c.count("expand", default=2) * c.count("hidden_size") // max(heads, 1)
    )
    return {
        "ssm_heads": heads,
        "ssm_head_dim": width,
        "ssm_state": c.count("state_size"),
        "ssm_groups": c.count("n_groups", default=1),
        "conv_kernel": c.count("conv_kernel"),
    }


def _jamba(c: Config) -> Fields:
    f = base(c)
    n = f["n_layers"]
    period, offset = c.count("attn_layer_period", default=8) or 1, c.count("attn_layer_offset", default=4)
    e_period, e_offset = (
        c.count("expert_layer_period", default=2) or 1,
        c.count("expert_layer_offset", default=1),
    )
    dense_only = f.get("n_experts", 0) <= 1
    at = [] if dense_only else [i for i in range(n) if i % e_period == e_offset]
    if dense_only:
        f = _dense_only(f)
    letters = named(c, "layers_block_type", MIXERS, n) or placed(
        n, [i for i in range(n) if i % period == offset], "F", "M"
    )
    c.get("use_mamba_kernels", "mamba_inner_layernorms")
    return {**hybrid(f, letters, "mamba1", **mamba1(c)), "ffn_pattern": compress(placed(n, at, "E", "D")),
            "mamba_inner_norms": True}  # fmt: skip


def _falcon_h1(c: Config) -> Fields:
    f = base(c)
    c.require("projectors_bias", False, "a bias on the projections")
    c.get(
        "mamba_expand",
        "mamba_use_mlp",
        "mlp_expansion_factor",
        "attn_layer_indices",
        "mamba_norm_before_gate",
    )
    return hybrid(f, "H" * f["n_layers"], "mamba2", mamba_norm=int(c.flag("mamba_rms_norm")), **mamba2(c))


def _granite_hybrid(c: Config) -> Fields:
    f = base(c)
    letters = (
        named(c, "layer_types", {**MIXERS, "linear_attention": "M"}, f["n_layers"]) or "M" * f["n_layers"]
    )
    shared = c.count("shared_intermediate_size", default=0)
    if f.get("n_experts"):
        f["moe_intermediate_size"] = c.count("intermediate_size")
    else:  # its dense models keep their feed-forward where the others keep the shared expert
        f.update(intermediate_size=shared, ffn_pattern=f"D*{f['n_layers']}")
    c.get("mamba_chunk_size", "position_embedding_type", "mamba_d_conv", "mamba_n_heads")
    if "M" not in letters:
        for key in ("mamba_d_head", "mamba_d_state", "mamba_n_groups", "mamba_expand", "mamba_conv_bias"):
            c.get(key)
        return {**f, "layer_pattern": compress(letters)}
    return hybrid(f, letters, "mamba2", **mamba2(c))


# Nemotron-H: one part per layer
NEMOTRON = {"M": "M-", "*": "A-", "-": "-D", "E": "-E"}
NEMOTRON_NAMES = {
    "mamba": "M",
    "linear_attention": "M",
    "attention": "*",
    "full_attention": "*",
    "mlp": "-",
    "moe": "E",
}


def _nemotron_h(c: Config) -> Fields:
    marks = c.text("hybrid_override_pattern")
    if not marks:
        kinds = c.items("layers_block_type")
        marks = named(c, "layers_block_type", NEMOTRON_NAMES, len(kinds))
    if not marks or set(marks) - set(NEMOTRON):
        raise UnsupportedModel(f"{c.name}: `hybrid_override_pattern` {marks!r:.40} is not understood")
    values = {**c.values, "num_hidden_layers": len(marks)}
    own = Config(values, c.defaults, c.name)
    own.understood = c.understood
    c.require("use_bias", False, "a bias on the projections")
    c.get(
        "moe_shared_expert_overlap",
        "mtp_layers_block_type",
        "mtp_hybrid_override_pattern",
        "attention_head_dim",
    )
    f = base(own, mats=2)
    if c.has("attention_head_dim"):
        f["head_dim"] = c.count("attention_head_dim")
    letters = "".join(NEMOTRON[m][0] for m in marks)
    ffns = "".join(NEMOTRON[m][1] for m in marks)
    if "E" not in ffns:
        f = _dense_only(f)
    f.update(
        ffn_pattern=compress(ffns),
        norms_per_layer=1,
        mtp_layers=c.count("num_nextn_predict_layers", default=0),
    )
    f["moe_latent"] = c.count("moe_latent_size", default=0)
    return hybrid(f, letters, "mamba2", **mamba2(c))


def _lfm2(c: Config) -> Fields:
    f = base(c)
    n = f["n_layers"]
    letters = named(c, "layer_types", MIXERS, n) or placed(n, c.numbers("full_attn_idxs"), "F", "K")
    c.require("conv_bias", False, "a bias on the convolution")
    c.get(
        "conv_dim",
        "conv_dim_out",
        "conv_use_xavier_init",
        "use_pos_enc",
        "block_dim",
        "block_mlp_init_scale",
        "block_norm_eps",
        "block_out_init_scale",
        "block_use_swiglu",
        "block_use_xavier_init",
        "num_heads",
        "use_expert_bias",
        "full_attn_idxs",
    )
    if not f.get("n_experts"):
        f["intermediate_size"] = _lfm2_inner(c)
    return {**hybrid(f, letters, "short_conv"), "conv_kernel": c.count("conv_L_cache"), "qk_norm": "head",
            "tie_word_embeddings": c.flag("tie_word_embeddings", "tie_embedding", default=True)}  # fmt: skip


def _lfm2_inner(c: Config) -> int:
    """Liquid's own rule: two thirds, times a factor, up to a multiple."""
    inner = c.count("block_ff_dim", "intermediate_size")
    multiple, factor = (
        c.count("block_multiple_of", default=256),
        c.get("block_ffn_dim_multiplier", default=1.0),
    )
    if not c.flag("block_auto_adjust_ff_dim", default=True):
        return inner
    if (
        isinstance(factor, bool)
        or not isinstance(factor, int | float)
        or not 0 < factor < 100
        or not multiple
    ):
        raise UnsupportedModel(f"{c.name}: `block_ffn_dim_multiplier` is {factor!r:.40}: not understood")
    inner = int(factor * int(2 * inner / 3))
    return -(-inner // multiple) * multiple


def _gated_deltanet(c: Config) -> Fields:
    """Qwen3-Next and Qwen3.5: three linear layers, then a full one."""
    f = base(c)
    n = f["n_layers"]
    period = c.count("full_attention_interval", default=4) or 1
    letters = named(c, "layer_types", MIXERS, n) or "".join(
        "F" if (i + 1) % period == 0 else "L" for i in range(n)
    )
    if f.get("n_experts"):
        f["shared_gate"] = True
        if not f["ffn_pattern"].count("D"):
            f["intermediate_size"] = 0
    c.get(
        "mtp_use_dedicated_embeddings", "attn_output_gate", "mamba_ssm_dtype", "head_dim", "mlp_only_layers"
    )
    return hybrid(
        f, letters, "gated_deltanet", qk_norm="head", q_gate="double_q",
        lin_k_heads=c.count("linear_num_key_heads"), lin_v_heads=c.count("linear_num_value_heads"),
        lin_k_dim=c.count("linear_key_head_dim"), lin_v_dim=c.count("linear_value_head_dim"),
        conv_kernel=c.count("linear_conv_kernel_dim"), mtp_layers=c.count("mtp_num_hidden_layers", default=0),
    )  # fmt: skip


def _kda(c: Config, letters: str, fields: Fields, **more: Any) -> Fields:
    """Kimi delta attention among latent attention."""
    own = c.section("linear_attn_config")
    own.get("full_attn_layers", "kda_layers")
    heads = own.count("num_heads", default=c.count("linear_num_heads", default=fields["n_heads"]))
    width = own.count("head_dim", default=c.count("linear_head_dim", default=128))
    kernel = own.count(
        "short_conv_kernel_size",
        default=c.count("linear_conv_kernel_dim", "short_conv_kernel_size", default=4),
    )
    own.unknown()
    return hybrid(
        fields,
        letters,
        "kda",
        lin_k_heads=heads,
        lin_v_heads=heads,
        lin_k_dim=width,
        lin_v_dim=width,
        conv_kernel=kernel,
        **more,
    )


def _kimi_linear(c: Config) -> Fields:
    f = {**base(c), **latent(c)}
    n = f["n_layers"]
    full = c.section("linear_attn_config").numbers("full_attn_layers")  # counted from 1
    letters = named(c, "layer_types", MIXERS, n) or placed(n, [i - 1 for i in full], "F", "L")
    c.get("mla_use_nope", "num_nextn_predict_layers", "moe_router_activation_func", "use_grouped_topk")
    return _kda(c, letters, f)


def _bailing_hybrid(c: Config) -> Fields:
    f = {**base(c), **latent(c)}
    n, group = f["n_layers"], c.count("layer_group_size", default=6) or 1
    letters = named(c, "layer_types", MIXERS, n) or "".join(
        "F" if (i + 1) % group == 0 or i >= n // group * group else "L" for i in range(n)
    )
    mtp = c.count("num_nextn_predict_layers", default=0)
    c.get("kda_safe_gate", "kda_lower_bound", "model_max_length")
    return _kda(c, letters, f, kda_full_gates=True, mla_gate_heads=True, mtp_layers=mtp)


def _glm5_next(c: Config) -> Fields:
    f = {**base(c), **latent(c)}
    n = f["n_layers"]
    letters = named(c, "layer_types", MIXERS, n) or "".join(
        "F" if (i + 1) % 4 == 0 else "L" for i in range(n)
    )
    f.update(indexer(c, 0), n_indexer_layers=letters.count("F"), idx_kpool=c.count("index_kpool"))
    c.get("index_kpool_always_select_tail")
    return _kda(c, letters, f, mhc=c.count("hc_mult"))


def _minimax(c: Config) -> Fields:
    """MiniMax-Text-01 and M1: lightning attention, every eighth layer full."""
    f = base(c)
    n, inner = f["n_layers"], c.count("intermediate_size")
    flags = c.numbers("attn_type_list")
    letters = named(c, "layer_types", MIXERS, n) or "".join("F" if x else "L" for x in flags)
    if len(letters) != n:
        letters = "".join("F" if (i + 1) % 8 == 0 else "L" for i in range(n))
    c.require("shared_intermediate_size", 0, "a shared expert")
    c.get("shared_moe_mode", "use_mtp", "layernorm_full_attention_alpha")
    f.update(experts(c, n, inner), moe_intermediate_size=inner, intermediate_size=0)
    heads, width = f["n_heads"], f["head_dim"]
    return hybrid(
        f, letters, "lightning", lin_k_heads=heads, lin_v_heads=heads, lin_k_dim=width, lin_v_dim=width
    )


def _deepseek_v4(c: Config) -> Fields:
    f = base(c)
    n = f["n_layers"]
    rates = c.section("compress_rates")
    ratios = c.numbers("compress_ratios")  # of the original repository: 0, 4 or 128 per layer
    csa = rates.count("compressed_sparse_attention", default=4)
    hca = rates.count("heavily_compressed_attention", default=128)
    letters = named(c, "layer_types", {**MIXERS, "sliding_attention": "W"}, n)
    if ratios:
        if len(ratios) < n or set(ratios) - {0, csa, hca}:
            raise UnsupportedModel(f"{c.name}: `compress_ratios` is not understood")
        letters = "".join({0: "W", csa: "P", hca: "Q"}[r] for r in ratios[:n])
    c.get("num_hash_layers", "mlp_layer_types", "mlp_bias", "qk_rope_head_dim")
    if not letters:
        raise UnsupportedModel(
            f"{c.name}: neither `layer_types` nor `compress_ratios` says which layer is which"
        )
    return {
        **f, "layer_pattern": compress(letters), "ffn_pattern": f"E*{n}", "attention_kind": "dsv4_mqa",
        "q_lora_rank": c.count("q_lora_rank"), "qk_rope_head_dim": c.count("qk_rope_head_dim", default=64),
        "o_groups": c.count("o_groups"), "o_lora_rank": c.count("o_lora_rank"), "hc_mult": c.count("hc_mult"),
        "csa_ratio": csa, "hca_ratio": hca, "mtp_layers": c.count("num_nextn_predict_layers", default=0),
        **indexer(c, 0), "n_indexer_layers": letters.count("P"),
    }  # fmt: skip


HYBRIDS: dict[str, Callable[[Config], Fields]] = {
    "mamba": _mamba,
    "falcon_mamba": _mamba,
    "mamba2": _mamba2,
    "jamba": _jamba,
    "falcon_h1": _falcon_h1,
    "granitemoehybrid": _granite_hybrid,
    "nemotron_h": _nemotron_h,
    "lfm2": _lfm2,
    "lfm2_moe": _lfm2,
    "qwen3_next": _gated_deltanet,
    "qwen3_5_text": _gated_deltanet,
    "qwen3_5_moe_text": _gated_deltanet,
    "kimi_linear": _kimi_linear,
    "bailing_hybrid": _bailing_hybrid,
    "glm5_next_text": _glm5_next,
    **dict.fromkeys(("minimax", "minimax_text_01", "minimax_m1"), _minimax),
    "deepseek_v4": _deepseek_v4,
}
