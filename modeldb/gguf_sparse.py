"""Metadata of GGUF files whose attention is sparse or compressed, and of their streams: keys without the architecture.

Keys follow llama.cpp 0c1e57098, src/llama-arch.cpp.
"""

from __future__ import annotations

from typing import Any

from modeldb.layers import Attention, CompressedAttention, LatentAttention
from modeldb.model import Model

# of DeepSeek-V4, whose experts the token's number chooses (num_hash_layers of its config.json)
HASH_LAYERS = 3


def compressed(model: Model) -> dict[str, Any]:
    """Of DeepSeek-V4, with what its config.json says beside sizes (hc_sinkhorn_iters, compress_rope_theta ...)."""
    layers = [m for b in model.blocks for m in b.mixers if isinstance(m, CompressedAttention)]
    own = layers[0]
    indexed = next((m for m in layers if m.n_index_heads), own)
    return {
        "attention.head_count": own.n_heads,
        "attention.head_count_kv": 1,
        "attention.key_length": own.head_dim,
        "attention.value_length": own.head_dim,
        "attention.q_lora_rank": own.q_rank,
        "attention.sliding_window": own.window_tokens,
        "attention.indexer.head_count": indexed.n_index_heads,
        "attention.indexer.key_length": indexed.index_dim,
        "attention.indexer.top_k": indexed.index_top_k,
        "attention.output_group_count": own.o_groups,
        "attention.output_lora_rank": own.o_rank,
        "attention.compress_ratios": [m.ratio for m in layers],
        "attention.compress_rope_freq_base": 160000.0,
        "hash_layer_count": HASH_LAYERS,
        "swiglu_clamp_exp": [10.0] * len(layers),
        "swiglu_clamp_shexp": [10.0] * len(layers),
        "embedding_length_out": model.hidden_size * model.extra_value("hc_mult"),
        **streams(model),
    }


def streams(model: Model) -> dict[str, Any]:
    """Hyper-connections: as many streams as widen a layer's input."""
    width = next(
        s[0]
        for name, s in model.blocks[0].extra_params
        if name == "hc_attn_fn.weight" and isinstance(s, tuple)
    )
    return {
        "attention.layer_norm_epsilon": 1e-6,
        "hyper_connection.count": width // model.hidden_size,
        "hyper_connection.sinkhorn_iterations": 20,
        "hyper_connection.epsilon": 1e-6,
    }


def indexer(model: Model) -> dict[str, Any]:
    """Sizes of the indexer, and which layers have one, where not all do."""
    layers = [m for b in model.blocks for m in b.mixers if isinstance(m, LatentAttention)]
    own = next((m for m in layers if m.n_index_heads), layers[0])
    found: dict[str, Any] = {
        "attention.indexer.head_count": own.n_index_heads,
        "attention.indexer.key_length": own.index_dim,
        "attention.indexer.top_k": own.index_top_k,
    }
    if own.index_pool:
        found |= {"attention.indexer.kpool": own.index_pool, "attention.indexer.kpool_select_tail": True}
    if not all(m.n_index_heads for m in layers):
        found["attention.indexer.types"] = [bool(m.n_index_heads) for m in layers]
    return found


def blocks(model: Model) -> dict[str, Any]:
    """Sizes of an indexer that chooses blocks of keys, the last one among them."""
    own = next(m for b in model.blocks for m in b.mixers if isinstance(m, Attention) and m.n_index_heads)
    return {
        "attention.indexer.head_count": own.n_index_heads,
        "attention.indexer.key_length": own.index_dim,
        "attention.indexer.top_k": own.index_top_k // own.index_block,
        "attention.indexer.block_size": own.index_block,
        "attention.indexer.local_blocks": 1,
    }
