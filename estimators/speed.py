"""The roofline: seconds of one prefill and of one decode step. Scalars or arrays alike, no I/O.

Every component takes the longer of moving its bytes and computing, at the rates its kernels reach; components
follow each other; launches and links add:

    t = sum_c max(bytes_c / (bandwidth * eff), flops_c / (peak * eff) + unpacking) + launches + links

What kernels reach is in `Rates`; `estimators.efficiency` knows it for a device, an engine and a format.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from estimators.walk import Number, Walk

UNLIMITED = 1e12  # tokens
SCORE_BYTES = 16.0  # of one FP32 score of attention that is not fused: written, normalised in place, read
#: FP32 values that pass through memory per layer and token in llama.cpp's unfused graph, as multiples of the hidden
#: size (norms, their scales, residuals, rotations, what each product reads and writes, quantizing) and of the
#: feed-forward's inner size (gate, up, activation, product, quantizing).
HIDDEN_PASSES, INNER_PASSES = 28.0, 7.0
#: llama.cpp multiplies smaller batches with packed weights on every device (MMVQ and MMQ).
EXPANDING_TOKENS = 64
#: Launches that a CUDA device's command buffer holds before the host waits (CUDA_SCALE_LAUNCH_QUEUES at 1x), and
#: those of one layer of a prompt: seven products of three kernels each (four where weights are expanded) and a dozen
#: others. A full buffer keeps the host from feeding the other stages (ggml-org/llama.cpp#19042; xiongjiedai's 8B
#: models gain 2.4 times from four cards, its 70B ones 1.0-1.5).
COMMAND_QUEUE, LAYER_LAUNCHES, LAYER_PRODUCTS = 1024.0, 33.0, 7.0
#: llama.cpp's GPU backends multiply batches of up to VECTOR_TOKENS by kernels for vectors, one product per token with
#: weights read once (MMVQ_MAX_BATCH_SIZE; mul_mat_vec_max_cols in Vulkan; kernel_mul_mv_ext on Metal), larger ones
#: in tiles of tokens. Metal's tiles are 32 wide, however few tokens there are: an M2 Ultra takes as long for 16
#: sequences as for 32 (llama.cpp-benches-dir).
VECTOR_TOKENS, METAL_TILE_TOKENS = 8.0, 32.0
PIPELINE_CHUNKS = 4.0  # micro-batches in flight at once over llama.cpp's stages (GGML_SCHED_MAX_COPIES)


@dataclass(frozen=True, slots=True)
class Rates:
    """What one engine's kernels reach on one device. Efficiencies are shares of peaks, in (0, 1].

    `experts_compute_efficiency` is what products grouped by expert reach of what one large product does
    (`compute_efficiency`). `expert_padding_tokens` are what each touched expert computes in vain (tiles).
    `unpack_efficiency` says how fast weights are expanded and multiplied by one vector, as a share of
    `vector_flops`. Overheads are seconds: per layer, per step, per request, per all-reduce, per hop between
    stages. `n_tensor` devices share each tensor; `n_stages` take layers in turn. With `eager`, launches
    hide behind the device's work instead of adding to it. `pipelined` stages work on successive chunks at
    once. `gathered`: every product's rows travel to one device in FP32 (llama.cpp's row split), instead of
    all-reduces. `expert_launches`: what looping over one routed expert costs, in layers' launches. `meeting`:
    how much longer than few threads the threads of a CPU take to meet after each operation.
    `decoding_share`: what attention of one token does of the products that attention of a prompt does. `plain`:
    attention is not fused, its scores go through memory. `absorbed`: latent attention works on the
    compressed cache in prefill too. `masked`: what a sparse indexer leaves out is computed and thrown away.
    `reread_share`: how much of a cached byte is read again for each further query head of its group.
    `expert_half_params`: size of one expert's matrices, per device, at which kernels reach half of what
    they reach of large ones. `activation_passes`: how often what lies between products passes through
    memory, in units of llama.cpp's unfused graph. `expanded_bytes`: what a packed weight is expanded to
    before a product of matrices (0: it is read packed). `sequence_overhead_s`: scheduling, sampling and
    detokenizing, per sequence and step. `vector_tokens`: batches up to this size run kernels for vectors.
    `tile_tokens`: larger ones compute at least so many tokens; below it, routed experts are read once per token.
    """

    bandwidth_bytes_per_s: Number
    matrix_flops: Number
    vector_flops: Number
    attention_peak_flops: Number
    weights_efficiency: Number = 0.7
    experts_efficiency: Number = 0.6
    cache_efficiency: Number = 0.6
    compute_efficiency: Number = 0.6
    experts_compute_efficiency: Number = 0.5
    attention_efficiency: Number = 0.3
    unpack_efficiency: Number = 0.5
    reread_share: Number = 0.0
    expert_half_params: Number = 0.0
    sequence_overhead_s: Number = 0.0
    activation_passes: Number = 0.0
    expanded_bytes: Number = 0.0
    expert_padding_tokens: Number = 16.0
    layer_overhead_s: Number = 10e-6
    step_overhead_s: Number = 100e-6
    request_overhead_s: Number = 0.0
    reduce_overhead_s: Number = 15e-6
    hop_overhead_s: Number = 20e-6
    link_bytes_per_s: Number = 1e30
    gathered: Number = False
    n_tensor: Number = 1
    n_stages: Number = 1
    chunk_tokens: Number = 8192
    eager: Number = False
    pipelined: Number = False
    expert_launches: Number = 0.0
    meeting: Number = 1.0
    decoding_share: Number = 1.0
    plain: Number = False
    absorbed: Number = False
    masked: Number = False
    vector_tokens: Number = 0.0
    tile_tokens: Number = 1.0


@dataclass(frozen=True, slots=True)
class Step:
    """Seconds of one step, by where they go; `compute_bound`: arithmetic outlasts the weights' bytes."""

    weights_s: Number
    experts_s: Number
    cache_s: Number
    launches_s: Number
    links_s: Number
    compute_bound: Number

    @property
    def total_s(self) -> Number:
        return self.weights_s + self.experts_s + self.cache_s + self.launches_s + self.links_s


