"""A server under concurrency in closed form: seconds to the first token and per output token. No I/O.

A decode step of B sequences reads the weights (experts: those that B tokens touch, N(1 - (1 - k/N)^B)), the caches of
its sequences, launches kernels and crosses links. Continuous batching delays it by the prefills of the others, one of
each per answer. The first token waits for the prompt's own prefill, for the prompts that were there before, and, where
the caches do not fit, for answers to end (Little's law). With prefill workers apart, decode steps see no prefills and
the slower of the two sides sets how many sequences decode.

Sources: `docs` of aiconfigurator and BLIS for the mean-field step; DeepSeek-V3's report (arXiv 2412.19437) for
attention per rank beside experts over all ranks; InferenceX (10 prompts per user, burst start) for the client.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from estimators.speed import cache_bytes_per_token, soft_max, touched_share
from estimators.walk import Number, Walk

MEMORY_SHARE = 0.9  # default of vLLM's --gpu-memory-utilization and TensorRT-LLM's cache fraction
RESERVED_BYTES = 4e9  # per device: graphs, activations, workspaces (3.7-6.4 GiB measured on H100)
LEAST_ROOM = 0.02  # of memory: a server that started has some cache
ROUNDS = 3  # of the balance between prefill and decode workers; it contracts quickly
#: Of the logarithm of answer lengths: of 0.8, 1.3 and 1.6 the last predicts the bursts of 1,000 conversations best
#: (means per token lie at twice the medians there: many answers have few tokens to share their waiting).
RAGGED_DEVIATION = 1.6
_LENGTHS = np.exp([RAGGED_DEVIATION * NormalDist().inv_cdf((i + 0.5) / 16.0) for i in range(16)])
#: Answers of a conversation data set over their mean, at the middles of equal shares of requests: lognormal, from the
#: shortest answer that is kept (ShareGPT as vLLM samples it: 4 tokens and more, 200 on average).
RAGGED = tuple(float(x) for x in _LENGTHS / _LENGTHS.mean())
SHORTEST = 4.0  # tokens of an answer
GRAPH_SEQUENCES = 512.0  # largest batch that vLLM and SGLang capture as a CUDA graph by default
#: Tokens drafted for each that is accepted.
CHECKED = 1.5
FADING = float(np.log(2.0))  # mean share of the others that still run during such an answer, when none follow

Latents = dict[str, Number]


@dataclass(frozen=True)
class Worker:
    """Devices that hold one copy of a model. `n_tensor` split each matrix of attention, `n_data` ranks each keep all of
    attention for their own sequences, `n_stages` take layers in turn; experts lie over all of them. Rates and
    memory are those of one device."""

    walk: Walk
    n_tensor: Number
    n_data: Number
    n_stages: Number
    bandwidth_bytes_per_s: Number
    matrix_flops: Number
    attention_flops: Number
    link_bytes_per_s: Number
    memory_bytes: Number
    kv_bytes: Number  # of one cached element

    @property
    def n_devices(self) -> Number:
        return self.n_tensor * self.n_data * self.n_stages


@dataclass(frozen=True)
class Load:
    """Who asks what of which workers. `n_users` are of the whole system; `n_workers` and `n_prefill_workers` are 0
    where nobody said how many there are."""

    decode: Worker
    prefill: Worker  # the decode worker where there is no other
    disaggregated: Number
    n_users: Number
    n_workers: Number
    n_prefill_workers: Number
    prompt_tokens: Number
    output_tokens: Number
    prompts_per_user: Number
    drafts: Number  # somebody said that speculation was on
    may_draft: Number  # nobody said whether speculation was on, and the model's release has draft heads
    most_sequences: Number  # that the scheduler of one worker runs at once
    chunk_tokens: Number  # new tokens that the scheduler puts into one step
    # prompts stop the decode steps until none is left, instead of sharing steps with them
    prompts_first: Number
    at_once: Number  # all requests come together and none follows
    ragged: Number  # answers differ in length as those of conversations do


@dataclass(frozen=True)
class Served:
    """Means over the requests. `parts` are the seconds that one output token is made of."""

    ttft_s: Number
    tpot_s: Number
    parts: dict[str, Number]
    n_running: Number  # sequences of one worker


def _weights(
    w: Worker, q: Latents, rank_tokens: Number, tokens: Number, n_logits: Number
) -> tuple[Number, Number]:
    """Seconds for dense weights, where each rank computes `rank_tokens`, and for experts, which see all `tokens`."""
    m = w.walk
    stored = m.mixer_bytes + m.dense_bytes + m.shared_bytes + m.other_bytes + m.head_bytes
    moved = stored / (w.n_tensor * w.bandwidth_bytes_per_s * q["weights"])
    flops = 2.0 * (
        (m.mixer_params + m.dense_params + m.shared_params) * rank_tokens + m.head_params * n_logits
    )
    computed = flops / (w.n_tensor * w.matrix_flops * q["compute"])
    devices = w.n_devices / w.n_stages
    reached = touched_share(m, tokens)
    wanted = m.expert_params * tokens * m.experts_per_token / np.maximum(m.n_experts, 1.0)
    expert_moved = m.expert_bytes * reached / (devices * w.bandwidth_bytes_per_s * q["experts"])
    touched = m.expert_params * reached
    idle = touched * q["padding"] * (1.0 - touched / np.maximum(wanted, touched + 1.0))
    expert_computed = 2.0 * (wanted + idle) / (devices * w.matrix_flops * q["experts_compute"])
    return soft_max(moved, computed), soft_max(expert_moved, expert_computed)


def _links(w: Worker, q: Latents, rank_tokens: Number) -> Number:
    """Two all-reduces per layer over `n_tensor` (ring volume, 16-bit), two exchanges per MoE layer over all ranks where
    attention is data-parallel. Latencies grow with the logarithm of the ranks."""
    m = w.walk
    link = w.link_bytes_per_s * q["link"]
    ring = 4.0 * m.hidden_size * rank_tokens * (w.n_tensor - 1.0) / w.n_tensor / link
    reduce_s = q["reduce"] * np.log2(np.maximum(w.n_tensor, 2.0))
    reduced = np.where(w.n_tensor > 1, 2.0 * m.n_layers * (reduce_s + ring), 0.0)
    devices = w.n_devices / w.n_stages
    sent = 2.0 * m.hidden_size * rank_tokens * np.minimum(m.experts_per_token, devices) / link
    exchange_s = q["exchange"] * np.log2(np.maximum(devices, 2.0))
    apart = (w.n_data > 1) & (m.n_moe_layers > 0)
    return reduced + np.where(apart, 2.0 * m.n_moe_layers * (exchange_s + sent), 0.0)


def _chosen(m: Walk, tokens: Number) -> Number:
    """Tokens that full layers see: all, or what a sparse indexer chooses."""
    return np.where(m.top_k_tokens > 0, np.minimum(tokens, np.maximum(m.top_k_tokens, 1.0)), tokens)


def decode_parts(
    w: Worker, q: Latents, n_sequences: Number, prompt: Number, output: Number, checked: Number = 1.0
) -> Latents:
    """Seconds of one decode step of `n_sequences` half way through their answers, by where they go. Each computes
    `checked` tokens: its next one and those that were drafted for it."""
    m = w.walk
    rank = np.maximum(n_sequences / w.n_data, 1.0)
    micro = np.maximum(rank / w.n_stages, 1.0)
    context = prompt + output / 2.0
    visible = _chosen(m, context)
    full, near = cache_bytes_per_token(m, w.kv_bytes, w.kv_bytes)
    read = full * visible + near * np.minimum(context, np.maximum(m.window_tokens, 1.0))
    read = read + m.index_elements * context + 8.0 * m.state_elements
    shards = np.where(m.latent > 0, 1.0, np.minimum(w.n_tensor, 8.0))  # every rank reads the whole latent
    moved = read * rank / (shards * w.bandwidth_bytes_per_s * q["cache"])
    flops = m.decode_attention_flops * visible * rank * checked
    attended = flops / (w.n_tensor * w.attention_flops * q["decode_attention"])
    weights, experts = _weights(w, q, micro * checked, n_sequences * checked / w.n_stages, micro * checked)
    eager = np.where(rank > GRAPH_SEQUENCES, q["eager"], 0.0)
    launches = m.n_layers * (q["layer"] + eager) + m.n_moe_layers * q["moe_layer"] + q["step"]
    return {
        "weights": weights,
        "experts": experts,
        "cache": soft_max(moved, attended),
        "launches": launches + q["sequence"] * n_sequences,
        "links": _links(w, q, micro * checked),
    }


def prefill_s(w: Worker, q: Latents, prompt: Number, chunk: Number) -> tuple[Number, Number]:
    """Seconds of one prompt alone, and what each further prompt adds when the server is full of them. `chunk` new
    tokens are computed in one step."""
    m = w.walk
    visible = _chosen(m, prompt / 2.0)
    window = np.minimum(prompt / 2.0, np.maximum(m.window_tokens, 1.0))
    flops = (m.attention_flops_full * visible + m.attention_flops_window * window) * prompt
    attended = flops / (w.n_tensor * w.attention_flops * q["prefill_attention"])

    def steps(rank_tokens: Number, tokens: Number) -> Number:
        weights, experts = _weights(w, q, rank_tokens, tokens, 1.0)
        return weights + experts + _links(w, q, rank_tokens)

    n_steps = np.maximum(np.ceil(prompt / chunk), 1.0)
    each = prompt / n_steps
    alone = (steps(each, each) + m.n_layers * q["layer"] + q["step"]) * n_steps + attended
    share = prompt / (chunk * w.n_data)
    return alone, steps(chunk, chunk * w.n_data) * share + attended / w.n_data


def capacity(w: Worker, prompt: Number, output: Number, fill: Number = 1.0) -> Number:
    """Sequences whose caches fit one worker, each half way through its answer (paged caches grow as they go)."""
    m = w.walk
    copies = np.where(m.latent > 0, w.n_tensor, 1.0)
    each = w.kv_bytes * (m.kv_k_full + m.kv_v_full) * (prompt + output / 2.0) * copies * fill
    memory = w.memory_bytes * w.n_devices
    room = MEMORY_SHARE * memory - m.total_bytes - RESERVED_BYTES * w.n_devices
    return np.maximum(np.maximum(room, LEAST_ROOM * memory) / np.maximum(each, 1.0), 1.0)


def _first_wave(load: Load, step: Number, chunk_s: Number, n_chunks: Number) -> Number:
    """Seconds that prompts add to each output token of requests that start together. A request whose prompt comes
    early waits in its answer for the chunks that follow: in mixed steps at most one chunk per token, where prompts go
    first for all of them. Averaged over the places in the queue and the lengths of answers."""
    gaps = np.maximum(load.output_tokens - 1.0, 1.0)  # between the tokens of an answer
    steps, found = n_chunks / gaps, 0.0
    for ragged in RAGGED:
        x = np.where(load.ragged, np.maximum(ragged, (SHORTEST - 1.0) / gaps), 1.0)
        waited = steps / (2.0 * x)
        mixed = np.where(x >= steps, waited, 1.0 - x / (2.0 * np.maximum(steps, x)))
        slower = np.maximum(chunk_s - step, 0.0)
        found = found + np.where(load.prompts_first, waited * chunk_s, mixed * slower) / len(RAGGED)
    return found


def serve(load: Load, q: Latents) -> Served:
    """Mean times under this load, given each latent (see `estimators.serving_rates`)."""
    w, apart, users = load.decode, load.disaggregated, load.n_users
    prompt, output, chunk = load.prompt_tokens, load.output_tokens, load.chunk_tokens
    assumed = (1.0 + users / q["worker_users"]) ** q["worker_power"]
    workers = np.where(load.n_workers > 0, load.n_workers, assumed)
    assumed = (1.0 + users * prompt / q["worker_tokens"]) ** q["prefill_power"]
    prefillers = np.where(load.n_prefill_workers > 0, load.n_prefill_workers, assumed)
    alone, added = prefill_s(load.prefill, q, prompt, chunk)
    wanted = users / workers
    most = np.minimum(wanted, capacity(w, prompt, output, q["fill"]))
    most = np.minimum(most, load.most_sequences)
    # where nobody knows, the median of the two cases: nearer to the likelier one than their mean
    likelier = 1.0 / (1.0 + (1.0 / q["speculates"] - 1.0) ** 2.0)
    drafting = np.where(load.drafts, 1.0, np.where(load.may_draft, likelier, 0.0))
    accepted = 1.0 + q["drafts"] * drafting
    checked = 1.0 + CHECKED * (accepted - 1.0)
    # mixed steps have room for so many answers' share of prompts; more users wait before theirs (Little's law)
    shared = chunk * w.n_data * output / (accepted * (prompt + output))
    bound = ~(apart | load.prompts_first | load.at_once)
    held = np.where(bound, np.maximum(np.minimum(most, shared), 1.0), most)
    first = np.minimum(most / wanted, 1.0)  # share of a burst that starts at once
    fading = np.where(load.at_once & load.ragged, 1.0 - (1.0 - FADING) * first, 1.0)
    running = held
    chunk_s = added * chunk * w.n_data / prompt
    for _ in range(ROUNDS):
        parts = decode_parts(w, q, np.maximum(running * fading, 1.0), prompt, output, checked)
        step = sum(parts.values()) / accepted
        steady = np.maximum(running - 1.0, 0.0) / output * added
        behind = np.where(apart, 0.0, q["interference"] * steady)
        fed = prefillers / added * output * (step + behind) / workers  # what prefill workers can keep alive
        running = np.where(apart, np.maximum(np.minimum(held, fed), 1.0), running)
    if np.any(load.at_once):
        begun = _first_wave(load, step, chunk_s, running * prompt / (chunk * w.n_data))
        later = np.where(load.prompts_first, steady, np.minimum(steady, chunk_s))
        waited = q["interference"] * (first * begun + (1.0 - first) * later)
        behind = np.where(load.at_once, waited, behind)
    tpot = step + behind
    beside = np.where(apart, users / prefillers, running)
    busy = running * added / (running * added + output * step)
    busy_apart = np.minimum(users / prefillers * added / (output * tpot), 1.0)
    crowd = q["burst"] / load.prompts_per_user + q["crowding"] * np.where(apart, busy_apart, busy)
    before = np.maximum(beside - 1.0, 0.0) / 2.0 * added * crowd
    queued = np.maximum(wanted / np.minimum(running, most) - 1.0, 0.0)
    full = np.maximum(wanted / most - 1.0, 0.0) * q["waiting"] + np.maximum(most / held - 1.0, 0.0)
    waits = np.where(load.at_once, (1.0 - first) * queued / 2.0, np.where(bound, full, queued * q["waiting"]))
    left = waits * output * tpot
    own = alone * (1.0 + np.where(apart, 0.0, q["sharing"] * busy))
    admitted = q["admission"] * users / np.where(apart, workers, 1.0)
    ttft = q["request"] + own + before + step * q["partial_step"] + left + admitted
    found = {name: seconds / accepted for name, seconds in parts.items()}
    return Served(ttft, tpot, {**found, "prefill": behind}, running)


def whole_batch_s(load: Load, q: Latents) -> Number:
    """Seconds of one batch of `n_users` without a queue: all prompts, then a step for each further token."""
    w, prompt, output = load.decode, load.prompt_tokens, load.output_tokens
    alone, added = prefill_s(w, q, prompt, load.chunk_tokens)
    step = sum(decode_parts(w, q, load.n_users, prompt, output).values())
    return q["request"] + alone + (load.n_users - 1.0) * added + np.maximum(output - 1.0, 0.0) * step
