"""Readers of dense models of Hugging Face: how their keys and fixed traits make a Shape.

Those of `plain` and its kin serve most families; the rest have a key or a trait of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modeldb.errors import UnsupportedModel
from modeldb.hf_base import base
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


def unbiased_output(family: Family) -> Family:
    """`attention_bias` (or `bias`) reaches queries, keys and values, not the output projection."""

    def read(c: Config) -> Fields:
        return {**family(c), "o_bias": c.flag("attention_out_bias")}

    return read


def everywhere(c: Config) -> Fields:
    """StarCoder2 and ERNIE: `use_bias` means all projections."""
    starcoder = c.text("model_type") == "starcoder2"
    f = base(c, period=0, mats=2 if starcoder else 3)
    bias = c.flag("use_bias")
    return {**f, "qkv_bias": bias, "o_bias": bias, "mlp_bias": bias, "norm_params_per_channel": 1 + starcoder}


def cohere(c: Config) -> Fields:
    """Command R: one norm per layer, attention and feed-forward beside each other; every fourth layer full."""
    f = base(c, period=4)
    return {**f, "norms_per_layer": 1, "qk_norm": "full" if c.flag("use_qk_norm") else ""}


def olmo(c: Config) -> Fields:
    """OLMo 1: norms without parameters."""
    return {**base(c), "norm_params_per_channel": 0}


def stablelm(c: Config) -> Fields:
    """StableLM: LayerNorm, and one of them where the branches are parallel."""
    f = base(c)
    f.update(norm_params_per_channel=2, qkv_bias=c.flag("use_qkv_bias"), o_bias=False)
    f["norms_per_layer"] = 1 if c.flag("use_parallel_residual") else 2
    return {**f, "qk_norm": "full" if c.flag("qk_layernorm") else ""}


def phi(c: Config) -> Fields:
    """Phi-1 and 2: parallel branches, LayerNorm, biases everywhere, on the head too."""
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


def falcon(c: Config) -> Fields:
    """Falcon: parallel branches; one key head, or groups of them in the newer architecture."""
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


def gpt(**fixed: Any) -> Family:
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


def opt(c: Config) -> Fields:
    """OPT: GPT-2 with two more rows of positions."""
    f = gpt()(c)
    if c.count("word_embed_proj_dim", default=f["hidden_size"]) != f["hidden_size"]:
        raise UnsupportedModel(
            f"{c.name}: `word_embed_proj_dim` differs from `hidden_size`: not supported yet"
        )
    c.require("do_layer_norm_before", True, "a norm after the residual")
    c.get("enable_bias", "layer_norm_elementwise_affine")
    return {**f, "learned_pos": f["max_context"] + 2}


def bert(c: Config) -> Fields:
    """BERT: an encoder with learned positions, token types and a pooler."""
    return {**base(c, mats=2), **BERT, "learned_pos": c.count("max_position_embeddings"),
            "type_vocab": c.count("type_vocab_size", default=2), "pooler": True}  # fmt: skip


def nomic_bert(c: Config) -> Fields:
    """Nomic-BERT: an encoder with rotary positions and a gated feed-forward."""
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


def whisper(c: Config) -> Fields:
    """Whisper: an audio encoder, and a decoder that attends to it."""
    # that key counts the encoder's
    f = base(with_values(c, num_hidden_layers=c.count("decoder_layers")), mats=2)
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


def gemma3n(c: Config) -> Fields:
    """Gemma 3n: embeddings per layer, layers that share caches, alternating updates (AltUp), low-rank branches."""
    c.get("altup_active_idx", "altup_coef_clip", "altup_correct_scale", "activation_sparsity_pattern")
    f = base(c, period=5)
    return {**f, **_per_layer_embeddings(c), "norms_per_layer": 4, "qk_norm": "head",
            "kv_shared_layers": c.count("num_kv_shared_layers", default=0),
            "altup": c.count("altup_num_inputs"), "laurel_rank": c.count("laurel_rank")}  # fmt: skip


def _per_layer_embeddings(c: Config) -> Fields:
    width = c.count("hidden_size_per_layer_input", default=0)
    rows = c.count("vocab_size_per_layer_input", default=0)
    return {"ple_dim": width, "ple_vocab": rows} if width else {}


def gemma4(c: Config) -> Fields:
    """Gemma 4: full layers with heads of their own, keys that are values, dense and experts beside each other."""
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


def with_values(c: Config, **values: Any) -> Config:
    """The same configuration with some keys replaced; what is understood is shared."""
    changed = Config({**c.values, **values}, c.defaults, c.name)
    changed.understood = c.understood
    return changed


def mllama(c: Config) -> Fields:
    """Llama 3.2 Vision: some layers attend to the image; eight more rows of embeddings."""
    f = base(c)
    at = c.numbers("cross_attention_layers")
    return {**f, "layer_pattern": compress(placed(f["n_layers"], at, "X", "F")), "extra_embed_rows": 8}


def qwen1(c: Config) -> Fields:
    """Qwen 1: biases on queries, keys and values; the stated inner width is that of both halves."""
    f = base(c)
    c.get("kv_channels", "use_dynamic_ntk", "use_logn_attn", "no_bias", "attn_dropout_prob", "seq_length")
    return {**f, "n_kv_heads": f["n_heads"], "attention_kind": "mha", "qkv_bias": True, "o_bias": False,
            "intermediate_size": f["intermediate_size"] // 2}  # fmt: skip


def nas(c: Config) -> Fields:
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


def mtp(family: Family) -> Family:
    """A family whose releases hold layers for drafting."""

    def read(c: Config) -> Fields:
        n = c.count("num_nextn_predict_layers", "mtp_num_layers", default=0)
        return {**family(c), "mtp_layers": n}

    return read
