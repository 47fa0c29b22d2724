"""What the tiny models of `runner_tiny` are made of: a writer of GGUF files, and the tensors that layers share."""

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
            elif name == "output":
                # each token has a likely successor, so that rounding does not decide the argmax
                values = (values + np.roll(self.embedding, 37, axis=0)[:rows] / 32).astype(np.float32)
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


def latent_widths(t: Tiny, rank: int, rotary: int, nope: int, value: int) -> None:
    """Of absorbed heads, and of those that they stand for."""
    t.w.add_key_length(rank + rotary)
    t.w.add_value_length(rank)
    t.w.add_key_length_mla(nope + rotary)
    t.w.add_value_length_mla(value)


def common(t: Tiny, **more: Any) -> None:
    w = t.w
    w.add_context_length(CONTEXT)
    w.add_embedding_length(HIDDEN)
    w.add_block_count(more.get("layers", LAYERS))
    w.add_feed_forward_length(more.get("inner", INNER))
    w.add_head_count(more.get("heads", HEADS))
    w.add_head_count_kv(more.get("kv", KV_HEADS))
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(more.get("rotary", HEAD_DIM))
    w.add_rope_freq_base(10000.0)
    w.add_vocab_size(VOCAB)
    w.add_tokenizer_model("no_vocab")


def head_sizes(t: Tiny) -> None:
    t.w.add_key_length(HEAD_DIM)
    t.w.add_value_length(HEAD_DIM)


def mixture(t: Tiny, n: int, used: int, inner: int = 0, shared: int = 0) -> None:
    t.w.add_expert_count(n)
    t.w.add_expert_used_count(used)
    if inner:
        t.w.add_expert_feed_forward_length(inner)
    if shared:
        t.w.add_expert_shared_feed_forward_length(shared)


def norms(t: Tiny, p: str, *names: str) -> None:
    for name in names or ("attn_norm", "ffn_norm"):
        t.vector(f"{p}{name}.weight", HIDDEN)


def scaled(t: Tiny) -> None:
    t.w.add_embedding_scale(1.5)
    t.w.add_residual_scale(0.7)
    t.w.add_logit_scale(0.8)
    t.w.add_attention_scale(1 / 64)


def attention(
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


def dense(t: Tiny, p: str, inner: int = INNER, suffix: str = "") -> None:
    t.matrix(f"{p}ffn_gate{suffix}", inner, HIDDEN)
    t.matrix(f"{p}ffn_up{suffix}", inner, HIDDEN)
    t.matrix(f"{p}ffn_down{suffix}", HIDDEN, inner)


def experts(t: Tiny, p: str, n: int, inner: int, bias: bool = False, kind: str = "") -> None:
    t.matrix(p + "ffn_gate_inp", n, HIDDEN, "F32")
    for name, rows, width in (("gate", inner, HIDDEN), ("up", inner, HIDDEN), ("down", HIDDEN, inner)):
        t.matrix(f"{p}ffn_{name}_exps", rows, width, kind, experts=n)
        if bias:
            t.vector(f"{p}ffn_{name}_exps.bias", (n, rows), 0.0)


def layers(t: Tiny, **kind: bool) -> None:
    """Plain layers: two norms, attention, a dense feed-forward."""
    for i in range(LAYERS):
        p = f"blk.{i}."
        norms(t, p)
        attention(t, p, **kind)
        dense(t, p)