def soft_max(a: Number, b: Number) -> Number:
    """A maximum that is smooth where its arguments meet, and never below either (the 4-norm)."""
    a2, b2 = a * a, b * b
    return np.sqrt(np.sqrt(a2 * a2 + b2 * b2))


def touched_share(walk: Walk, n_tokens: Number) -> Number:
    """Share of the routed experts that `n_tokens` tokens touch: 1 - (1 - k/N)^n (independent routing)."""
    share = walk.experts_per_token / np.maximum(walk.n_experts, 1)
    return -np.expm1(n_tokens * np.log1p(-np.minimum(share, 0.999999)))


def mean_visible(start: Number, stop: Number, window: Number) -> Number:
    """Mean of min(context, window) while the context grows evenly from `start` to `stop`."""
    span = np.maximum(stop - start, 1e-6)
    knee = np.minimum(np.maximum(window, start), start + span)
    ramp = knee - start
    return (ramp * (start + knee) / 2 + (span - ramp) * window) / span


def _visible(walk: Walk, start: Number, stop: Number, masked: Number) -> Number:
    """Mean tokens that full layers see: all, or what a sparse indexer chooses."""
    if not np.any(walk.top_k_tokens):
        return (start + stop) / 2
    chosen = (walk.top_k_tokens > 0) & np.logical_not(masked)
    return mean_visible(start, stop, np.where(chosen, walk.top_k_tokens, UNLIMITED))


