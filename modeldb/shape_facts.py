"""A model's architecture as one flat record, in the field names of Hugging Face configs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modeldb.layers import Gate, QkNorm


@dataclass(frozen=True)
class Shape:
    """The normalised architecture. 0, "" or False mean absent; counts and widths are per layer unless said.

    Attributes:
        model_type: Hugging Face `model_type` of the text model (`qwen3_moe`).
        n_layers, hidden_size, vocab_size: decoder layers, residual width, rows of the embedding.
        n_heads, n_kv_heads, head_dim: query heads, key/value heads, width of a key (MLA: nope + rope).
        v_head_dim: width of a value; 0 means head_dim.
        intermediate_size: inner width of the dense feed-forward. ffn_mats: 3 when gated, else 2.
        tie_word_embeddings, has_lm_head: tied head; whether there is a head at all (embedding models: no).
        norm_params_per_channel: 1 RMSNorm, 2 LayerNorm with bias, 0 without parameters.
        attention_kind: `gqa`, `mha`, `mqa`, `mla`, `none`, `dsv4_mqa`, or `hybrid:` and one of these.
        layer_pattern: one letter per layer, `period*reps+tail`: F full, S sliding window, C chunked,
        L linear,
            M Mamba, K short convolution, X cross attention, H attention beside Mamba, A attention-only block,
            P/Q/W DeepSeek-V4 (ratio csa, ratio hca, window only), - no mixer.
        ffn_pattern: D dense, E mixture of experts, B both, - none.
        sliding_window: tokens of the window or chunk of S, C, P, Q and W layers.
        max_context, rope_theta, rope_scaling (type, `llama3`),
        partial_rotary_factor (share of head_dim that rotates).
        n_experts, experts_per_token, moe_intermediate_size: routed experts, those a token visits,
        inner width of one.
        n_shared_experts, shared_ff: shared experts and their summed inner width.
        q_lora_rank, kv_lora_rank, qk_rope_head_dim, qk_nope_head_dim: MLA.
        index_n_heads, index_head_dim, index_topk, n_indexer_layers: sparse-attention indexer,
        in the last n layers. index_pattern: a letter per layer instead, I with an indexer, s that shares the choice of
            the last one that has (GLM-5.2).
        linear_kind: `mamba1`, `mamba2`, `gated_deltanet`, `kda`, `lightning`, `short_conv`.
        lin_k_heads, lin_v_heads, lin_k_dim, lin_v_dim: linear attention heads and their widths.
        conv_kernel: taps of the short convolution before a recurrent mixer.
        ssm_d_inner, ssm_state, ssm_dt_rank: Mamba 1. ssm_heads, ssm_head_dim, ssm_groups: Mamba 2.
        mtp_layers: multi-token-prediction layers in the checkpoint (not counted in sizes).
        non_text_params: parameters of vision and audio towers and projectors.
        native_dtype: dtype of the published weights (`bf16`, `f16`, `fp8`, `mxfp4` ...).

    The rest are oddities that change size:
        qkv_bias, o_bias, mlp_bias, lm_head_bias: biases on those projections.
        qk_norm: `head` (one norm of head_dim each), `full` or `qk_ln_heads` (over all heads).
        q_gate: `double_q` (queries twice as wide), `per_head`, `per_channel`: an output gate.
        sinks: `all` or `S` (sliding layers only): one learned sink per head.
        norms_per_layer: norms of hidden_size per layer. final_norm: 0 when there is none. emb_norm: 1 when
        embedded
            vectors are normed. sub_norms: norms inside attention and feed-forward (BitNet).
        learned_pos: rows of the learned position table. type_vocab: rows of the token type table. pooler:
        BERT's.
        extra_embed_rows: rows of the embedding above vocab_size that the head lacks.
        global_head_dim, global_kv_heads, k_eq_v: full layers that differ from sliding ones (Gemma 4).
        swa_heads, swa_kv_heads: query and key/value heads of sliding layers when they differ.
        kv_shared_layers: last layers that reuse earlier keys and values; double_wide_mlp: twice the width
        there.
        ple_dim, ple_vocab: per-layer embeddings (Gemma 3n, 4). altup, laurel_rank: Gemma 3n.
        act_params_per_layer: learned activation parameters (xIELU).
        shared_gate, router_bias, expert_bias, zero_experts, moe_latent: of the experts.
        score_bias_is_param: the router's score correction is a parameter. gemma4_moe: Gemma 4's router and
        norms.
        mla_per_layer,
        dense_per_layer: several of them in one layer (LongCat). mla_gate_heads: a gate per head.
        index_block: tokens that an indexer chooses together (MiniMax-M3).
        idx_kpool: tokens pooled into an index key. mhc: hyper-connection streams.
        kda_full_gates: gates as full matrices. mamba_norm: 0 when Mamba 2 has no norm. mamba_inner_norms:
        Jamba's.
        o_groups, o_lora_rank, hc_mult, csa_ratio, hca_ratio: DeepSeek-V4.
        nas: per layer (query heads per key/value head or 0 for no attention, feed-forward width).
        encoder_layers, mel, src_pos, tgt_pos: Whisper.
    """

    model_type: str
    n_layers: int
    hidden_size: int
    vocab_size: int
    layer_pattern: str
    ffn_pattern: str
    n_heads: int = 0
    n_kv_heads: int = 0
    head_dim: int = 0
    v_head_dim: int = 0
    intermediate_size: int = 0
    ffn_mats: Literal[2, 3] = 3
    tie_word_embeddings: bool = False
    has_lm_head: bool = True
    norm_params_per_channel: int = 1
    attention_kind: str = "gqa"
    sliding_window: int = 0
    max_context: int = 0
    rope_theta: float = 0.0
    rope_scaling: str = ""
    partial_rotary_factor: float = 1.0
    n_experts: int = 0
    experts_per_token: int = 0
    moe_intermediate_size: int = 0
    n_shared_experts: int = 0
    shared_ff: int = 0
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    qk_rope_head_dim: int = 0
    qk_nope_head_dim: int = 0
    index_n_heads: int = 0
    index_head_dim: int = 0
    index_topk: int = 0
    n_indexer_layers: int = 0
    index_pattern: str = ""
    index_block: int = 0
    linear_kind: str = ""
    lin_k_heads: int = 0
    lin_v_heads: int = 0
    lin_k_dim: int = 0
    lin_v_dim: int = 0
    conv_kernel: int = 0
    ssm_d_inner: int = 0
    ssm_state: int = 0
    ssm_heads: int = 0
    ssm_head_dim: int = 0
    ssm_groups: int = 0
    ssm_dt_rank: int = 0
    mtp_layers: int = 0
    non_text_params: int = 0
    native_dtype: str = "bf16"
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    lm_head_bias: bool = False
    qk_norm: QkNorm = ""
    q_gate: Gate = ""
    sinks: Literal["", "all", "S"] = ""
    norms_per_layer: int = 2
    final_norm: int = 1
    emb_norm: int = 0
    sub_norms: bool = False
    learned_pos: int = 0
    type_vocab: int = 0
    pooler: bool = False
    extra_embed_rows: int = 0
    global_head_dim: int = 0
    global_kv_heads: int = 0
    k_eq_v: bool = False
    swa_heads: int = 0
    swa_kv_heads: int = 0
    kv_shared_layers: int = 0
    double_wide_mlp: bool = False
    ple_dim: int = 0
    ple_vocab: int = 0
    altup: int = 0
    laurel_rank: int = 0
    act_params_per_layer: int = 0
    shared_gate: bool = False
    router_bias: bool = False
    expert_bias: bool = False
    zero_experts: int = 0
    moe_latent: int = 0
    score_bias_is_param: bool = False
    gemma4_moe: bool = False
    mla_per_layer: int = 1
    dense_per_layer: int = 1
    mla_gate_heads: bool = False
    idx_kpool: int = 0
    mhc: int = 0
    kda_full_gates: bool = False
    mamba_norm: int = 1
    mamba_inner_norms: bool = False
    o_groups: int = 0
    o_lora_rank: int = 0
    hc_mult: int = 0
    csa_ratio: int = 0
    hca_ratio: int = 0
    nas: tuple[tuple[int, int], ...] = ()
    encoder_layers: int = 0
    mel: int = 0
    src_pos: int = 0
    tgt_pos: int = 0

    @property
    def latent(self) -> bool:
        return self.attention_kind.endswith("mla")


# oddities outside the layers, carried to the walk by name
GLOBAL_EXTRAS = (
    "ple_dim", "ple_vocab", "altup", "laurel_rank", "learned_pos", "type_vocab", "emb_norm", "final_norm",
    "pooler",
    "lm_head_bias", "extra_embed_rows", "hc_mult", "mel", "src_pos", "tgt_pos", "mtp_layers",
)  # fmt: skip


def expand(pattern: str) -> str:
    """`LLLF*2+S` -> `LLLFLLLFS`: one character per layer."""
    letters = ""
    for part in pattern.split("+"):
        period, _, times = part.partition("*")
        letters += period * int(times or 1)
    return letters
