"""Tiny seeded GGUF files, one per architecture, written with the `gguf` package for the runner's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INNER, VOCAB = 256, 3, 4, 2, 64, 512, 288
CONTEXT = 512
# formats that gguf can quantize to; the others get random blocks
QUANTIZED = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,),
          "IQ4_XS": (0,), "MXFP4": ()}  # fmt: skip


def blocks(kind: str, rows: int, width: int, rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Random blocks of a format, uint8 [rows][bytes], of numbers with standard deviation near sigma and
    mean near 0."""
    number = gguf.GGMLQuantizationType[kind]
    n, size = gguf.GGML_QUANT_SIZES[number]
    data = rng.integers(0, 256, (rows * width // n, size), dtype=np.uint8)
    if kind == "MXFP4":
        data[:, 0] = round(np.log2(sigma / 5.5) + 128)
        return data.reshape(rows, -1)

    def put(o: int, v: float) -> None:
        data[:, o : o + 2] = np.full(1, v, np.float16).view(np.uint8)

    for o in SCALES[kind]:
        put(o, 1.0)
    ratio = 1.0
    if len(SCALES[kind]) == 2:
        put(SCALES[kind][1], 0.0)
        above = float(gguf.dequantize(data, number).mean())
        put(SCALES[kind][1], 1.0)
        ratio = above / (above - float(gguf.dequantize(data, number).mean()))
        put(SCALES[kind][1], ratio)
    unit = float(gguf.dequantize(data, number).std())
    for o, r in zip(SCALES[kind], (1.0, ratio), strict=False):
        put(o, sigma / unit * r)
    return data.reshape(rows, -1)


class Tiny:
    """A writer of one file: matrices in `kind`, vectors in F32."""

    def __init__(self, path: Path, architecture: str, kind: str, seed: int) -> None:
        self.w = gguf.GGUFWriter(str(path), architecture)
        self.kind, self.rng = kind, np.random.default_rng(seed)

    def matrix(
        self, name: str, rows: int, width: int, kind: str = "", experts: int = 0, sigma: float = 0.0
    ) -> None:
        kind = kind or self.kind
        sigma = sigma or 0.7 / width**0.5
        n = rows * max(1, experts)
        number = gguf.GGMLQuantizationType[kind]
        if kind in QUANTIZED:
            values = (self.rng.standard_normal((n, width)) * sigma).astype(np.float32)
            if name == "token_embd":
                self.embedding = values
            elif (
                name == "output"
            ):  # each token has a likely successor, so that rounding does not decide the argmax
                values = (values + np.roll(self.embedding, 37, axis=0) / 32).astype(np.float32)
            data = gguf.quantize(values, number)
        else:
            data = blocks(kind, n, width, self.rng, sigma)
        if experts:
            data = data.reshape(experts, rows, -1)
        self.w.add_tensor(name + ".weight", data, raw_dtype=number)

    def head(self) -> None:
        self.matrix("output", VOCAB, HIDDEN, self.kind if self.kind in QUANTIZED else "Q8_0", sigma=1 / 16)

    def vector(self, name: str, n: int | tuple[int, ...], centre: float = 1.0, spread: float = 0.1) -> None:
        self.w.add_tensor(name, (centre + self.rng.standard_normal(n) * spread).astype(np.float32))

    def close(self) -> None:
        self.w.write_header_to_file()
        self.w.write_kv_data_to_file()
        self.w.write_tensors_to_file()
        self.w.close()


def _common(t: Tiny, **more: Any) -> None:
    w = t.w
    w.add_context_length(CONTEXT)
    w.add_embedding_length(HIDDEN)
    w.add_block_count(LAYERS)
    w.add_feed_forward_length(more.get("inner", INNER))
    w.add_head_count(more.get("heads", HEADS))
    w.add_head_count_kv(more.get("kv", KV_HEADS))
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(more.get("rotary", HEAD_DIM))
    w.add_rope_freq_base(10000.0)
    w.add_vocab_size(VOCAB)
    w.add_tokenizer_model("no_vocab")


def _attention(
    t: Tiny, p: str, bias: bool = False, output_bias: bool = False, head_norms: bool = False
) -> None:
    for name, rows in (("q", HEADS * HEAD_DIM), ("k", KV_HEADS * HEAD_DIM), ("v", KV_HEADS * HEAD_DIM)):
        t.matrix(f"{p}attn_{name}", rows, HIDDEN)
        if bias:
            t.vector(f"{p}attn_{name}.bias", rows, 0.0)
    t.matrix(p + "attn_output", HIDDEN, HEADS * HEAD_DIM)
    if output_bias:
        t.vector(p + "attn_output.bias", HIDDEN, 0.0)
    if head_norms:
        t.vector(p + "attn_q_norm.weight", HEAD_DIM)
        t.vector(p + "attn_k_norm.weight", HEAD_DIM)


def _dense(t: Tiny, p: str, inner: int = INNER, suffix: str = "") -> None:
    t.matrix(f"{p}ffn_gate{suffix}", inner, HIDDEN)
    t.matrix(f"{p}ffn_up{suffix}", inner, HIDDEN)
    t.matrix(f"{p}ffn_down{suffix}", HIDDEN, inner)


def _experts(t: Tiny, p: str, n: int, inner: int, bias: bool = False, kind: str = "") -> None:
    t.matrix(p + "ffn_gate_inp", n, HIDDEN, "F32")
    for name, rows, width in (("gate", inner, HIDDEN), ("up", inner, HIDDEN), ("down", HIDDEN, inner)):
        t.matrix(f"{p}ffn_{name}_exps", rows, width, kind, experts=n)
        if bias:
            t.vector(f"{p}ffn_{name}_exps.bias", (n, rows), 0.0)


def write(path: Path, name: str, kind: str = "F16", seed: int = 7) -> Path:
    """Write the tiny model called `name` (a key of MODELS) with matrices of `kind`."""
    architecture, build = MODELS[name]
    t = Tiny(path, architecture, kind, seed)
    t.matrix(
        "token_embd",
        VOCAB,
        HIDDEN,
        kind if kind in QUANTIZED else "Q8_0",
        sigma=1 / 16 if name == "gemma2" else 1.0,
    )
    t.vector("token_embd_norm.weight" if name.startswith("lfm2") else "output_norm.weight", HIDDEN)
    build(t)
    t.close()
    return path


def _llama(t: Tiny) -> None:
    _common(t)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        t.vector(p + "attn_norm.weight", HIDDEN)
        t.vector(p + "ffn_norm.weight", HIDDEN)
        _attention(t, p)
        _dense(t, p)


def _llama3(t: Tiny) -> None:
    t.vector("rope_freqs.weight", HEAD_DIM // 2, 4.0, 1.0)
    _llama(t)


def _qwen2(t: Tiny) -> None:
    _common(t)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        t.vector(p + "attn_norm.weight", HIDDEN)
        t.vector(p + "ffn_norm.weight", HIDDEN)
        _attention(t, p, bias=True)
        _dense(t, p)


def _qwen3(t: Tiny) -> None:
    _common(t)
    t.head()
    t.w.add_key_length(HEAD_DIM)
    t.w.add_value_length(HEAD_DIM)
    for i in range(LAYERS):
        p = f"blk.{i}."
        t.vector(p + "attn_norm.weight", HIDDEN)
        t.vector(p + "ffn_norm.weight", HIDDEN)
        _attention(t, p, head_norms=True)
        _dense(t, p)


def _qwen3moe(t: Tiny) -> None:
    _common(t)
    t.w.add_key_length(HEAD_DIM)
    t.w.add_value_length(HEAD_DIM)
    t.w.add_expert_count(8)
    t.w.add_expert_used_count(3)
    t.w.add_expert_feed_forward_length(256)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        t.vector(p + "attn_norm.weight", HIDDEN)
        t.vector(p + "ffn_norm.weight", HIDDEN)
        _attention(t, p, head_norms=True)
        _experts(t, p, 8, 256)


def _mixtral(t: Tiny) -> None:
    _common(t)
    t.w.add_expert_count(4)
    t.w.add_expert_used_count(2)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        t.vector(p + "attn_norm.weight", HIDDEN)
        t.vector(p + "ffn_norm.weight", HIDDEN)
        _attention(t, p)
        _experts(t, p, 4, INNER)


def _qwen2moe(t: Tiny) -> None:
    _common(t)
    t.w.add_expert_count(8)
    t.w.add_expert_used_count(2)
    t.w.add_expert_feed_forward_length(256)
    t.w.add_expert_shared_feed_forward_length(INNER)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        t.vector(p + "attn_norm.weight", HIDDEN)
        t.vector(p + "ffn_norm.weight", HIDDEN)
        _attention(t, p, bias=True)
        _experts(t, p, 8, 256)
        t.vector(p + "ffn_gate_inp_shexp.weight", HIDDEN, 0.0)
        _dense(t, p, INNER, "_shexp")


def _gemma2(t: Tiny) -> None:
    _common(t)
    t.w.add_key_length(HEAD_DIM)
    t.w.add_value_length(HEAD_DIM)
    t.w.add_attn_logit_softcapping(50.0)
    t.w.add_final_logit_softcapping(30.0)
    t.w.add_sliding_window(16)
    for i in range(LAYERS):
        p = f"blk.{i}."
        for name in ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm"):
            t.vector(f"{p}{name}.weight", HIDDEN)
        _attention(t, p)
        _dense(t, p)


def _gemma3(t: Tiny) -> None:
    _common(t)
    t.head()
    t.w.add_key_length(HEAD_DIM)
    t.w.add_value_length(HEAD_DIM)
    t.w.add_sliding_window(16)
    t.w.add_array("gemma3.attention.sliding_window_pattern", [True, True, False])
    t.w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    t.w.add_rope_scaling_factor(8.0)
    for i in range(LAYERS):
        p = f"blk.{i}."
        for name in ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm"):
            t.vector(f"{p}{name}.weight", HIDDEN)
        _attention(t, p, head_norms=True)
        _dense(t, p)


def _phi3(t: Tiny) -> None:
    _common(t)
    t.w.add_rope_scaling_orig_ctx_len(CONTEXT)
    t.vector("rope_factors_long.weight", HEAD_DIM // 2, 4.0, 0.5)
    t.vector("rope_factors_short.weight", HEAD_DIM // 2, 1.2, 0.1)
    t.w.add_rope_scaling_attn_factors(1.1)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        t.vector(p + "attn_norm.weight", HIDDEN)
        t.vector(p + "ffn_norm.weight", HIDDEN)
        t.matrix(p + "attn_qkv", (HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN)
        t.matrix(p + "attn_output", HIDDEN, HEADS * HEAD_DIM)
        t.matrix(p + "ffn_up", 2 * INNER, HIDDEN)
        t.matrix(p + "ffn_down", HIDDEN, INNER)


def _gpt_oss(t: Tiny) -> None:
    _common(t)
    t.w.add_key_length(HEAD_DIM)
    t.w.add_value_length(HEAD_DIM)
    t.w.add_sliding_window(16)
    t.w.add_expert_count(8)
    t.w.add_expert_used_count(2)
    t.w.add_expert_feed_forward_length(256)
    t.w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    t.w.add_rope_scaling_factor(32.0)
    t.w.add_rope_scaling_orig_ctx_len(64)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        t.vector(p + "attn_norm.weight", HIDDEN)
        t.vector(p + "post_attention_norm.weight", HIDDEN)
        _attention(t, p, bias=True, output_bias=True)
        t.vector(p + "attn_sinks.weight", HEADS, 0.0, 1.0)
        _experts(t, p, 8, 256, bias=True)
        t.vector(p + "ffn_gate_inp.bias", 8, 0.0)


def _deepseek2(t: Tiny) -> None:
    rank, rotary, nope, value = 128, 64, 64, 64
    _common(t, heads=HEADS, kv=1, rotary=rotary)
    w = t.w
    w.add_kv_lora_rank(rank)
    w.add_q_lora_rank(64)
    w.add_key_length(rank + rotary)
    w.add_value_length(rank)
    w.add_key_length_mla(nope + rotary)
    w.add_value_length_mla(value)
    w.add_leading_dense_block_count(1)
    w.add_expert_count(8)
    w.add_expert_used_count(2)
    w.add_expert_shared_count(1)
    w.add_expert_feed_forward_length(256)
    w.add_expert_weights_scale(1.0)
    w.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX)
    w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    w.add_rope_scaling_factor(40.0)
    w.add_rope_scaling_orig_ctx_len(64)
    w.add_rope_scaling_yarn_log_mul(0.0707)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        t.vector(p + "attn_norm.weight", HIDDEN)
        t.vector(p + "ffn_norm.weight", HIDDEN)
        t.matrix(p + "attn_q_a", 64, HIDDEN)
        t.vector(p + "attn_q_a_norm.weight", 64)
        t.matrix(
            p + "attn_q_b",
            HEADS * (nope + rotary),
            64,
            "" if t.kind in (*QUANTIZED, "IQ4_NL", "MXFP4") else "Q8_0",
        )
        t.matrix(p + "attn_kv_a_mqa", rank + rotary, HIDDEN)
        t.vector(p + "attn_kv_a_norm.weight", rank)
        # their rows are too short for 256-weight blocks
        small = "" if t.kind in (*QUANTIZED, "IQ4_NL", "MXFP4") else "Q8_0"
        t.matrix(p + "attn_k_b", rank, nope, small, experts=HEADS)
        t.matrix(p + "attn_v_b", value, rank, small, experts=HEADS)
        t.matrix(p + "attn_output", HIDDEN, HEADS * value)
        if i == 0:
            _dense(t, p)
        else:
            _experts(t, p, 8, 256)
            _dense(t, p, 256, "_shexp")


def _recurrent(t: Tiny, heads: int, inner: int, state: int, groups: int, kernel: int = 4) -> None:
    w = t.w
    w.add_ssm_conv_kernel(kernel)
    w.add_ssm_inner_size(inner)
    w.add_ssm_state_size(state)
    w.add_ssm_time_step_rank(heads)
    w.add_ssm_group_count(groups)


def _mamba2(t: Tiny, p: str, heads: int, inner: int, state: int, groups: int, normed: bool = True) -> None:
    channels = inner + 2 * groups * state
    t.matrix(p + "ssm_in", inner + channels + heads, HIDDEN)
    t.vector(p + "ssm_conv1d.weight", (channels, 4), 0.0, 0.5)
    t.vector(p + "ssm_conv1d.bias", channels, 0.0)
    t.vector(p + "ssm_dt.bias", heads, -1.0, 1.0)
    t.vector(p + "ssm_a", (heads, 1), -1.0, 0.3)
    t.vector(p + "ssm_d", (heads, 1))
    if normed:
        t.vector(p + "ssm_norm.weight", (groups, inner // groups))
    t.matrix(p + "ssm_out", HIDDEN, inner)


def _falcon_h1(t: Tiny) -> None:
    _common(t)
    t.w.add_key_length(HEAD_DIM)
    t.w.add_value_length(HEAD_DIM)
    _recurrent(t, 8, 512, 64, 2)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        t.vector(p + "attn_norm.weight", HIDDEN)
        t.vector(p + "ffn_norm", HIDDEN)
        _mamba2(t, p, 8, 512, 64, 2, normed=i > 0)
        _attention(t, p)
        _dense(t, p)


def _granite_hybrid(t: Tiny, experts: bool = False) -> None:
    _common(t, kv=[0, KV_HEADS, 0])
    t.w.add_embedding_scale(1.5)
    t.w.add_residual_scale(0.7)
    t.w.add_logit_scale(0.8)
    t.w.add_attention_scale(1 / 64)
    t.w.add_bool("granitehybrid.rope.scaling.finetuned", experts)
    _recurrent(t, 8, 2 * HIDDEN, 128, 1)
    if experts:
        t.w.add_expert_count(8)
        t.w.add_expert_used_count(2)
        t.w.add_expert_shared_feed_forward_length(256)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        t.vector(p + "attn_norm.weight", HIDDEN)
        t.vector(p + "ffn_norm.weight", HIDDEN)
        if i == 1:
            _attention(t, p)
        else:
            _mamba2(t, p, 8, 2 * HIDDEN, 128, 1)
        if experts:
            _experts(t, p, 8, INNER)
            _dense(t, p, 256, "_shexp")
        else:
            _dense(t, p)


def _granite(t: Tiny, experts: bool = False) -> None:
    _common(t)
    t.w.add_embedding_scale(1.5)
    t.w.add_residual_scale(0.7)
    t.w.add_logit_scale(0.8)
    t.w.add_attention_scale(1 / 64)
    if experts:
        t.w.add_expert_count(8)
        t.w.add_expert_used_count(2)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        t.vector(p + "attn_norm.weight", HIDDEN)
        t.vector(p + "ffn_norm.weight", HIDDEN)
        _attention(t, p)
        if experts:
            _experts(t, p, 8, INNER)
        else:
            _dense(t, p)


def _granite_moe(t: Tiny) -> None:
    _granite(t, experts=True)


def _granite_hybrid_moe(t: Tiny) -> None:
    _granite_hybrid(t, experts=True)


def _nemotron_h(t: Tiny) -> None:
    t.w.add_layer_norm_eps(1e-5)
    _common(t, kv=[0, KV_HEADS, 0], inner=[0, 0, INNER])
    t.w.add_key_length(HEAD_DIM)
    t.w.add_value_length(HEAD_DIM)
    _recurrent(t, 8, 512, 64, 4)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        t.vector(p + "attn_norm.weight", HIDDEN)
        if i == 0:
            _mamba2(t, p, 8, 512, 64, 4)
        elif i == 1:
            _attention(t, p)
        else:
            t.matrix(p + "ffn_up", INNER, HIDDEN)
            t.matrix(p + "ffn_down", HIDDEN, INNER)


def _nemotron_h_moe(t: Tiny, latent: int = 128) -> None:
    """Mamba-2, attention, and experts of squared ReLU in a latent width."""
    w = t.w
    w.add_layer_norm_eps(1e-5)
    _common(t, kv=[0, KV_HEADS, 0], inner=[0, 0, INNER])
    w.add_key_length(HEAD_DIM)
    w.add_value_length(HEAD_DIM)
    _recurrent(t, 8, 512, 64, 2)
    w.add_expert_count(8)
    w.add_expert_used_count(3)
    w.add_expert_shared_count(1)
    w.add_expert_feed_forward_length(256)
    w.add_expert_shared_feed_forward_length(INNER)
    w.add_expert_weights_norm(True)
    w.add_expert_weights_scale(2.5)
    w.add_uint32("nemotron_h_moe.moe_latent_size", latent)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        t.vector(p + "attn_norm.weight", HIDDEN)
        if i == 0:
            _mamba2(t, p, 8, 512, 64, 2)
        elif i == 1:
            _attention(t, p)
        else:
            t.matrix(p + "ffn_gate_inp", 8, HIDDEN, "F32")
            t.vector(p + "exp_probs_b.bias", 8, 0.0)
            t.matrix(p + "ffn_latent_down", latent, HIDDEN)
            t.matrix(p + "ffn_latent_up", HIDDEN, latent)
            t.matrix(p + "ffn_up_exps", 256, latent, experts=8)
            t.matrix(p + "ffn_down_exps", latent, 256, experts=8)
            t.matrix(p + "ffn_up_shexp", INNER, HIDDEN)
            t.matrix(p + "ffn_down_shexp", HIDDEN, INNER)


def _lfm2(t: Tiny, experts: bool = False) -> None:
    _common(t, kv=[0, KV_HEADS, 0])
    t.w.add_shortconv_l_cache(3)
    if not experts:
        t.w.add_sliding_window(16)
        t.w.add_array("lfm2.attention.sliding_window_pattern", [True] * LAYERS)
    else:
        t.w.add_leading_dense_block_count(1)
        t.w.add_expert_count(8)
        t.w.add_expert_used_count(2)
        t.w.add_expert_feed_forward_length(256)
        t.w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        t.vector(p + "attn_norm.weight", HIDDEN)
        t.vector(p + "ffn_norm.weight", HIDDEN)
        if i == 1:
            _attention(t, p, head_norms=True)
        else:
            t.vector(p + "shortconv.conv.weight", (HIDDEN, 3), 0.0, 0.5)
            t.matrix(p + "shortconv.in_proj", 3 * HIDDEN, HIDDEN)
            t.matrix(p + "shortconv.out_proj", HIDDEN, HIDDEN)
        if experts and i > 0:
            _experts(t, p, 8, 256)
            t.vector(p + "exp_probs_b.bias", 8, 0.0)
        else:
            _dense(t, p)


def _lfm2moe(t: Tiny) -> None:
    _lfm2(t, experts=True)


def _qwen35(t: Tiny, experts: bool = False, joined: bool = False) -> None:
    """Two layers of the gated delta rule (2 key heads, 4 value heads), then gated attention."""
    dim, state, k_heads, v_heads = 64, 64, 2, 4
    inner, channels = v_heads * state, (v_heads + 2 * k_heads) * state
    _common(t, rotary=32)
    w = t.w
    w.add_key_length(dim)
    w.add_value_length(dim)
    w.add_array(f"{w.arch}.attention.recurrent_layers", [True, True, False])
    if not joined:
        w.add_rope_dimension_sections([6, 5, 5, 0])
    _recurrent(t, v_heads, inner, state, k_heads)
    if experts:
        w.add_expert_count(8)
        w.add_expert_used_count(3)
        w.add_expert_feed_forward_length(256)
        w.add_expert_shared_feed_forward_length(INNER)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        t.vector(p + "attn_norm.weight", HIDDEN)
        t.vector(p + "post_attention_norm.weight", HIDDEN)
        if i == 2:
            t.matrix(p + "attn_q", 2 * HEADS * dim, HIDDEN)
            t.matrix(p + "attn_k", KV_HEADS * dim, HIDDEN)
            t.matrix(p + "attn_v", KV_HEADS * dim, HIDDEN)
            t.matrix(p + "attn_output", HIDDEN, HEADS * dim)
            t.vector(p + "attn_q_norm.weight", dim)
            t.vector(p + "attn_k_norm.weight", dim)
        else:
            t.matrix(p + "attn_qkv", channels, HIDDEN)
            t.matrix(p + "attn_gate", inner, HIDDEN)
            for name, rows in (("ba", 2 * v_heads),) if joined else (("beta", v_heads), ("alpha", v_heads)):
                t.matrix(f"{p}ssm_{name}", rows, HIDDEN)
            t.vector(p + "ssm_conv1d.weight", (channels, 4), 0.0, 0.5)
            t.vector(p + "ssm_dt.bias", v_heads, -1.0, 1.0)
            t.vector(p + "ssm_a", v_heads, -1.0, 0.3)
            t.vector(p + "ssm_norm.weight", state)
            t.matrix(p + "ssm_out", HIDDEN, inner)
        if experts:
            _experts(t, p, 8, 256)
            t.vector(p + "ffn_gate_inp_shexp.weight", HIDDEN, 0.0)
            _dense(t, p, INNER, "_shexp")
        else:
            _dense(t, p)


def _qwen35moe(t: Tiny) -> None:
    _qwen35(t, experts=True)


def _qwen3next(t: Tiny) -> None:
    _qwen35(t, experts=True, joined=True)


MODELS = {
    "llama": ("llama", _llama), "llama3": ("llama", _llama3), "mixtral": ("llama", _mixtral),
    "qwen2": ("qwen2", _qwen2), "qwen2moe": ("qwen2moe", _qwen2moe), "qwen3": ("qwen3", _qwen3),
    "qwen3moe": ("qwen3moe", _qwen3moe), "gemma2": ("gemma2", _gemma2), "gemma3": ("gemma3", _gemma3),
    "phi3": ("phi3", _phi3), "gpt-oss": ("gpt-oss", _gpt_oss), "deepseek2": ("deepseek2", _deepseek2),
    "falcon-h1": ("falcon-h1", _falcon_h1), "granite-h": ("granitehybrid", _granite_hybrid),
    "granite-h-moe": ("granitehybrid", _granite_hybrid_moe), "nemotron-h": ("nemotron_h", _nemotron_h),
    "granite": ("granite", _granite), "granite-moe": ("granitemoe", _granite_moe),
    "nemotron-h-moe": ("nemotron_h_moe", _nemotron_h_moe),
    "lfm2": ("lfm2", _lfm2), "lfm2moe": ("lfm2moe", _lfm2moe), "qwen3next": ("qwen3next", _qwen3next),
    "qwen35": ("qwen35", _qwen35), "qwen35moe": ("qwen35moe", _qwen35moe),
}  # fmt: skip

KEPT = 8  # prompt positions whose logits are kept
KINDS = (
    "BF16",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "IQ4_NL",
    "IQ4_XS",
    "MXFP4",
)
# every architecture in F16 and Q8_0; every other format in one; the formats that real files of a family use
CASES = (
    *((name, kind) for name in MODELS for kind in ("F16", "Q8_0")),
    *(("llama", kind) for kind in KINDS),
    *(("qwen3moe", kind) for kind in ("Q4_K", "Q6_K")),
    ("gpt-oss", "MXFP4"), ("deepseek2", "Q4_K"), ("gemma3", "Q4_0"), ("falcon-h1", "Q4_K"), ("qwen3next", "Q4_K"),
)  # fmt: skip


def prompt() -> list[int]:
    return np.random.default_rng(1).integers(3, VOCAB, 40).tolist()
