"""The metadata of a model's GGUF file (without a tokenizer), and how many bytes the file's header takes.

Keys follow llama.cpp 0c1e57098, src/llama-arch.cpp. What cannot be known from the architecture (epsilons,
scales) has the family's usual value: it does not change sizes.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Any, TypeVar

from modeldb import gguf_sparse
from modeldb.architectures import DRAFT_LAYERS, LAYOUTS, Layout
from modeldb.layers import (
    Attention,
    Convolution,
    Dense,
    Experts,
    LatentAttention,
    LinearAttention,
    StateSpace,
)
from modeldb.model import Model
from modeldb.tensor import Tensor

T = TypeVar("T")

HYBRID = {
    "granitehybrid",
    "jamba",
    "lfm2",
    "lfm2moe",
    "nemotron_h",
    "nemotron_h_moe",
    "kimi-linear",
    "bailingmoe3",
    "glm5-next",
}
WINDOWS_BY_LAYER = {"gemma3n", "gemma4", "mimo2", "step35", "granite_swa", "muse-glimmer"}
BY_LAYER = {"deci", "gemma4", "mimo2", "step35"}  # their files list heads layer by layer
EXPERT_WIDTH_IMPLIED = {"llama", "granitemoe", "granitehybrid", "jamba", "minimax-01", "olmoe", "phimoe"}
SHARED_WIDTH = {
    "qwen2moe", "qwen3next", "qwen35moe", "granitehybrid", "hunyuan-moe", "ernie4_5-moe", "nemotron_h_moe",
    "step35", "hy_v3", "bailingmoe3",
}  # fmt: skip
SPARSE = {"deepseek32", "glm-dsa", "glm5-next"}  # latent attention that an indexer makes sparse
WEIGHTED = {"hy_v3"}  # no number of shared experts, but the other keys of `SHARED_COUNT`
SHARED_COUNT = {
    "deepseek2", "mistral4", "glm4moe", "kimi-linear", "bailingmoe3", "nemotron_h_moe", "deepseek4", "minimax-m3",
    *SPARSE,
}  # fmt: skip
LEADING_DENSE = {
    "deepseek2",
    "mistral4",
    "glm4moe",
    "ernie4_5-moe",
    "lfm2moe",
    "kimi-linear",
    "bailingmoe3",
    "minimax-m3",
    "step35",
    *SPARSE,
}
SIGMOID_GATES = {
    "lfm2moe",
    "minimax-m2",
    "minimax-m3",
    "kimi-linear",
    "bailingmoe3",
    "glm4moe",
    "hy_v3",
    *SPARSE,
}
WINDOW_UNSTATED = {"llama", "starcoder2", "phi3", "llama4"}
SPARSE_LAYERS, SPARSE_DEVIATIONS = 10, 1.6448533535003662  # Gemma 3n's
UNBOUNDED = 1 << 20  # context_length of models that state none (state-space models)


def first(model: Model, kind: type[T]) -> T | None:
    """The model's first layer part of this kind."""
    parts = (p for block in model.blocks for p in (*block.mixers, *block.feed_forwards))
    return next((p for p in parts if isinstance(p, kind)), None)


def attention_of(model: Model) -> Attention:
    """The model's first softmax attention (of no heads when it has none)."""
    return first(model, Attention) or Attention(0, 0, 0, 0)


def query_groups(model: Model) -> int:
    """Query heads per key/value head as llama.cpp's quantizer sees it: of layer 0,
    where 0 means no attention there."""
    metadata = header(model, model.architecture or "", ())
    arch = metadata["general.architecture"]
    heads = metadata.get(f"{arch}.attention.head_count", 0)
    kv = metadata.get(f"{arch}.attention.head_count_kv", 0)
    heads, kv = (v[0] if isinstance(v, list) else v for v in (heads, kv))
    return heads // kv if kv else 0


