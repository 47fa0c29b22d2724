"""The walk over a model's tensors and caches in one scheme, reduced to the sums that every price needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Number = Any  # float, or a numpy array of them: every field of a Walk may be either


@dataclass(frozen=True, slots=True)
class Walk:
    """Sums over one (model, scheme); as a table, each field is an array with one entry per pair.

    `*_bytes` are as stored by the scheme, `*_params` are element counts. Matrices of attention and of linear or
    recurrent mixers count as `mixer`; routers and shared experts as `shared`; norms, biases, vectors as `other`.
    `kv_k_full`, `kv_v_full` are K and V elements per cached token summed over unwindowed layers (MLA: latent, K only),
    `kv_k_window`, `kv_v_window` over windowed ones, whose window is `window_tokens`; `state_elements` per sequence.
    `attention_flops_full` is FLOPs per (new token x visible token), summed over layers without a window.
    """

    n_layers: Number
    n_full_layers: Number
    n_window_layers: Number
    n_linear_layers: Number
    n_moe_layers: Number
    hidden_size: Number
    vocab_size: Number
    n_heads: Number
    head_dim: Number
    max_inner: Number  # widest feed-forward activation of one token
    n_experts: Number
    experts_per_token: Number
    embedding_bytes: Number
    head_bytes: Number  # bytes read to make logits: the embedding's when tied (not stored twice then)
    mixer_bytes: Number
    dense_bytes: Number
    expert_bytes: Number  # all routed experts of all layers
    shared_bytes: Number
    other_bytes: Number
    tower_bytes: Number  # vision, audio, projectors
    total_bytes: Number  # what the loader keeps
    file_bytes: Number  # what is downloaded (0 where the container leaves it open)
    embedding_params: Number
    head_params: Number
    mixer_params: Number
    dense_params: Number
    expert_params: Number
    shared_params: Number
    total_params: Number
    active_params: Number  # touched per token, input embedding excluded, head included
    tied: Number
    latent: Number  # 1 for MLA
    attention_flops_full: Number
    attention_flops_window: Number
    window_tokens: Number
    kv_k_full: Number
    kv_v_full: Number
    kv_k_window: Number
    kv_v_window: Number
    index_elements: Number
    state_elements: Number
