"""Tiny models whose indexer's keys stand for several tokens each, in four streams of the residual (GLM-5.3-Flash)."""

from __future__ import annotations

import gguf
from tiny_latent import INDEX_HEADS, INDEX_WIDTH, LOW, NOPE, RANK, VALUE
from tiny_parts import HEADS, HIDDEN, Tiny, common, dense, experts, latent_widths, mixture, norms
from tiny_states import KERNEL, kda

POOL, TOP_K = 4, 12  # of the prompt's 40 tokens
STREAMS, DIM = 4, 64


def _sizes(t: Tiny, attends: tuple[bool, ...], drafts: int = 0) -> None:
    common(t, kv=[int(x) for x in attends] + [1] * drafts, rotary=0, layers=len(attends) + drafts)
    w = t.w
    w.add_layer_norm_eps(1e-6)
    w.add_kv_lora_rank(RANK)
    w.add_q_lora_rank(LOW)
    latent_widths(t, RANK, 0, NOPE, VALUE)
    w.add_ssm_conv_kernel(KERNEL)
    w.add_kda_head_dim(DIM)
    w.add_indexer_head_count(INDEX_HEADS)
    w.add_indexer_key_length(INDEX_WIDTH)
    w.add_indexer_top_k(TOP_K)
    of = lambda key: f"{w.arch}.{key}"  # noqa: E731
    w.add_uint32(of("attention.indexer.kpool"), POOL)
    w.add_bool(of("attention.indexer.kpool_select_tail"), True)
    w.add_uint32(of("hyper_connection.count"), STREAMS)
    w.add_uint32(of("hyper_connection.sinkhorn_iterations"), 20)
    w.add_float32(of("hyper_connection.epsilon"), 1e-6)
    w.add_leading_dense_block_count(1)
    mixture(t, 8, 2, 256)
    w.add_expert_shared_count(1)
    w.add_expert_weights_scale(2.5)
    w.add_expert_weights_norm(True)
    w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def _attention(t: Tiny, p: str, indexed: bool) -> None:
    t.matrix(p + "attn_q_a", LOW, HIDDEN)
    t.vector(p + "attn_q_a_norm.weight", LOW)
    t.matrix(p + "attn_q_b", HEADS * NOPE, LOW)
    t.matrix(p + "attn_kv_a_mqa", RANK, HIDDEN)
    t.vector(p + "attn_kv_a_norm.weight", RANK)
    t.matrix(p + "attn_k_b", RANK, NOPE, experts=HEADS)
    t.matrix(p + "attn_v_b", VALUE, RANK, experts=HEADS)
    t.matrix(p + "attn_output", HIDDEN, HEADS * VALUE)
    if not indexed:
        return
    t.matrix(p + "indexer.attn_q_b", INDEX_HEADS * INDEX_WIDTH, LOW)
    t.matrix(p + "indexer.attn_k", INDEX_WIDTH, HIDDEN)
    t.vector(p + "indexer.k_norm.weight", INDEX_WIDTH)
    t.vector(p + "indexer.k_norm.bias", INDEX_WIDTH, 0.0)
    t.matrix(p + "indexer.proj", INDEX_HEADS, HIDDEN)
    t.matrix(p + "indexer_compressor_gate", INDEX_WIDTH, HIDDEN)
    t.matrix(p + "indexer_compressor_ape", POOL, INDEX_WIDTH, "F32", sigma=0.5)


def _streams(t: Tiny, p: str) -> None:
    n = (2 + STREAMS) * STREAMS
    for half in ("attn", "ffn"):
        t.matrix(f"{p}hc_{half}_fn", n, STREAMS * HIDDEN, "F32")
        t.vector(f"{p}hc_{half}_base.weight", n, 0.0, 0.5)
        t.vector(f"{p}hc_{half}_scale.weight", 3, 1.0, 0.2)


def _layers(t: Tiny, attends: tuple[bool, ...], indexed: tuple[bool, ...]) -> None:
    t.head()
    for i, (sees, own) in enumerate(zip(attends, indexed, strict=True)):
        p = f"blk.{i}."
        norms(t, p)
        _streams(t, p)
        if sees:
            _attention(t, p, own)
        else:
            kda(t, p, DIM, flat=True)
        if i == 0:
            dense(t, p)
        else:
            _mixture(t, p)


def _mixture(t: Tiny, p: str) -> None:
    experts(t, p, 8, 256)
    t.vector(p + "exp_probs_b.bias", 8, 0.0)
    dense(t, p, 256, "_shexp")


def _draft(t: Tiny, p: str) -> None:
    """The NextN layer behind the others, which loading skips."""
    norms(t, p, "attn_norm", "ffn_norm", "nextn.enorm", "nextn.hnorm", "nextn.shared_head_norm")
    _attention(t, p, indexed=True)
    _mixture(t, p)
    t.matrix(p + "nextn.eh_proj", HIDDEN, 2 * HIDDEN)


def glm5_next(t: Tiny) -> None:
    attends = (False, True, False, True)
    _sizes(t, attends, drafts=1)
    t.w.add_nextn_predict_layers(1)
    _layers(t, attends, attends)
    _draft(t, f"blk.{len(attends)}.")


def glm5_next_shared(t: Tiny) -> None:
    """The last layer shares an indexer; decays and what gates let through are bounded."""
    attends, indexed = (False, True, True), (False, True, False)
    _sizes(t, attends)
    w = t.w
    w.add_array(f"{w.arch}.attention.indexer.types", [True, True, False])
    w.add_float32(f"{w.arch}.kda.gate_lower_bound", -5.0)
    w.add_array(f"{w.arch}.swiglu_clamp_exp", [1.0] * len(attends))
    w.add_array(f"{w.arch}.swiglu_clamp_shexp", [0.5] * len(attends))
    _layers(t, attends, indexed)


POOLED = {"glm5-next": ("glm5-next", glm5_next), "glm5-next-shared": ("glm5-next", glm5_next_shared)}
