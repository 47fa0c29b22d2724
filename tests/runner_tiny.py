"""Tiny seeded GGUF files, one per architecture, written with the `gguf` package for the runner's tests."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import tiny_alone
import tiny_blocks
import tiny_bounded
import tiny_compressed
import tiny_families
import tiny_hybrids as hybrids
import tiny_latent
import tiny_lightning
import tiny_mla
import tiny_pooled
import tiny_recent
import tiny_shapes
import tiny_states
from tiny_parts import (
    CONTEXT,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    INNER,
    KV_HEADS,
    LAYERS,
    QUANTIZED,
    SCALES,
    VOCAB,
    Tiny,
    attention,
    blocks,
    common,
    dense,
    experts,
    head_sizes,
    layers,
    mixture,
    norms,
    scaled,
)  # fmt: skip

__all__ = [
    "CASES",
    "CONTEXT",
    "FILES",
    "HEADS",
    "HEAD_DIM",
    "HIDDEN",
    "INNER",
    "KEPT",
    "KV_HEADS",
    "LAYERS",
    "MODELS",
    "QUANTIZED",
    "SCALES",
    "VOCAB",
    "blocks",
    "prompt",
    "write",
]  # fmt: skip


# deviation of embeddings where they are the head, and where norms behind the layers make what is added large
WORDS = {"gemma2": 1 / 16, "command-r": 1 / 4, "cohere2": 1 / 4, "glm4": 4.0, "exaone4": 4.0,
         "olmo2": 4.0, "olmo3": 4.0, "mamba": 4.0, "falcon-mamba": 4.0}  # fmt: skip


def write(path: Path, name: str, kind: str = "F16", seed: int = 7) -> Path:
    """Write the tiny model called `name` (a key of MODELS) with matrices of `kind`."""
    architecture, build = MODELS[name]
    t = Tiny(path, architecture, kind, seed)
    t.matrix(
        "token_embd",
        VOCAB,
        HIDDEN,
        kind if kind in QUANTIZED else "Q8_0",
        sigma=WORDS.get(name, 1.0),
    )
    if architecture != "olmo":  # its norms have no weights
        t.vector("token_embd_norm.weight" if name.startswith("lfm2") else "output_norm.weight", HIDDEN)
    build(t)
    t.close()
    return path


def _llama(t: Tiny) -> None:
    common(t)
    t.head()
    layers(t)


def _llama3(t: Tiny) -> None:
    t.vector("rope_freqs.weight", HEAD_DIM // 2, 4.0, 1.0)
    _llama(t)


def _qwen2(t: Tiny) -> None:
    common(t)
    t.head()
    layers(t, bias=True)


def _qwen3(t: Tiny) -> None:
    common(t)
    t.head()
    head_sizes(t)
    layers(t, head_norms=True)


def _qwen3moe(t: Tiny) -> None:
    common(t)
    head_sizes(t)
    mixture(t, 8, 3, 256)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        norms(t, p)
        attention(t, p, head_norms=True)
        experts(t, p, 8, 256)


def _mixtral(t: Tiny) -> None:
    common(t)
    mixture(t, 4, 2)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        norms(t, p)
        attention(t, p)
        experts(t, p, 4, INNER)


def _qwen2moe(t: Tiny) -> None:
    common(t)
    mixture(t, 8, 2, 256, INNER)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        norms(t, p)
        attention(t, p, bias=True)
        experts(t, p, 8, 256)
        t.vector(p + "ffn_gate_inp_shexp.weight", HIDDEN, 0.0)
        dense(t, p, INNER, "_shexp")


def _gemma2(t: Tiny) -> None:
    common(t)
    head_sizes(t)
    t.w.add_attn_logit_softcapping(50.0)
    t.w.add_final_logit_softcapping(30.0)
    t.w.add_sliding_window(16)
    for i in range(LAYERS):
        p = f"blk.{i}."
        norms(t, p, "attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm")
        attention(t, p)
        dense(t, p)


def _gemma3(t: Tiny) -> None:
    common(t)
    t.head()
    head_sizes(t)
    t.w.add_sliding_window(16)
    t.w.add_array("gemma3.attention.sliding_window_pattern", [True, True, False])
    t.w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    t.w.add_rope_scaling_factor(8.0)
    for i in range(LAYERS):
        p = f"blk.{i}."
        norms(t, p, "attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm")
        attention(t, p, head_norms=True)
        dense(t, p)


def _phi3(t: Tiny) -> None:
    common(t)
    t.w.add_rope_scaling_orig_ctx_len(CONTEXT)
    t.vector("rope_factors_long.weight", HEAD_DIM // 2, 4.0, 0.5)
    t.vector("rope_factors_short.weight", HEAD_DIM // 2, 1.2, 0.1)
    t.w.add_rope_scaling_attn_factors(1.1)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        norms(t, p)
        t.matrix(p + "attn_qkv", (HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN)
        t.matrix(p + "attn_output", HIDDEN, HEADS * HEAD_DIM)
        t.matrix(p + "ffn_up", 2 * INNER, HIDDEN)
        t.matrix(p + "ffn_down", HIDDEN, INNER)


def _gpt_oss(t: Tiny) -> None:
    common(t)
    head_sizes(t)
    t.w.add_sliding_window(16)
    mixture(t, 8, 2, 256)
    t.w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    t.w.add_rope_scaling_factor(32.0)
    t.w.add_rope_scaling_orig_ctx_len(64)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        norms(t, p, "attn_norm", "post_attention_norm")
        attention(t, p, bias=True, output_bias=True)
        t.vector(p + "attn_sinks.weight", HEADS, 0.0, 1.0)
        experts(t, p, 8, 256, bias=True)
        t.vector(p + "ffn_gate_inp.bias", 8, 0.0)


def _mistral_large(t: Tiny) -> None:
    t.w.add_attn_temperature_scale(0.1)
    t.w.add_attn_temperature_length(16)
    t.w.add_expert_weights_norm(True)
    tiny_latent.deepseek2(t)


def _granite(t: Tiny, mixed: bool = False) -> None:
    common(t)
    scaled(t)
    if mixed:
        mixture(t, 8, 2)
    t.head()
    for i in range(LAYERS):
        p = f"blk.{i}."
        norms(t, p)
        attention(t, p)
        if mixed:
            experts(t, p, 8, INNER)
        else:
            dense(t, p)


def _granite_moe(t: Tiny) -> None:
    _granite(t, mixed=True)


MODELS = {
    "llama": ("llama", _llama), "llama3": ("llama", _llama3), "mixtral": ("llama", _mixtral),
    "qwen2": ("qwen2", _qwen2), "qwen2moe": ("qwen2moe", _qwen2moe), "qwen3": ("qwen3", _qwen3),
    "qwen3moe": ("qwen3moe", _qwen3moe), "gemma2": ("gemma2", _gemma2), "gemma3": ("gemma3", _gemma3),
    "phi3": ("phi3", _phi3), "gpt-oss": ("gpt-oss", _gpt_oss), "deepseek2": ("deepseek2", tiny_latent.deepseek2),
    "falcon-h1": ("falcon-h1", hybrids.falcon_h1), "granite-h": ("granitehybrid", hybrids.granite_hybrid),
    "granite-h-moe": ("granitehybrid", hybrids.granite_hybrid_moe), "nemotron-h": ("nemotron_h", hybrids.nemotron_h),
    "granite": ("granite", _granite), "granite-moe": ("granitemoe", _granite_moe),
    "nemotron-h-moe": ("nemotron_h_moe", hybrids.nemotron_h_moe),
    "lfm2": ("lfm2", hybrids.lfm2), "lfm2moe": ("lfm2moe", hybrids.lfm2moe),
    "qwen3next": ("qwen3next", hybrids.qwen3next), "qwen35": ("qwen35", hybrids.qwen35),
    "qwen35moe": ("qwen35moe", hybrids.qwen35moe), **tiny_families.FAMILIES,
    **tiny_states.STATES, **tiny_shapes.SHAPES, **tiny_latent.SPARSE, **tiny_mla.LATENTS,
    **tiny_recent.RECENT, "mistral-large": ("deepseek2", _mistral_large),
    **tiny_alone.ALONE, **tiny_bounded.BOUNDED, **tiny_lightning.LIGHTNING, **tiny_pooled.POOLED,
    **tiny_compressed.COMPRESSED,
    **tiny_blocks.BLOCKS,
}  # fmt: skip

KEPT, KEPT_OF_FAMILIES = 8, 4  # prompt positions whose logits are kept
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
# in a file of golden logits of their own, as the next
LATER = (*tiny_families.FAMILIES, *tiny_states.STATES, *tiny_shapes.SHAPES, *tiny_mla.LATENTS)
RECENT = (*tiny_recent.RECENT, "mistral-large")
APART = (
    *LATER,
    *tiny_latent.SPARSE,
    *RECENT,
    *tiny_alone.ALONE,
    *tiny_bounded.BOUNDED,
    *tiny_lightning.LIGHTNING,
    *tiny_pooled.POOLED,
    *tiny_compressed.COMPRESSED,
    *tiny_blocks.BLOCKS,
)
# every architecture in F16 and Q8_0; every other format in one; the formats that real files of a family use
CASES = (
    *((name, kind) for name in MODELS for kind in ("F16", "Q8_0") if name not in APART),
    *(("llama", kind) for kind in KINDS),
    *(("qwen3moe", kind) for kind in ("Q4_K", "Q6_K")),
    ("gpt-oss", "MXFP4"), ("deepseek2", "Q4_K"), ("gemma3", "Q4_0"), ("falcon-h1", "Q4_K"), ("qwen3next", "Q4_K"),
)  # fmt: skip
WITHOUT_GRAPH = (
    "gptj",
)  # in llama.cpp: tests/test_runner_gptj.py holds it against a forward pass of its own
IN_ONE_PIECE = ("chatglm1",)  # whose prompts see themselves
LONG = dict.fromkeys(tiny_compressed.COMPRESSED, 200)  # tokens of a prompt
FILES = {  # of golden logits in data/runner: what they hold, and for how many positions
    "golden.npz": (CASES, KEPT),
    "golden_families.npz": (
        tuple((n, k) for n in LATER if n not in WITHOUT_GRAPH for k in ("F16", "Q8_0")),
        KEPT_OF_FAMILIES,
    ),
    "golden_sparse.npz": (
        tuple((n, k) for n in tiny_latent.SPARSE for k in ("F16", "Q8_0")),
        KEPT_OF_FAMILIES,
    ),
    "golden_blocks.npz": (
        tuple((n, k) for n in tiny_blocks.BLOCKS for k in ("F16", "Q8_0")),
        KEPT_OF_FAMILIES,
    ),
    "golden_bounded.npz": (
        tuple((n, k) for n in tiny_bounded.BOUNDED for k in ("F16", "Q8_0")),
        KEPT_OF_FAMILIES,
    ),
    "golden_pooled.npz": (
        tuple((n, k) for n in tiny_pooled.POOLED for k in ("F16", "Q8_0")),
        KEPT_OF_FAMILIES,
    ),
    "golden_compressed.npz": (
        tuple((n, k) for n in tiny_compressed.COMPRESSED for k in ("F16", "Q8_0")),
        KEPT_OF_FAMILIES,
    ),
    "golden_recent.npz": (tuple((n, k) for n in RECENT for k in ("F16", "Q8_0")), KEPT_OF_FAMILIES),
    "golden_lightning.npz": (
        tuple((n, k) for n in tiny_lightning.LIGHTNING for k in ("F16", "Q8_0", "Q4_K")),
        KEPT_OF_FAMILIES,
    ),
}


def prompt(name: str = "") -> list[int]:
    """Of the model called `name`: long enough for what it does with tokens far back."""
    return np.random.default_rng(1).integers(3, VOCAB, LONG.get(name, 40)).tolist()