def header(model: Model, arch: str, tensors: Iterable[Tensor]) -> dict[str, Any]:
    """Metadata key -> value, in file order."""
    if not arch:
        from modeldb.gguf_layout import architecture

        arch = architecture(model)
    own = {
        **_general(model, arch),
        **_attention(model, arch),
        **_experts(model, arch),
        **_recurrent(model, arch),
    }
    names = {t.name for t in tensors}
    if "rope_factors_long.weight" in names:
        own |= {"rope.scaling.original_context_length": 4096, "rope.scaling.attn_factor": 1.0}
    return {
        "general.architecture": arch,
        "general.name": model.hf_id or model.name,
        "general.file_type": 1,
        "general.quantization_version": 2,
        "tokenizer.ggml.model": "no_vocab",
        **{f"{arch}.{key}": value for key, value in own.items()},
    }


def header_bytes(model: Model, arch: str, tensors: list[Tensor]) -> int:
    """Bytes before the first tensor's data: magic and counts, metadata, and one entry per tensor."""
    entries = header(model, arch, tensors)
    metadata = sum(8 + len(key.encode()) + 4 + _value_bytes(value) for key, value in entries.items())
    directory = sum(8 + len(t.name.encode()) + 4 + 8 * len(t.shape) + 4 + 8 for t in tensors)
    return 24 + metadata + directory


def _value_bytes(value: Any) -> int:
    if isinstance(value, bool):
        return 1
    if isinstance(value, str):
        return 8 + len(value.encode())
    if isinstance(value, list):
        return 12 + sum(_value_bytes(v) for v in value)
    return 4


def _general(model: Model, arch: str) -> dict[str, Any]:
    layout = LAYOUTS.get(arch, Layout())
    vocab, (padded, plain) = model.vocab_size, layout.padded_vocab
    own: dict[str, Any] = {
        "block_count": model.n_layers + (model.model_type in DRAFT_LAYERS),
        "context_length": model.max_context or UNBOUNDED,
        "embedding_length": model.hidden_size,
        "vocab_size": plain if vocab == padded else vocab,
        f"attention.layer_norm_{'' if layout.layer_norm else 'rms_'}epsilon": 1e-5,
    }
    if arch == "gptneox":
        own["use_parallel_residual"] = True
    if arch.startswith("nemotron_h"):
        own["attention.layer_norm_epsilon"] = 1e-5
    if model.model_type in DRAFT_LAYERS:
        own["nextn_predict_layers"] = 1
    if arch == "muse-glimmer":
        own |= {"logit_scale": 1.0, "final_logit_softcapping": 30.0}
    if arch == "mpt":
        own["attention.max_alibi_bias"] = 8.0
    if arch in ("command-r", "cohere2"):
        own["logit_scale"] = 0.0625
    if arch.startswith("granite"):
        own |= {
            "logit_scale": 8.0,
            "residual_scale": 0.22,
            "embedding_scale": 12.0,
            "attention.scale": 0.0078125,
        }
    if arch == "minimax-01":
        # layernorm_mlp_alpha of MiniMax-M1-80k's config.json, 3.5566: DeepNorm's of its 80 layers
        own["residual_scale"] = (2 * model.n_layers) ** 0.25
    if arch.startswith("qwen35"):
        own["rope.dimension_sections"] = [11, 11, 10, 0]
    return own


