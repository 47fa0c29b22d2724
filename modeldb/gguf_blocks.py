"""Layers of a GGUF model, recognised by the tensors each one holds and sized by their shapes.

Metadata supply only what shapes cannot: head counts, windows, state sizes, experts per token. So an
architecture newer than this file is read as long as its layers are made of known parts, and refused where
they are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modeldb.errors import BrokenFile, UnsupportedModel
from modeldb.layers import (
    Attention,
    Block,
    CompressedAttention,
    Convolution,
    Dense,
    Experts,
    FeedForward,
    Gate,
    LatentAttention,
    LinearAttention,
    Mixer,
    QkNorm,
    StateSpace,
)

# architecture -> (period, window by default, chunked): every `period`-th layer is full, the others slide.
# From each architecture's load_arch_hparams in llama.cpp's src/models; files may override it with
# `attention.sliding_window_pattern`. Period 0: all layers slide.
WINDOW_PERIODS: dict[str, int] = {
    "gemma2": 2, "gemma3": 6, "gemma3n": 5, "gemma-embedding": 6, "cohere2": 4, "gpt-oss": 2, "olmo2": 4,
    "exaone4": 4, "exaone-moe": 4, "llama4": 4, "afmoe": 4, "plamo3": 8, "phi3": 0, "phimoe": 0, "llama": 0,
    "starcoder2": 0, "qwen2": 0, "mistral3": 0,
}  # fmt: skip
DENSE_FIRST_PERIODS: dict[str, int] = {"smallthinker": 4, "modern-bert": 3}
LLAMA4_CHUNK_TOKENS = 8192  # llama.cpp fixes it, its files do not say
GEMMA3N_OWN_CACHE_LAYERS = 20  # n_layer_kv_from_start in llama.cpp's gemma3n
# tensors of recurrences and encoders that no layer kind here describes
UNKNOWN_PARTS = (
    "time_mix",
    "channel_mix",
    "attn_rel_b",
    "convnext",
)


@dataclass(frozen=True)
class Keys:
    """Metadata of one architecture: `get("attention.head_count")` reads `llama.attention.head_count`."""

    metadata: Mapping[str, Any]
    architecture: str
    name: str

    def get(self, key: str, default: int = 0) -> int:
        """A whole number >= 0; raises BrokenFile when the value is something else."""
        value = self.raw(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 40:
            raise BrokenFile(f"{self.name}: `{self.architecture}.{key}` is {value!r:.60}, not a count")
        return value

    def need(self, key: str) -> int:
        value = self.get(key)
        if value == 0:
            raise BrokenFile(f"{self.name}: metadata key `{self.architecture}.{key}` is missing or 0")
        return value

    def at(self, key: str, layer: int, default: int = 0) -> int:
        """The value for one layer: some keys hold one number, or one number per layer."""
        value = self.raw(key, default)
        if isinstance(value, tuple):
            if layer >= len(value):
                raise BrokenFile(f"{self.name}: `{self.architecture}.{key}` has {len(value)} values, too few")
            value = value[layer]
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 40:
            raise BrokenFile(f"{self.name}: `{self.architecture}.{key}` is {value!r:.60}, not a count")
        return value

    def raw(self, key: str, default: Any = None) -> Any:
        return self.metadata.get(f"{self.architecture}.{key}", default)


Shapes = Mapping[str, tuple[int, ...]]  # a layer's tensors, named without `blk.N.`


def block(keys: Keys, layer: int, n_layers: int, t: Shapes) -> Block:
    """The layer whose tensors have these shapes."""
    for part in UNKNOWN_PARTS:
        if any(part in name for name in t):
            raise UnsupportedModel(
                f"{keys.name}: architecture `{keys.architecture}` has `blk.{layer}.*{part}*`, "
                "a kind of layer that is not modelled yet"
            )
    mixers, ffns = _mixers(keys, layer, n_layers, t), _feed_forwards(keys, layer, t)
    if not mixers and not ffns:
        raise UnsupportedModel(
            f"{keys.name}: layer {layer} of architecture `{keys.architecture}` has no known part "
            f"(it holds {', '.join(sorted(t)[:4]) or 'nothing'})"
        )
    width = keys.need("embedding_length")
    norms = [n for n, s in t.items() if n.endswith("norm.weight") and s == (width,)]
    norms = [n for n in norms if n not in ("attn_q_norm.weight", "attn_k_norm.weight")]
    biased = any(n.removesuffix("weight") + "bias" in t for n in norms)
    streams = tuple((n, s) for n, s in t.items() if n.startswith("hc_"))  # of hyper-connections
    return Block(mixers, ffns, n_norms=len(norms), norm_width=2 if biased else 1, extra_params=streams)


def _mixers(keys: Keys, layer: int, n_layers: int, t: Shapes) -> tuple[Mixer, ...]:
    mixers: list[Mixer] = []
    if "attn_kv.weight" in t:
        mixers.append(_compressed(keys, layer, t))
    elif "attn_kv_a_mqa.weight" in t:
        mixers.append(_latent(keys, layer, t))
    elif any(
        n in t for n in ("ssm_ba.weight", "ssm_beta.weight", "ssm_alpha.weight", "ssm_beta_alpha.weight")
    ):
        mixers.append(_linear(keys, layer, t))
    elif "attn_norm_2.weight" in t and keys.architecture == "minimax-01":
        mixers.append(_lightning(keys, layer, t))
    elif "attn_q.weight" in t or "attn_qkv.weight" in t:
        mixers.append(_attention(keys, layer, n_layers, t))
    if "ssm_in.weight" in t:
        mixers.append(_state_space(keys, t))
    if "shortconv.conv.weight" in t:
        mixers.append(Convolution(keys.need("shortconv.l_cache")))
    return tuple(mixers)


def _attention(keys: Keys, layer: int, n_layers: int, t: Shapes) -> Attention:
    n_heads = keys.at("attention.head_count", layer)
    if not n_heads:
        raise BrokenFile(f"{keys.name}: layer {layer} attends, but `attention.head_count` is missing or 0")
    n_kv = keys.at("attention.head_count_kv", layer, n_heads)
    if not n_kv:
        raise BrokenFile(f"{keys.name}: layer {layer} attends, but `attention.head_count_kv` is 0 there")
    window = window_tokens(keys, layer)
    width = keys.need("embedding_length")
    head_dim = keys.get("attention.key_length") or width // n_heads
    value_dim = keys.get("attention.value_length") or width // n_heads
    keys_are_values = False
    if "attn_k.weight" in t:
        head_dim = _per_head(keys, layer, t["attn_k.weight"][-1], n_kv, "attn_k")
        keys_are_values = "attn_v.weight" not in t
        value_dim = (
            head_dim if keys_are_values else _per_head(keys, layer, t["attn_v.weight"][-1], n_kv, "attn_v")
        )
    elif "attn_q.weight" in t and layer >= _own_cache_layers(keys, n_layers):
        head_dim = value_dim = _per_head(keys, layer, t["attn_q.weight"][-1], n_heads, "attn_q")
    elif "attn_qkv.weight" in t and t["attn_qkv.weight"][-1] != n_heads * head_dim + n_kv * (
        head_dim + value_dim
    ):
        raise BrokenFile(f"{keys.name}: the shape of blk.{layer}.attn_qkv.weight contradicts the head counts")
    return Attention(
        n_heads=n_heads,
        n_kv_heads=n_kv,
        head_dim=head_dim,
        value_dim=value_dim,
        window_tokens=window,
        chunked=window is not None and keys.architecture == "llama4",
        qkv_bias="attn_q.bias" in t or "attn_qkv.bias" in t,
        output_bias="attn_output.bias" in t,
        qk_norm=_qk_norm(t, head_dim),
        gate=_gate(t, n_heads, head_dim),
        sinks="attn_sinks.weight" in t,
        keys_are_values=keys_are_values,
        shares_cache=layer >= _own_cache_layers(keys, n_layers),
        parallel=_parallel(keys, t),
        n_index_heads=keys.get("attention.indexer.head_count") if _indexed(t) else 0,
        index_dim=keys.get("attention.indexer.key_length") if _indexed(t) else 0,
        index_top_k=keys.get("attention.indexer.top_k") * (keys.get("attention.indexer.block_size") or 1)
        if _indexed(t) else 0,
        index_block=keys.get("attention.indexer.block_size") if _indexed(t) else 0,
    )  # fmt: skip


def _per_head(keys: Keys, layer: int, n_outputs: int, n_heads: int, what: str) -> int:
    if n_outputs % n_heads:
        raise BrokenFile(
            f"{keys.name}: blk.{layer}.{what} gives {n_outputs} numbers, not a multiple of {n_heads} heads"
        )
    return n_outputs // n_heads


def _qk_norm(t: Shapes, head_dim: int) -> QkNorm:
    shape = t.get("attn_q_norm.weight")
    if shape is None:
        return ""
    return "head" if shape == (head_dim,) else "full"


def _parallel(keys: Keys, t: Shapes) -> bool:
    """Whether the feed-forward reads the layer's input, not the attention's result."""
    if keys.raw("use_parallel_residual") is True:
        return True
    return "ffn_up.weight" in t and not any(n.startswith(("ffn_norm", "post_attention_norm")) for n in t)


def _gate(t: Shapes, n_heads: int, head_dim: int) -> Gate:
    if "attn_q.weight" in t and t["attn_q.weight"][-1] == 2 * n_heads * head_dim:
        return "double_q"
    if "attn_gate.weight" in t:
        return "per_head" if t["attn_gate.weight"][-1] == n_heads else "per_channel"
    return ""


def _indexed(t: Shapes) -> bool:
    return any(n.startswith("indexer") for n in t)


def _own_cache_layers(keys: Keys, n_layers: int) -> int:
    """Layers from this one on read the keys and values of earlier ones."""
    if keys.architecture == "gemma3n":
        return GEMMA3N_OWN_CACHE_LAYERS
    return n_layers - keys.get("attention.shared_kv_layers")


def window_tokens(keys: Keys, layer: int) -> int | None:
    """Sliding (or chunked) window of a layer; None where it sees everything.

    A pattern in the file wins over the architecture's; `n` means that every n-th layer is full.
    """
    arch = keys.architecture
    window = keys.at("attention.sliding_window", layer)
    if arch == "llama4" and keys.raw("attention.sliding_window") is None:
        window = keys.get("attention.chunk_size") or LLAMA4_CHUNK_TOKENS
    pattern = keys.raw("attention.sliding_window_pattern")
    if isinstance(pattern, tuple) and pattern:
        return (window or None) if pattern[layer % len(pattern)] else None
    if not window:
        return None
    if arch in DENSE_FIRST_PERIODS:
        period = keys.get("attention.sliding_window_pattern", DENSE_FIRST_PERIODS[arch])
        return window if period == 0 or layer % period != 0 else None
    if pattern is None and arch not in WINDOW_PERIODS:
        raise UnsupportedModel(
            f"{keys.name}: `{arch}.attention.sliding_window` is {window}, but which layers slide is not "
            f"known "
            f"for `{arch}` and the file has no `{arch}.attention.sliding_window_pattern`"
        )
    period = keys.get("attention.sliding_window_pattern", WINDOW_PERIODS.get(arch, 0))
    return window if period == 0 or layer % period < period - 1 else None


def _latent(keys: Keys, layer: int, t: Shapes) -> Mixer:
    n_heads = keys.at("attention.head_count", layer)
    rank, rope = keys.need("attention.kv_lora_rank"), 0
    if keys.raw("rope.dimension_count") != 0:
        rope = keys.need("rope.dimension_count")
    key_dim = keys.get("attention.key_length_mla") or keys.need("attention.key_length")
    # MiniCPM3's converter leaves it out, and llama.cpp takes what a head has of the width
    usual = keys.need("embedding_length") // max(1, n_heads)
    value_dim = keys.get("attention.value_length_mla") or keys.get("attention.value_length") or usual
    if not n_heads or key_dim <= rope:
        raise BrokenFile(
            f"{keys.name}: layer {layer}: {n_heads} heads with keys of {key_dim}, {rope} rotated"
        )
    if keys.architecture == "deepseek2" and not keys.get("attention.key_length_mla"):
        # converted before llama.cpp b5143: keys and values are decompressed and cached in full
        return Attention(n_heads, n_heads, key_dim, value_dim)
    return LatentAttention(
        n_heads=n_heads,
        q_rank=t["attn_q_a.weight"][-1] if "attn_q_a.weight" in t else 0,
        kv_rank=rank,
        rope_dim=rope,
        nope_dim=key_dim - rope,
        value_dim=value_dim,
        head_gate="attn_gate.weight" in t,
        n_index_heads=keys.get("attention.indexer.head_count") if _indexed(t) else 0,
        index_dim=keys.get("attention.indexer.key_length") if _indexed(t) else 0,
        index_top_k=keys.get("attention.indexer.top_k"),  # layers without an indexer share another's choice
        index_pool=keys.get("attention.indexer.kpool"),
    )


def _compressed(keys: Keys, layer: int, t: Shapes) -> CompressedAttention:
    heads, groups = keys.at("attention.head_count", layer), keys.need("attention.output_group_count")
    ratio = keys.at("attention.compress_ratios", layer)
    indexed = _indexed(t)
    if not heads or heads % groups or (ratio > 0) != any(n.startswith("attn_compressor") for n in t):
        raise BrokenFile(
            f"{keys.name}: layer {layer}: {heads} heads in {groups} groups, rows of {ratio} tokens"
        )
    return CompressedAttention(
        n_heads=heads,
        head_dim=keys.need("attention.key_length"),
        q_rank=keys.need("attention.q_lora_rank"),
        o_groups=groups,
        o_rank=keys.need("attention.output_lora_rank"),
        window_tokens=keys.need("attention.sliding_window"),
        ratio=ratio,
        n_index_heads=keys.need("attention.indexer.head_count") if indexed else 0,
        index_dim=keys.need("attention.indexer.key_length") if indexed else 0,
        index_top_k=keys.need("attention.indexer.top_k") if indexed else 0,
    )


def _linear(keys: Keys, layer: int, t: Shapes) -> LinearAttention:
    kernel = keys.need("ssm.conv_kernel")
    if any(n.startswith(("ssm_conv1d_q", "ssm_f_")) for n in t):
        n_heads, width = keys.at("attention.head_count", layer), keys.need("kda.head_dim")
        return LinearAttention(
            "kda", n_heads, n_heads, width, width, kernel, full_gates="ssm_f_b.weight" not in t
        )
    n_v = keys.need("ssm.time_step_rank")
    v_dim = keys.need("ssm.inner_size") // n_v
    return LinearAttention(
        "gated_deltanet", keys.need("ssm.group_count"), n_v, keys.need("ssm.state_size"), v_dim, kernel
    )


def _lightning(keys: Keys, layer: int, t: Shapes) -> LinearAttention:
    n_heads = keys.need("attention.head_count")
    width = keys.get("attention.key_length") or keys.need("embedding_length") // n_heads
    if t.get("attn_qkv.weight", (0,))[-1] != 3 * n_heads * width:
        raise BrokenFile(f"{keys.name}: the shape of blk.{layer}.attn_qkv.weight contradicts the head counts")
    return LinearAttention("lightning", n_heads, n_heads, width, width)


def _state_space(keys: Keys, t: Shapes) -> StateSpace:
    inner, state, kernel = (
        keys.need("ssm.inner_size"),
        keys.need("ssm.state_size"),
        keys.need("ssm.conv_kernel"),
    )
    rank = keys.need("ssm.time_step_rank")
    if "ssm_x.weight" in t:
        return StateSpace(1, inner, state, kernel, dt_rank=rank, inner_norms="ssm_dt_norm.weight" in t)
    groups = keys.get("ssm.group_count") or 1
    return StateSpace(2, inner, state, kernel, n_heads=rank, n_groups=groups, normed="ssm_norm.weight" in t)


def _feed_forwards(keys: Keys, layer: int, t: Shapes) -> tuple[FeedForward, ...]:
    parts: list[FeedForward] = []
    if "ffn_up.weight" in t and "ffn_down.weight" in t:
        inner, up = t["ffn_down.weight"][0], t["ffn_up.weight"][-1]
        gated = "ffn_gate.weight" in t or up == 2 * inner
        parts.append(Dense(inner, 3 if gated else 2, bias="ffn_up.bias" in t))
    if "ffn_down_exps.weight" in t or "ffn_down.0.weight" in t:
        parts.append(_experts(keys, layer, t))
    return tuple(parts)


def _experts(keys: Keys, layer: int, t: Shapes) -> Experts:
    n_experts, per_token = keys.need("expert_count"), keys.need("expert_used_count")
    # one tensor each before 2024-04
    down = t.get("ffn_down_exps.weight") or (*t["ffn_down.0.weight"], n_experts)
    if len(down) != 3 or down[2] != n_experts or per_token > n_experts:
        raise BrokenFile(f"{keys.name}: blk.{layer}'s experts {down} contradict {per_token} of {n_experts}")
    gated = any(n in t for n in ("ffn_gate_exps.weight", "ffn_gate_up_exps.weight", "ffn_gate.0.weight"))
    shared = t.get("ffn_down_shexp.weight")
    return Experts(
        n_experts=n_experts,
        per_token=per_token,
        inner=down[0],
        n_matrices=3 if gated else 2,
        shared_inner=shared[0] if shared else 0,
        shared_gate="ffn_gate_inp_shexp.weight" in t,
        bias="ffn_down_exps.bias" in t,
        router_bias="ffn_gate_inp.bias" in t,
        score_bias="exp_probs_b.bias" in t,
        latent=down[1] if "ffn_latent_down.weight" in t else 0,
        n_shared=keys.get("expert_shared_count") or (1 if shared else 0),
    )
