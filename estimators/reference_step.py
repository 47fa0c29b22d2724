"""Where a decode step of the bundled runner spends its time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import log

from estimators import reference_compressed, reference_sparse, reference_states
from estimators.deployed_walk import known_walk
from estimators.deployment import Deployment
from estimators.observation import kv_bytes
from estimators.reference_matrices import matrices
from hwdb.device import KernelRates
from modeldb.architectures import LAYOUTS, Layout
from modeldb.layers import (
    Attention,
    Block,
    CompressedAttention,
    Convolution,
    Experts,
    LatentAttention,
    LinearAttention,
    Mixer,
    StateSpace,
)
from modeldb.model import Model
from modeldb.walk import idle_layers

STEP_S = 1e-4  # a step in Python and its argmax; its factor is fitted
#: Times that threads wait for each other in a layer's parts, counted in the runner's programs (2026). `plan measure`
#: times a layer of plain attention and a dense feed-forward, which has as many as the first two together.
WAITS = {
    Attention: 6, "dense": 5, LatentAttention: 16, CompressedAttention: 13, StateSpace: 8, LinearAttention: 10,
    Convolution: 5,
}  # fmt: skip
LATENT_SHARE = 1.9  # of the rate of attention in prompts, that a step of DeepSeek-V2 reaches (Zen 5, 2026)
USUAL_WAITS = 11
#: That layer's barriers where the cores share a cache; 16 us where they do not (Zen 5, 2026).
NEAR_LAYER_S = 10.2e-6
#: Latent heads are multiplied one by one, and threads ask for parts of each (DeepSeek-V2, 2026).
HEAD_WAITS = 0.8
#: Lightning attention has no convolution, and no rates to make of what it projects.
UNCONVOLVED_WAITS = 2
EXPERTS_WAITS, SHARED_WAITS, QK_NORM_WAITS, INDEX_WAITS = 10, 7, 2, 8
COMPRESS_WAITS, CHOICE_WAITS = 2, 7  # rows of several tokens (DeepSeek-V4), and the choice among them
#: A layer's own embedding, streams of the residual and a branch beside attention (Gemma 3n and 4), hyper-connections,
#: by the name of a parameter.
EXTRA_WAITS = {
    "inp_gate.weight": 8,
    "altup_router.weight": 14,
    "laurel_l.weight": 4,
    "hc_attn_fn.weight": 5,
    "hc_ffn_fn.weight": 5,
}


def seconds(d: Deployment, own: KernelRates, bandwidth: float) -> dict[str, float]:
    """Seconds by term, before their factors: each weight streams through its format's kernel, attention reads the
    cache, states are read and written, and every layer has its barriers."""
    w = known_walk(d.model, d.scheme)
    depth = d.workload.prompt_tokens + max(1, d.workload.output_tokens) / 2
    share = w.experts_per_token / max(w.n_experts, 1)
    found = {"weights": 0.0, "experts": 0.0}
    for m in matrices(d, own):
        found["experts" if m.experts else "weights"] += m.n_bytes * (share if m.experts else 1.0) / m.stream
    inner = w.experts_per_token * w.max_inner if w.n_experts and w.experts_per_token else w.max_inner
    vectors = 4.0 * len(executed(d.model)) * (4 * w.hidden_size + 2 * w.n_heads * w.head_dim + 3 * inner)
    vectors += 4.0 * reference_states.floats(d.model)[0]
    return found | {
        "cache": _cached_s(d, own, depth),
        "states": 8.0 * w.state_elements / bandwidth,  # read and written, in float32
        "layers": own.layer_s * apart(own) * sum(map(waits, executed(d.model))) / USUAL_WAITS,
        "vectors": vectors / bandwidth,
        "step": STEP_S,
    }


def apart(own: KernelRates) -> float:
    """How much farther from each other the cores are than those that share a cache, as far as was seen: 1 to 2."""
    return min(2.0, max(1.0, own.layer_s / NEAR_LAYER_S))


def waits(block: Block) -> float:
    """Barriers of a layer, and what takes as long."""
    found = 0.0
    for mixer in block.mixers:
        found += WAITS.get(type(mixer), WAITS[Attention])
        found -= UNCONVOLVED_WAITS if isinstance(mixer, LinearAttention) and not mixer.conv_kernel else 0
        if isinstance(mixer, LatentAttention):
            found += (
                HEAD_WAITS * mixer.n_heads + INDEX_WAITS * bool(mixer.n_index_heads) + bool(mixer.index_top_k)
            )
        if isinstance(mixer, CompressedAttention):
            found += COMPRESS_WAITS * bool(mixer.ratio) + CHOICE_WAITS * bool(mixer.n_index_heads)
            found += HEAD_WAITS * mixer.o_groups
        if isinstance(mixer, Attention):
            found += QK_NORM_WAITS * bool(mixer.qk_norm) + INDEX_WAITS * bool(mixer.n_index_heads)
    for part in block.feed_forwards:
        if isinstance(part, Experts):
            found += EXPERTS_WAITS + (SHARED_WAITS if part.shared_inner else 0)
        else:
            found += WAITS["dense"]
    return found + sum(EXTRA_WAITS.get(name, 0) for name, _ in block.extra_params)


def _cached_s(d: Deployment, own: KernelRates, depth: float) -> float:
    """Seconds to attend to `depth` tokens, windows respected. A key shared by more heads is worked on longer; of a
    latent one, by all heads, what they compute takes longer than to read it."""
    one, four = own.attention_bytes_per_s
    power = log(max(one / four, 1.0)) / log(4)
    k, v = kv_bytes(d.settings.kv_type_k), kv_bytes(d.settings.kv_type_v)
    groups = [group for _, group, _, _ in attention_heads(d.model)] or [1.0]
    group = sum(groups) / len(groups)
    w = known_walk(d.model, d.scheme)
    near = min(depth, w.window_tokens)
    full = w.expanded_k * k + w.expanded_v * v if w.expanded_k else w.kv_k_full * k + w.kv_v_full * v
    cached = full * depth + (w.kv_k_window * k + w.kv_v_window * v) * near
    latent = sum(2.0 * m.n_heads * (2 * m.kv_rank + m.rope_dim) for b in executed(d.model) for m in b.mixers
                 if isinstance(m, LatentAttention))  # fmt: skip
    if any(reference_compressed.layers(d.model)):
        held = reference_compressed.rows(d.model, depth)
        near_flops = sum(4.0 * m.n_heads * m.head_dim for b in d.model.blocks for m in b.mixers
                         if isinstance(m, CompressedAttention))  # fmt: skip
        cached = w.kv_k_window * k * near + (held.elements - held.unread) * k
        computed = held.flops + near_flops * near
        return max(cached * group**power / one, computed / (LATENT_SHARE * own.attention_flops))
    few = reference_sparse.spared(d.model, depth)
    cached += reference_sparse.index_elements(d.model, depth) * k - few.elements * k
    computed = depth * latent - few.flops + few.index_flops
    return max(cached * group**power / one, computed / (LATENT_SHARE * own.attention_flops))


def executed(model: Model) -> tuple[Block, ...]:
    """The model's layers as the runner executes them, without those that text does not run: latent attention that
    llama.cpp caches decompressed is plain."""
    if not LAYOUTS.get(model.architecture, Layout()).decompressed_latent:
        idle = idle_layers(model)
        return tuple(b for i, b in enumerate(model.blocks) if i not in idle)

    def plain(m: Mixer) -> Mixer:
        if not isinstance(m, LatentAttention):
            return m
        return Attention(m.n_heads, m.n_heads, m.nope_dim + m.rope_dim, m.value_dim)

    return tuple(replace(b, mixers=tuple(map(plain, b.mixers))) for b in model.blocks)


def prefixed(model: Model) -> bool:
    """Whether tokens of a prompt see each other, which then runs in one piece."""
    return any(isinstance(m, Attention) and m.prefixed for b in model.blocks for m in b.mixers)


def attention_heads(model: Model) -> Iterator[tuple[int, float, int, int]]:
    """(heads, of them those that share a key, numbers of a key and its value, window or 0) of each layer."""
    for block in executed(model):
        for m in block.mixers:
            if isinstance(m, Attention):
                yield m.n_heads, m.n_heads / m.n_kv_heads, m.head_dim + m.value_dim, m.window_tokens or 0
            elif isinstance(m, LatentAttention):
                yield m.n_heads, m.n_heads, 2 * m.kv_rank + m.rope_dim, 0
            elif isinstance(m, CompressedAttention):
                yield m.n_heads, m.n_heads, 2 * m.head_dim, m.window_tokens