def cache_bytes_per_token(walk: Walk, kv_k_bytes: Number, kv_v_bytes: Number) -> tuple[Number, Number]:
    """Bytes that one visible token costs a decode step: over unwindowed layers, over windowed ones. Layers that share a
    cache read it again."""
    full = walk.kv_k_full * kv_k_bytes + walk.kv_v_full * kv_v_bytes
    near = walk.kv_k_window * kv_k_bytes + walk.kv_v_window * kv_v_bytes
    either = (kv_k_bytes + kv_v_bytes) / 2
    return full + walk.again_full * either, near + walk.again_window * either


def _reread(walk: Walk, rates: Rates) -> tuple[Number, Number]:
    """How often a decode step reads a cached byte, over unwindowed layers and over windowed ones: once, and
    `reread_share` of a time more for each further query head that shares it."""
    read_full = walk.kv_k_full + walk.kv_v_full + walk.again_full
    read_near = walk.kv_k_window + walk.kv_v_window + walk.again_window
    full = walk.decode_attention_flops / np.maximum(2.0 * read_full, 1.0)
    near = walk.attention_flops_window / np.maximum(2.0 * read_near, 1.0)
    apart = (np.asarray(walk.latent) > 0) | (np.asarray(walk.top_k_tokens) > 0)  # kernels made for sharing
    share = np.where(apart, 0.0, rates.reread_share)
    return 1.0 + share * np.maximum(full - 1.0, 0.0), 1.0 + share * np.maximum(near - 1.0, 0.0)


def _expert_reach(walk: Walk, rates: Rates) -> Number:
    """Share of a large matrix's rates that kernels reach on one routed expert's matrices: size / (size +
    half)."""
    size = walk.expert_params / np.maximum(walk.n_moe_layers * walk.n_experts, 1e-6) / rates.n_tensor
    return np.where(size > 0, size / np.maximum(size + rates.expert_half_params, 1.0), 1.0)


def _weights_s(walk: Walk, rates: Rates, n_tokens: Number, n_logits: Number) -> tuple[Number, Number, Number]:
    memory = rates.bandwidth_bytes_per_s * rates.n_tensor
    dense_params = walk.mixer_params + walk.dense_params + walk.shared_params
    stored = walk.mixer_bytes + walk.dense_bytes + walk.shared_bytes + walk.other_bytes + walk.head_bytes
    wide = rates.expanded_bytes * (np.asarray(n_tokens) > EXPANDING_TOKENS) * dense_params
    expanding = np.where(wide > 0, stored + wide, 0.0) / (memory * rates.weights_efficiency)
    moved = np.where(wide > 0, wide, stored) / (memory * rates.weights_efficiency)
    computed = _multiplied_s(dense_params, n_tokens, rates) + _multiplied_s(walk.head_params, n_logits, rates)
    sharing = np.where(rates.gathered, rates.n_tensor, 1.0)  # experts and caches are not split by rows
    expert_moved, expert_computed = _experts_s(walk, rates, n_tokens)
    compute_bound = (computed + expert_computed) > (moved + expert_moved)
    dense = expanding + soft_max(moved, computed)
    return dense, soft_max(expert_moved, expert_computed) * sharing, compute_bound


def _multiplied_s(params: Number, n_tokens: Number, rates: Rates) -> Number:
    """Seconds of arithmetic of products of `params` weights with `n_tokens`: on matrix units with the weights
    unpacked once, or, up to `vector_tokens`, on vector units once per token while that is less."""
    vector = rates.vector_flops * rates.unpack_efficiency * rates.n_tensor
    matrix = rates.matrix_flops * rates.compute_efficiency * rates.n_tensor
    few = np.asarray(n_tokens) <= rates.vector_tokens
    least = np.maximum(rates.tile_tokens, np.where(few, rates.vector_tokens, 0.0))
    together = np.maximum(n_tokens, least) / matrix + 1.0 / vector
    alone = np.maximum(n_tokens, 1.0) / vector
    return 2.0 * params * np.where(few, np.minimum(alone, together), together)


