"""Layer kinds. Each is a few numbers; `modeldb.walk` turns them into tensors and caches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

QkNorm = Literal["", "head", "full", "qk_ln_heads"]
Gate = Literal["", "double_q", "per_head", "per_channel"]


@dataclass(frozen=True, slots=True)
class Attention:
    """Softmax attention: MHA, GQA or MQA by `n_kv_heads`; a window,
    a chunk or everything by `window_tokens`."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    value_dim: int
    window_tokens: int | None = None
    chunked: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: QkNorm = ""
    gate: Gate = ""
    sinks: bool = False
    keys_are_values: bool = False
    shares_cache: bool = False  # reads an earlier layer's keys and values, keeps none
    prefixed: bool = False  # tokens of a prompt see each other (the first ChatGLM)
    parallel: bool = False  # beside the feed-forward, not before it
    key_bias: bool = True  # False: `qkv_bias` spares the keys (Whisper)
    n_index_heads: int = 0  # block-sparse indexer (MiniMax-M3)
    index_dim: int = 0
    index_top_k: int = 0  # tokens
    index_block: int = 0  # tokens that are chosen together


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2): a compressed cache of kv_rank + rope_dim per token. With
    `index_top_k`, a token sees as many of those before it (DeepSeek-V3.2): those that the layer's indexer of
    `n_index_heads` chooses, or, where it has none, that of the last layer which has one."""

    n_heads: int
    q_rank: int  # 0: queries are not compressed
    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int
    head_gate: bool = False
    n_index_heads: int = 0
    index_dim: int = 0
    index_top_k: int = 0
    index_pool: int = 0  # tokens pooled into one index key (GLM-5.3-Flash)


@dataclass(frozen=True, slots=True)
class CompressedAttention:
    """DeepSeek-V4: one shared key/value of `head_dim` per token inside `window_tokens`, and, beyond it,
    one per
    `ratio` tokens (0: none). `ratio` 4 comes with an indexer of `n_index_heads`."""

    n_heads: int
    head_dim: int
    q_rank: int
    o_groups: int
    o_rank: int
    window_tokens: int
    ratio: int = 0
    n_index_heads: int = 0
    index_dim: int = 0
    index_top_k: int = 0


@dataclass(frozen=True, slots=True)
class StateSpace:
    """Mamba 1 or 2."""

    version: Literal[1, 2]
    inner: int
    state: int
    conv_kernel: int
    n_heads: int = 0  # Mamba 2
    n_groups: int = 1
    dt_rank: int = 0  # Mamba 1
    normed: bool = True
    inner_norms: bool = False


@dataclass(frozen=True, slots=True)
class LinearAttention:
    """Gated DeltaNet, Kimi delta attention or lightning attention: a state instead of a cache."""

    kind: Literal["gated_deltanet", "kda", "lightning"]
    n_k_heads: int
    n_v_heads: int
    k_dim: int
    v_dim: int
    conv_kernel: int = 0
    full_gates: bool = False


@dataclass(frozen=True, slots=True)
class Convolution:
    """Short gated convolution (LFM2)."""

    conv_kernel: int


@dataclass(frozen=True, slots=True)
class CrossAttention:
    """Attention over a fixed encoder output of `n_tokens` (Whisper, Llama 3.2 Vision)."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_tokens: int = 0
    bias: bool = False  # on queries, values and output (Whisper)
    gated: bool = False  # query and key norms and two scalar gates (Llama 3.2 Vision)


@dataclass(frozen=True, slots=True)
class Dense:
    """Feed-forward: 2 matrices, or 3 when gated."""

    inner: int
    n_matrices: Literal[2, 3] = 3
    bias: bool = False


@dataclass(frozen=True, slots=True)
class Experts:
    """Mixture of experts: `per_token` of `n_experts`, plus shared experts of `shared_inner` in all."""

    n_experts: int
    per_token: int
    inner: int
    n_matrices: Literal[2, 3] = 3
    shared_inner: int = 0
    shared_gate: bool = False
    bias: bool = False
    router_bias: bool = False
    score_bias: bool = False
    latent: int = 0  # width of the experts' input when compressed
    n_zero_experts: int = 0  # routed to, but without weights (LongCat)
    n_shared: int = 0  # shared experts that `shared_inner` is made of


Mixer = (
    Attention
    | LatentAttention
    | CompressedAttention
    | StateSpace
    | LinearAttention
    | Convolution
    | CrossAttention
)
FeedForward = Dense | Experts


@dataclass(frozen=True, slots=True)
class Block:
    """One layer: its mixers (usually one; Falcon-H1 has two), its feed-forwards, and its norm vectors
    as (count, parameters per channel). `extra_params` are parameters of the block that fit nothing above,
    by name."""

    mixers: tuple[Mixer, ...]
    feed_forwards: tuple[FeedForward, ...]
    n_norms: int = 2
    norm_width: int = 1
    extra_params: tuple[tuple[str, int | tuple[int, ...]], ...] = ()  # or their shapes
