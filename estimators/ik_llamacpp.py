"""ik_llama.cpp, where its memory differs from llama.cpp's: its own file types, latent files and compute buffers.

A fork of early 2025: 32-bit masks, fused feed-forwards of experts, latent attention that expands the cache to
keys and values for prompts ("MLA mode" 2 and 3). Closed forms from its graph; checked on public load logs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from estimators.llamacpp_memory import Cells
from estimators.walk import Number, Walk
from modeldb.layers import LatentAttention
from modeldb.model import Model
from modeldb.scheme import Scheme

MIB = float(1 << 20)
#: bits per weight of the fork's types (ggml/src/ggml-common.h of ik_llama.cpp: block bytes over block size)
BITS = {
    "IQ1_S": 1.5, "IQ1_M": 1.75, "IQ2_KS": 2.1875, "IQ2_K": 2.375, "IQ2_KL": 2.6875, "IQ3_KT": 3.125,
    "IQ3_KS": 3.1875, "IQ3_K": 3.4375, "IQ4_KSS": 4.0, "IQ4_KS": 4.25, "IQ4_K": 4.5, "Q4_K": 4.5,
    "IQ5_KS": 5.25, "IQ5_K": 5.5, "IQ6_K": 6.625,
}  # fmt: skip
KEPT_BITS = 8.5  # its recipes leave everything beside the routed experts in q8_0
#: the expanded keys are computed in pieces of this size (its README's advice: -amb 512)
PIECE_BYTES = 512 * MIB
#: bytes per token and cell that masks take on a GPU: the 32-bit one with its 16-bit copy, where heads attend
MASK_BYTES = {"latent": 2.0, "heads": 8.0}
#: an expert's matrices are copied to the GPU for prompts of more than this many tokens per expert
TOKENS_PER_EXPERT = 32


def as_stored(walk: Walk, model: Model, scheme: Scheme, latent: bool) -> Walk:
    """`walk` with the bytes that recipes for this fork give a mixture of experts in one of its own types.

    The type names gate and up matrices of the routed experts; down matrices take the next one (a bit more),
    the rest q8_0. Latent files made for it hold the expansion of keys and values twice.
    """
    bits = own_bits(scheme)
    if not bits or not float(walk.expert_bytes):
        return walk
    experts = walk.expert_params * (2 * bits + _next_bits(bits)) / 3 / 8
    kept = KEPT_BITS / 8
    twice = sum(m.n_heads * m.kv_rank * (m.nope_dim + m.value_dim) for m in _latents(model)) if latent else 0
    stored = replace(
        walk,
        expert_bytes=experts,
        mixer_bytes=(walk.mixer_params + twice) * kept,
        dense_bytes=walk.dense_params * kept,
        shared_bytes=walk.shared_params * kept,
        head_bytes=walk.head_params * kept,
        embedding_bytes=walk.embedding_params * kept,
    )
    changed = sum(float(getattr(stored, name) - getattr(walk, name)) for name in STORED)
    tied = float(stored.head_bytes - walk.head_bytes) * float(walk.tied)
    return replace(stored, total_bytes=walk.total_bytes + changed - tied)


STORED = ("expert_bytes", "mixer_bytes", "dense_bytes", "shared_bytes", "head_bytes", "embedding_bytes")


def own_bits(scheme: Scheme) -> float:
    """Bits per weight of a type that only this fork has; 0 for the mixes that llama.cpp knows too."""
    return BITS.get(re.sub(r"_R\d$", "", scheme.id.upper()), 0.0) if scheme.bits_range else 0.0


def _next_bits(bits: float) -> float:
    """Bits of the type that recipes give down matrices; types below 2 bits are used throughout."""
    return bits if bits < 2 else 8.5 if bits > 6 else bits + 1


def _latents(model: Model) -> list[LatentAttention]:
    return [m for block in model.blocks for m in block.mixers if isinstance(m, LatentAttention)]


@dataclass(frozen=True, slots=True)
class Buffers:
    """Bytes of the compute buffers: of the backend with the head, of one without, of the host beside GPUs."""

    peak: Number
    inner: Number
    host: Number


def buffers(
    walk: Walk, model: Model, scheme: Scheme, held: Cells, micro_batch_tokens: int, flash_attention: bool,
    on_gpu: bool, experts_on_host: bool,
) -> Buffers:  # fmt: skip
    """The compute buffers of a micro-batch, every token's logits among them. None of it depends on `-ngl`."""
    cells = float(held.full * held.streams)
    tokens = min(float(micro_batch_tokens), cells)
    hidden = 4.0 * tokens * walk.hidden_size
    logits = 4.0 * tokens * walk.vocab_size + hidden
    masks = MASK_BYTES["latent" if walk.latent else "heads"] * tokens * cells * on_gpu
    inner = 2 * hidden + masks + _attention(walk, model, cells, tokens, flash_attention, on_gpu)
    host = hidden + 4.0 * tokens * cells
    if walk.n_moe_layers:
        fed = 4.0 * tokens * walk.experts_per_token * walk.hidden_size
        gates = 8.0 * tokens * walk.max_inner
        bits = own_bits(scheme)
        gate_share = 2 * bits / (2 * bits + _next_bits(bits)) if bits else 2 / 3
        crowded = tokens * walk.experts_per_token > TOKENS_PER_EXPERT * walk.n_experts
        if not on_gpu:
            inner = max(inner, 2 * (fed + gates) + 4 * hidden) if walk.latent and flash_attention else inner
        elif experts_on_host and crowded:
            inner = max(inner, fed + walk.expert_bytes / walk.n_moe_layers * gate_share)
        elif experts_on_host:
            host, logits = max(host, fed + gates), logits + hidden
        else:
            inner = max(inner, 2 * hidden + fed + gates / 2)
    return Buffers(max(logits, inner), inner, host if on_gpu else 0.0)


def _attention(
    walk: Walk, model: Model, cells: float, tokens: float, flash_attention: bool, on_gpu: bool
) -> float:
    """Queries and outputs of one layer, its scores, and for latent layers the expanded keys and values."""
    latents = _latents(model)
    if not latents:
        width = walk.n_heads * walk.head_dim
        scores = 0.0 if flash_attention else 4.0 * tokens * walk.n_heads * cells
        return 8.0 * tokens * width + scores
    m = latents[0]
    width = 4.0 * tokens * m.n_heads * (m.nope_dim + m.rope_dim + m.value_dim)
    if not walk.latent or not flash_attention:
        return 4.0 * tokens * m.n_heads * (m.nope_dim + m.rope_dim)
    expanded = 2.0 * cells * m.n_heads * (m.nope_dim + m.rope_dim + m.value_dim)
    if not on_gpu:
        return expanded + width
    piece = min(PIECE_BYTES, 4.0 * cells * m.n_heads * m.nope_dim)
    return expanded + piece + width + 4.0 * cells * (m.kv_rank + m.rope_dim)