def _experts_s(walk: Walk, rates: Rates, n_tokens: Number) -> tuple[Number, Number]:
    """(moving, computing) seconds of routed experts: read once for all their tokens; below `tile_tokens` once per
    token, on vector units, while that is less."""
    moved, computed = _shared_experts_s(walk, rates, np.maximum(n_tokens, rates.tile_tokens))
    if np.all(np.asarray(rates.tile_tokens) <= 1.0):
        return moved, computed
    one_moved, one_computed = _shared_experts_s(walk, rates, 1.0)
    apart = np.asarray(n_tokens) < rates.tile_tokens
    return (
        np.where(apart, np.minimum(moved, n_tokens * one_moved), moved),
        np.where(apart, np.minimum(computed, n_tokens * one_computed), computed),
    )


def _shared_experts_s(walk: Walk, rates: Rates, n_tokens: Number) -> tuple[Number, Number]:
    memory = rates.bandwidth_bytes_per_s * rates.n_tensor
    vector = rates.vector_flops * rates.unpack_efficiency * rates.n_tensor
    touched = touched_share(walk, n_tokens)
    reach = _expert_reach(walk, rates)
    moved = walk.expert_bytes * touched / (memory * rates.experts_efficiency * reach)
    active = walk.expert_params * (walk.experts_per_token / np.maximum(walk.n_experts, 1))
    reached, wanted = walk.expert_params * touched, active * n_tokens  # weights touched, products wanted
    idle = reached * rates.expert_padding_tokens * (1.0 - reached / np.maximum(wanted, reached + 1.0))
    grouped = rates.compute_efficiency * rates.experts_compute_efficiency
    computed = 2.0 * (wanted + idle) / (rates.matrix_flops * rates.n_tensor * grouped * reach)
    return moved, computed + 2.0 * reached / vector


def _activations_s(walk: Walk, rates: Rates, n_tokens: Number) -> Number:
    """Norms, rotations, activations, sums and the quantizing of what products read: through memory."""
    inner = walk.max_inner / rates.n_tensor
    moved = 4.0 * (HIDDEN_PASSES * walk.hidden_size + INNER_PASSES * inner) * walk.n_layers * n_tokens
    return moved * rates.activation_passes / rates.bandwidth_bytes_per_s


def _links_s(walk: Walk, rates: Rates, n_tokens: Number) -> Number:
    """All-reduces (two per layer, ring volume, 16-bit) or gathers over `n_tensor`; one hop per further
    stage."""
    apart = rates.n_tensor - 1.0
    reduced = 8.0 * walk.hidden_size * (apart / rates.n_tensor)
    gathered = 4.0 * (6.0 * walk.hidden_size + 2.0 * walk.max_inner) * apart
    volume = n_tokens * walk.n_layers * np.where(rates.gathered, gathered, reduced)
    many = np.minimum(apart, 1.0)
    calls = np.where(rates.gathered, 7.0 * apart, 2.0 * many) * walk.n_layers
    return (
        volume / rates.link_bytes_per_s
        + calls * np.where(rates.gathered, rates.hop_overhead_s, rates.reduce_overhead_s)
        + (rates.n_stages - 1.0) * rates.hop_overhead_s
    )


def _launches_s(walk: Walk, rates: Rates, busy_s: Number) -> Number:
    looped = walk.n_moe_layers * walk.n_experts * rates.expert_launches
    launches = (walk.n_layers + looped) * rates.layer_overhead_s * rates.meeting
    hidden = soft_max(launches, busy_s) - busy_s
    return np.where(rates.eager, hidden, launches) + rates.step_overhead_s


def step(
    walk: Walk, rates: Rates, n_tokens: Number, n_logits: Number, cache_bytes: Number, attention_flops: Number
) -> Step:
    """One forward pass over `n_tokens` new tokens, `n_logits` of which need logits.

    `cache_bytes` (read) and `attention_flops` are totals over the batch, split over tensor-parallel devices.
    """
    weights, experts, compute_bound = _weights_s(walk, rates, n_tokens, n_logits)
    weights = weights + _activations_s(walk, rates, n_tokens)
    read = cache_bytes / (rates.bandwidth_bytes_per_s * rates.cache_efficiency * rates.n_tensor)
    attended = attention_flops / (rates.attention_peak_flops * rates.attention_efficiency * rates.n_tensor)
    cache = soft_max(read, attended) * np.where(rates.gathered, rates.n_tensor, 1.0)
    busy = weights + experts + cache
    return Step(
        weights,
        experts,
        cache,
        _launches_s(walk, rates, busy) + n_logits * rates.sequence_overhead_s,
        _links_s(walk, rates, n_tokens),
        compute_bound,
    )


