"""A tiny DeepSeek-V4: streams of the residual, compressed rows with and without an indexer, tables of experts."""

from __future__ import annotations

import gguf
import numpy as np
from tiny_parts import HEADS, HIDDEN, VOCAB, Tiny, common, dense, experts, mixture, norms

RATES = (0, 4, 128, 4)  # tokens of a row, by layer
WIDTH, ROTARY, LOW, WINDOW = 128, 64, 64, 16
INDEX_HEADS, INDEX_WIDTH, TOP_K = 8, 128, 12  # a prompt of 200 tokens has 50 rows of 4
GROUPS, GROUP_RANK, HASHED = 2, 64, 2
EXPERTS, CHOSEN, INNER = 8, 3, 256
STREAMS = 4
SQRT_SOFTPLUS = 4  # llama.cpp's number of the router


def _keys(t: Tiny) -> None:
    common(t, heads=HEADS, kv=1, rotary=ROTARY, layers=len(RATES))
    w = t.w
    w.add_key_length(WIDTH)
    w.add_value_length(WIDTH)
    w.add_q_lora_rank(LOW)
    w.add_sliding_window(WINDOW)
    mixture(t, EXPERTS, CHOSEN, INNER)
    w.add_expert_shared_count(1)
    w.add_expert_weights_scale(1.5)
    w.add_expert_weights_norm(True)
    w.add_swiglu_clamp_exp([0.5] * len(RATES))
    w.add_swiglu_clamp_shexp([0.4] * len(RATES))
    w.add_indexer_head_count(INDEX_HEADS)
    w.add_indexer_key_length(INDEX_WIDTH)
    w.add_indexer_top_k(TOP_K)
    w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    w.add_rope_scaling_factor(16.0)
    w.add_rope_scaling_orig_ctx_len(64)
    own = f"{w.arch}."
    w.add_uint32(own + "expert_gating_func", SQRT_SOFTPLUS)
    w.add_uint32(own + "attention.output_group_count", GROUPS)
    w.add_uint32(own + "attention.output_lora_rank", GROUP_RANK)
    w.add_array(own + "attention.compress_ratios", list(RATES))
    w.add_float32(own + "attention.compress_rope_freq_base", 160000.0)
    w.add_uint32(own + "hyper_connection.count", STREAMS)
    w.add_uint32(own + "hyper_connection.sinkhorn_iterations", 20)
    w.add_float32(own + "hyper_connection.epsilon", 1e-6)
    w.add_uint32(own + "hash_layer_count", HASHED)


def _connection(t: Tiny, name: str, n: int, n_scales: int) -> None:
    t.matrix(name + "_fn", n, STREAMS * HIDDEN, "F32")
    t.vector(name + "_base.weight", n, 0.0, 0.5)
    t.vector(name + "_scale.weight", n_scales, 1.0, 0.3)


def _compressor(t: Tiny, name: str, rate: int, width: int, reach: int) -> None:
    t.matrix(name + "_kv", reach * width, HIDDEN)
    t.matrix(name + "_gate", reach * width, HIDDEN)
    t.vector(name + "_ape.weight", (rate, reach * width), 0.0, 1.0)
    t.vector(name + "_norm.weight", width)


def _attention(t: Tiny, p: str, rate: int) -> None:
    t.vector(p + "attn_sinks.weight", HEADS, 0.0, 1.0)
    t.matrix(p + "attn_q_a", LOW, HIDDEN)
    t.vector(p + "attn_q_a_norm.weight", LOW)
    t.matrix(p + "attn_q_b", HEADS * WIDTH, LOW)
    t.matrix(p + "attn_kv", WIDTH, HIDDEN)
    t.vector(p + "attn_kv_a_norm.weight", WIDTH)
    t.matrix(p + "attn_output_a", GROUPS * GROUP_RANK, HEADS * WIDTH // GROUPS)
    t.matrix(p + "attn_output_b", HIDDEN, GROUPS * GROUP_RANK)
    if rate:
        _compressor(t, p + "attn_compressor", rate, WIDTH, 2 if rate == 4 else 1)
    if rate == 4:
        _compressor(t, p + "indexer_compressor", rate, INDEX_WIDTH, 2)
        t.matrix(p + "indexer.attn_q_b", INDEX_HEADS * INDEX_WIDTH, LOW)
        t.matrix(p + "indexer.proj", INDEX_HEADS, HIDDEN)


def deepseek4(t: Tiny) -> None:
    _keys(t)
    t.head()
    _connection(t, "output_hc", STREAMS, 1)
    for i, rate in enumerate(RATES):
        p = f"blk.{i}."
        norms(t, p)
        _attention(t, p, rate)
        for half in ("attn", "ffn"):
            _connection(t, f"{p}hc_{half}", (2 + STREAMS) * STREAMS, 3)
        experts(t, p, EXPERTS, INNER)
        dense(t, p, INNER, "_shexp")
        if i < HASHED:
            table = np.argsort(t.rng.random((VOCAB, EXPERTS)))[:, :CHOSEN].astype(np.int32)
            t.w.add_tensor(p + "ffn_gate_tid2eid.weight", table)
        else:
            t.vector(p + "exp_probs_b.bias", EXPERTS, 0.0, 0.3)


COMPRESSED = {"deepseek4": ("deepseek4", deepseek4)}