def _attention(model: Model, arch: str) -> dict[str, Any]:
    rope = {"rope.freq_base": model.rope_theta or 10000.0}
    if arch in ("mamba", "mamba2"):
        return {"attention.head_count": 0, "feed_forward_length": 0, **rope}
    if arch == "deepseek4":
        return {**gguf_sparse.compressed(model), **rope, "rope.dimension_count": model.rotary_dim}
    a, m = first(model, Attention), first(model, LatentAttention)
    dense, experts = first(model, Dense), first(model, Experts)
    inner = dense.inner if dense else experts.inner if experts else 0
    own: dict[str, Any] = {
        "attention.head_count": m.n_heads if m else a.n_heads if a else 0,
        "attention.head_count_kv": _kv_heads(model, arch),
        "feed_forward_length": _inner_by_layer(model)
        if arch.startswith("nemotron_h") or arch == "deci" or (arch == "gemma4" and _inner_differs(model))
        else inner,
    }
    if m and arch == "minicpm3":
        own |= {"attention.q_lora_rank": m.q_rank, "attention.kv_lora_rank": m.kv_rank}
        widths = (m.nope_dim + m.rope_dim, m.value_dim)
    elif m:
        if m.q_rank:
            own["attention.q_lora_rank"] = m.q_rank
        own |= {"attention.kv_lora_rank": m.kv_rank, "attention.key_length_mla": m.nope_dim + m.rope_dim}
        own["attention.value_length_mla"] = m.value_dim
        widths = (m.kv_rank + m.rope_dim, m.kv_rank)
    else:
        widths = (a.head_dim, a.value_dim) if a else (0, 0)
    if arch == "bailingmoe3" and (linear := first(model, LinearAttention)):
        widths = (widths[0], linear.v_dim)  # its converter leaves what the configuration calls head_dim
    own |= {"attention.key_length": widths[0], "attention.value_length": widths[1]}
    own |= {"rope.dimension_count": model.rotary_dim, **rope}
    if arch in SPARSE:
        own |= gguf_sparse.indexer(model)
    if arch == "minimax-m3":
        own |= gguf_sparse.blocks(model)
    if arch == "glm5-next":
        own |= gguf_sparse.streams(model)
    if arch == "gemma4":
        own |= _gemma4(model)
    if arch in ("gemma3n", "gemma4"):
        own |= _per_layer_embeddings(model, arch)
    if arch in WINDOWS_BY_LAYER:
        layers = [m for b in model.blocks for m in b.mixers if isinstance(m, Attention)]
        own["attention.sliding_window_pattern"] = [bool(m.window_tokens) for m in layers]
    if arch in ("gemma3n", "gemma4", "mimo2", "step35"):
        own["rope.freq_base_swa"] = 10000.0
    if arch in ("deci", "step35"):
        found = [next((m.n_heads for m in b.mixers if isinstance(m, Attention)), 0) for b in model.blocks]
        own["attention.head_count"] = found
    window = max(
        (x.window_tokens or 0 for b in model.blocks for x in b.mixers if isinstance(x, Attention)), default=0
    )
    if window and arch not in WINDOW_UNSTATED:
        own["attention.sliding_window"] = window
    return own


def _gemma4(model: Model) -> dict[str, Any]:
    """Layers with a window have narrower heads than the others."""
    layers = [m for b in model.blocks for m in b.mixers if isinstance(m, Attention)]
    near = next((m for m in layers if m.window_tokens), layers[0])
    far = next((m for m in layers if not m.window_tokens), layers[0])
    return {
        "attention.key_length": far.head_dim,
        "attention.value_length": far.value_dim,
        "attention.key_length_swa": near.head_dim,
        "attention.value_length_swa": near.value_dim,
        "rope.dimension_count": far.head_dim,
        "rope.dimension_count_swa": near.head_dim,
    }


def _per_layer_embeddings(model: Model, arch: str) -> dict[str, Any]:
    """Of Gemma 3n and 4: the width of a layer's embedding, the layers that read another's cache. Of 3n also AltUp's
    streams and how many deviations above their mean activations count (1.64, the normal distribution's 95%), in the
    first ten layers (activation_sparsity_pattern in google/gemma-3n-E4B-it's config.json)."""
    gate = dict(model.blocks[0].extra_params).get("inp_gate.weight")
    layers = [m for b in model.blocks for m in b.mixers if isinstance(m, Attention)]
    own: dict[str, Any] = {
        "attention.shared_kv_layers": sum(m.shares_cache for m in layers),
        "embedding_length_per_layer_input": gate[-1] if isinstance(gate, tuple) else 0,
        "final_logit_softcapping": 30.0,
    }
    if arch == "gemma3n":
        own |= {
            "altup.active_idx": 0,
            "altup.num_inputs": model.extra_value("altup"),
            "activation_sparsity_scale": [SPARSE_DEVIATIONS if i < SPARSE_LAYERS else -inf for i in range(len(layers))],
        }  # fmt: skip
    return own


def _kv_heads(model: Model, arch: str) -> int | list[int]:
    def of(mixers: tuple[Any, ...]) -> int:
        for mixer in mixers:
            if isinstance(mixer, Attention):
                return mixer.n_kv_heads
            if isinstance(mixer, LatentAttention):
                return mixer.n_heads if arch == "minicpm3" else 1
        return 0

    per_layer = [of(block.mixers) for block in model.blocks]
    per_layer += per_layer[-1:] * (model.model_type in DRAFT_LAYERS)
    return per_layer if arch in HYBRID | BY_LAYER else max(per_layer, default=0)