def decode_step(
    walk: Walk,
    rates: Rates,
    n_sequences: Number,
    start: Number,
    stop: Number,
    kv_k_bytes: Number = 2.0,
    kv_v_bytes: Number = 2.0,
) -> Step:
    """The mean decode step of `n_sequences` while each context grows from `start` to `stop` tokens."""
    full, windowed = cache_bytes_per_token(walk, kv_k_bytes, kv_v_bytes)
    context = (start + stop) / 2
    visible = _visible(walk, start, stop, rates.masked)
    near = mean_visible(start, stop, np.maximum(walk.window_tokens, 1))
    times_full, times_near = _reread(walk, rates)
    full, windowed = full * times_full, windowed * times_near
    moved = full * visible + windowed * near + walk.index_elements * context + 8.0 * walk.state_elements
    flops = (
        walk.decode_attention_flops * visible + walk.attention_flops_window * near
    ) / rates.decoding_share
    return step(walk, rates, n_sequences, n_sequences, moved * n_sequences, flops * n_sequences)


def prefill(
    walk: Walk,
    rates: Rates,
    prompt_tokens: Number,
    cached_tokens: Number = 0,
    n_sequences: Number = 1,
    kv_k_bytes: Number = 2.0,
    kv_v_bytes: Number = 2.0,
) -> Step:
    """Prompts of `prompt_tokens` new tokens after `cached_tokens`, `n_sequences` of them, chunk by chunk.

    Attention is causal: new token i sees cached + i tokens, half the square on average.
    """
    tokens = prompt_tokens * n_sequences
    n_chunks = np.ceil(tokens / rates.chunk_tokens)
    last = cached_tokens + prompt_tokens
    full, windowed = cache_bytes_per_token(walk, kv_k_bytes, kv_v_bytes)
    context = (cached_tokens + last) / 2
    visible = _visible(walk, cached_tokens, last, rates.masked)
    near = mean_visible(cached_tokens, last, np.maximum(walk.window_tokens, 1))
    per_token = np.where(rates.absorbed, walk.decode_attention_flops, walk.attention_flops_full)
    flops = (per_token * visible + walk.attention_flops_window * near) * tokens
    moved = (full * context + windowed * near + 8.0 * walk.state_elements) * n_sequences
    scores = walk.n_heads * (walk.n_full_layers * visible + walk.n_window_layers * near) * tokens / n_chunks
    moved = moved + np.where(rates.plain, SCORE_BYTES, 0.0) * scores
    one = step(walk, rates, tokens / n_chunks, n_sequences / n_chunks, moved, flops / n_chunks)
    launches = LAYER_LAUNCHES + np.where(np.asarray(rates.expanded_bytes) > 0, LAYER_PRODUCTS, 0.0)
    queued = COMMAND_QUEUE / (launches * np.maximum(walk.n_layers, 1.0) / rates.n_stages)
    in_flight = np.clip(queued, 1.0, PIPELINE_CHUNKS)
    apart = np.maximum(1.0, rates.n_stages / in_flight)  # stages between one micro-batch and the next
    overlapped = 1.0 + (n_chunks - 1.0) * apart / rates.n_stages
    depth = np.where(rates.pipelined, overlapped, n_chunks)
    return Step(
        one.weights_s * depth, one.experts_s * depth, one.cache_s * depth,
        one.launches_s * depth, one.links_s * depth, one.compute_bound,
    )  # fmt: skip