def _inner_by_layer(model: Model) -> list[int]:
    return [block.feed_forwards[0].inner if block.feed_forwards else 0 for block in model.blocks]


def _inner_differs(model: Model) -> bool:
    return len(set(_inner_by_layer(model))) > 1


def _experts(model: Model, arch: str) -> dict[str, Any]:
    e = first(model, Experts)
    if e is None:
        return {}
    own: dict[str, Any] = {"expert_count": e.n_experts, "expert_used_count": e.per_token}
    if arch not in EXPERT_WIDTH_IMPLIED:
        own["expert_feed_forward_length"] = e.inner
    if arch in SHARED_WIDTH and e.shared_inner:
        own["expert_shared_feed_forward_length"] = e.shared_inner
    if arch in SHARED_COUNT:
        own["expert_shared_count"] = max(1, e.n_shared)
    if arch in SHARED_COUNT | WEIGHTED:
        own |= {"expert_weights_scale": 1.0, "expert_weights_norm": True}
    if arch in LEADING_DENSE:
        moe = [any(isinstance(f, Experts) for f in b.feed_forwards) for b in model.blocks]
        own["leading_dense_block_count"] = moe.index(True)
    if arch in SIGMOID_GATES or model.model_type in ("deepseek_v3", "kimi_k2"):
        own["expert_gating_func"] = 2
    elif model.model_type == "deepseek_v2":
        own["expert_gating_func"] = 1
    elif arch == "deepseek4":
        own["expert_gating_func"] = 4
    if arch in ("llama4", "ernie4_5-moe"):
        own["interleave_moe_layer_step"] = 1
    if e.latent:
        own["moe_latent_size"] = e.latent
    if arch == "step35":
        own |= _step35(model)
    if e.n_zero_experts:  # routed_scaling_factor of LongCat-Flash's config.json
        own |= {"expert_zero_count": e.n_zero_experts, "expert_weights_scale": 6.0}
    return own


def _step35(model: Model) -> dict[str, Any]:
    """Weights are normed and scaled; the last two layers bound what gates let through, experts' at 7 and the shared
    one's at 16 (swiglu_limits of Step-3.7-Flash's config.json)."""
    free = [0.0] * (model.n_layers - 2)
    return {
        "expert_weights_scale": 3.0,
        "expert_weights_norm": True,
        "moe_every_n_layers": 1,
        "swiglu_clamp_exp": [*free, 7.0, 7.0],
        "swiglu_clamp_shexp": [*free, 16.0, 16.0],
    }


def _recurrent(model: Model, arch: str) -> dict[str, Any]:
    m, linear, conv = first(model, StateSpace), first(model, LinearAttention), first(model, Convolution)
    if m:
        own: dict[str, Any] = {
            "ssm.conv_kernel": m.conv_kernel,
            "ssm.inner_size": m.inner,
            "ssm.state_size": m.state,
            "ssm.time_step_rank": m.dt_rank or m.n_heads,
        }
        if m.version == 2:
            own["ssm.group_count"] = m.n_groups
        if model.model_type == "falcon_mamba":
            own["ssm.dt_b_c_rms"] = True
        return own
    if linear and linear.kind == "gated_deltanet":
        return {
            "ssm.conv_kernel": linear.conv_kernel,
            "ssm.inner_size": linear.v_dim * linear.n_v_heads,
            "ssm.state_size": linear.k_dim,
            "ssm.time_step_rank": linear.n_v_heads,
            "ssm.group_count": linear.n_k_heads,
        }
    if linear and linear.kind == "kda":
        bounded = {"kda.safe_gate": True, "kda.gate_lower_bound": -5.0} if arch == "bailingmoe3" else {}
        return {"kda.head_dim": linear.k_dim, "ssm.conv_kernel": linear.conv_kernel, **bounded}
    return {"shortconv.l_cache": conv.conv_kernel} if conv else {}
