"""What the bundled runner costs on a processor that was measured: exact counts, time, memory.

Times are sums of terms at rates that `plan measure` found; factors of the terms are in `data/runner.json`, fitted by
`benchmarks/verify.py --fit`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from math import log, sqrt
from pathlib import Path
from typing import Any

from estimators import reference_states
from estimators.deployment import Deployment
from estimators.errors import CannotPrice
from estimators.observation import known_walk, kv_bytes
from estimators.quantity import Quantity
from estimators.reference_buffers import activation_bytes
from hwdb.device import Device, KernelRates
from modeldb.layers import Attention, Block, LatentAttention

ENGINE = "llm-plan-runner"
CALIBRATION = Path(__file__).parent / "data" / "runner.json"
BATCH_TOKENS = 512  # the runner's default batch
HALF_FULL = 32.0  # tokens of a block at which a product runs at half its rate (Q8_0 and F16, Zen 5, 2026)
STEP_S = 1e-4  # a step in Python and its argmax; its factor is fitted
HEADS = ("output.weight", "token_embd.weight")
FLOATS = ("F32", "F16", "BF16")
ALIKE = {  # formats with kernels of the same make
    "F32": ("BF16", "F16"), "BF16": ("F16",), "F16": ("BF16",), "Q4_1": ("Q4_0",), "Q5_1": ("Q5_0",),
    "Q5_0": ("Q4_0",), "IQ4_NL": ("MXFP4", "Q4_0"), "IQ4_XS": ("MXFP4", "Q4_K"), "MXFP4": ("Q4_0",),
    "Q2_K": ("Q6_K", "Q4_K"), "Q3_K": ("Q6_K", "Q4_K"), "Q5_K": ("Q4_K",), "Q6_K": ("Q4_K",), "Q4_K": ("Q4_0",),
}  # fmt: skip
SHARED_GATE = "ffn_gate_inp_shexp.weight"  # a vector, but multiplied with
STATE_VECTORS = (".ssm_a", ".ssm_d")  # stored as matrices of Mamba-2, but one number a head


@dataclass(frozen=True)
class Counts:
    """What must come out equal, to the byte: of the whole model, and of the decode step that has `n_tokens`
    tokens in the cache, its own included."""

    n_params: int
    class_bytes: tuple[tuple[str, int], ...]
    weight_bytes: int
    cache_bytes: int
    cache_allocated_bytes: int
    step_weight_bytes: int
    step_cache_bytes: int
    step_flops: float

    @property
    def step_bytes(self) -> int:
        return self.step_weight_bytes + self.step_cache_bytes


def counts(d: Deployment, n_tokens: int) -> Counts:
    """The exact lines, from the walk over the model's tensors and caches."""
    w = known_walk(d.model, d.scheme)
    k, v = kv_bytes(d.settings.kv_type_k), kv_bytes(d.settings.kv_type_v)
    batch = min(d.settings.batch_tokens or BATCH_TOKENS, d.settings.context_tokens)
    share = w.experts_per_token / max(w.n_experts, 1)
    context = d.settings.context_tokens
    ring = min(context, w.window_tokens + batch)
    full, windowed = w.kv_k_full * k + w.kv_v_full * v, w.kv_k_window * k + w.kv_v_window * v
    near = min(n_tokens, w.window_tokens)
    groups = ("embedding", "head", "mixer", "dense", "expert", "shared", "other")
    sizes = {name: getattr(w, f"{name}_bytes") for name in groups}
    if w.tied:
        sizes["head"] = 0.0
    row = _embedding_row_bytes(d)  # a table may have fewer rows than the vocabulary is said to have
    dense = w.mixer_bytes + w.dense_bytes + w.shared_bytes + w.other_bytes + w.head_bytes
    params = w.mixer_params + w.dense_params + w.shared_params + w.head_params + w.expert_params * share
    gates: float = sum(t.n_elements for t in d.model.tensors() if t.name.endswith(SHARED_GATE))
    gates -= (
        sum(t.n_elements for t in d.model.tensors() if t.name.endswith("_exps.bias")) * share
    )  # only added
    gates -= sum(
        t.n_elements for t in d.model.tensors() if t.name.endswith(STATE_VECTORS) and len(t.shape) > 1
    )
    gates -= sum(t.n_elements for t in d.model.tensors() if t.name == "output.bias")
    if (
        not d.model.has_head
    ):  # a model of embeddings: the runner looks its words up and scores them all the same
        dense += w.embedding_bytes
        params += w.embedding_params
    states = 4.0 * w.state_elements
    attention = w.decode_attention_flops * n_tokens + w.attention_flops_window * near
    cached = full * n_tokens + windowed * near
    return Counts(
        n_params=round(w.total_params),
        class_bytes=tuple((name, round(size)) for name, size in sizes.items()),
        weight_bytes=round(w.total_bytes - w.tower_bytes),
        cache_bytes=round(cached + states),
        cache_allocated_bytes=round(full * context + windowed * ring + states),
        step_weight_bytes=round(dense + row + w.expert_bytes * share),
        step_cache_bytes=round(cached + states),
        step_flops=2.0 * (params + gates) + attention + reference_states.flops(d.model),
    )


@dataclass(frozen=True)
class Prediction:
    """Modelled lines: seconds of the first token, of each further one, bytes of the activations."""

    ttft_s: Quantity
    tpot_s: Quantity
    activation_bytes: Quantity


def predict(d: Deployment) -> Prediction:
    """Time and activations of a deployment whose engine is the runner. Raises CannotPrice on a processor whose
    bandwidth is not known: measure it first."""
    held = calibration()
    found = terms(d, held)
    batch = min(d.settings.batch_tokens or BATCH_TOKENS, d.settings.context_tokens)
    return Prediction(
        expected(found, held, "prefill"),
        expected(found, held, "decode"),
        activation_bytes(d.model, d.scheme, batch),
    )


@cache
def calibration() -> dict[str, Any]:
    """`data/runner.json`: factors of the terms by phase, intervals, and what stands in for rates not measured."""
    return json.loads(CALIBRATION.read_text(encoding="utf-8"))


def total(found: dict[str, float], factors: dict[str, float]) -> float:
    """Seconds: every term times its factor."""
    return sum(factors[name] * seconds for name, seconds in found.items())


#: How far terms of prompts lie from their factor outside the models that these were fitted on, as logarithms, on top of
#: the interval: prompts of six mixtures of 117 to 1,000 billion parameters, sampled, took 25% less to 19% more than
#: predicted; one of 131,000 tokens, with attention nine tenths of it, 11% less.
SPREADS = {"experts": 0.45, "attention": 0.12}


def expected(found: dict[str, dict[str, float]], held: dict[str, Any], phase: str) -> Quantity:
    """Seconds of a phase and their interval, from `terms` and `calibration`."""
    best, width = total(found[phase], held[phase]), held["intervals"][phase]
    further = 0.0
    if phase == "prefill":
        parts = {name: held[phase][name] * found[phase][name] / best for name in SPREADS}
        further = math.hypot(*(SPREADS[name] * part for name, part in parts.items()))
    fast, slow = (
        math.copysign(math.hypot(math.log(width[k]), further), math.log(width[k])) for k in ("fast", "slow")
    )
    return Quantity(best * math.exp(fast), best, best * math.exp(slow), "calibrated")


# -- terms: seconds at the rates that `plan measure` found ----------------------------------------------------


def rates(device: Device, held: dict[str, Any]) -> KernelRates:
    """Those measured on `device`, else usual shares of its bandwidth and arithmetic. Raises CannotPrice."""
    if device.kernels is not None:
        return device.kernels
    bandwidth = device.bandwidth_bytes_per_s
    if not bandwidth or not device.fp32_flops:
        raise CannotPrice(
            f"{device.name}: its bandwidth or arithmetic is not known; `plan measure` finds them"
        )
    usual, int8 = held["usual"], device.int8_ops or 2 * device.fp32_flops
    formats = tuple(
        (name, bandwidth * share, (device.fp32_flops if name in FLOATS else int8) * part)
        for name, (share, part) in usual["formats"].items()
    )
    one, four = (bandwidth * share for share in usual["attention_of_bandwidth"])
    return KernelRates(formats, (one, four), device.fp32_flops * usual["attention_of_fp32"], usual["layer_s"])


def terms(d: Deployment, held: dict[str, Any] | None = None) -> dict[str, dict[str, float]]:
    """Seconds by phase and term, before their factors.

    A decode step streams each weight through its format's kernel, attends to the cache, and pays for every layer; a
    prompt multiplies all its tokens with every weight, of the last layer's feed-forward and of the head with one.
    """
    held = held or calibration()
    host = d.machine.host
    if host is None:
        raise CannotPrice(f"{d.machine.name}: its processor is not known")
    own = rates(host, held)
    speed = {name: (stream, product) for name, stream, product in own.formats}
    w = known_walk(d.model, d.scheme)
    bandwidth = host.bandwidth_bytes_per_s or max(stream for _, stream, _ in own.formats)
    n, depth = d.workload.prompt_tokens, d.workload.prompt_tokens + max(1, d.workload.output_tokens) / 2
    batch = min(d.settings.batch_tokens or BATCH_TOKENS, d.settings.context_tokens, n)
    share = w.experts_per_token / max(w.n_experts, 1)
    decode = dict.fromkeys(("weights", "experts", "cache", "layers", "vectors", "step"), 0.0)
    prefill = dict.fromkeys(("products", "experts", "attention", "layers", "vectors", "weights", "step"), 0.0)
    n_batches = -(-n // batch)
    for name, fmt, size, count in _matrices(d):
        stream, product = speed[_like(fmt, speed)]
        expert = "_exps." in name
        decode["experts" if expert else "weights"] += size * (share if expert else 1.0) / stream
        if name in HEADS or name.startswith(f"blk.{d.model.n_layers - 1}.ffn_"):
            prefill["weights"] += size * (share if expert else 1.0) / stream
            continue
        tokens = batch * share if expert else float(batch)
        # blocks of few tokens fill the kernels less
        per_batch = 2.0 * count * (tokens + HALF_FULL) / product
        prefill["experts" if expert else "products"] += n_batches * per_batch
        prefill["weights"] += n_batches * size / bandwidth
    decode["cache"] = _cached_s(d, own, depth)
    attention = w.decode_attention_flops * n / 2 + w.attention_flops_window * _mean_seen(n, w.window_tokens)
    narrow = (
        1.0 if w.latent else sqrt(min(max(w.head_dim, 1), 128) / 128)
    )  # 64 numbers a head: 0.7 of the rate
    prefill["attention"] = n * attention / own.attention_flops / narrow
    prefill["attention"] += n * reference_states.flops(d.model) / own.attention_flops
    decode["cache"] += 8.0 * w.state_elements / bandwidth  # read and written
    inner = w.experts_per_token * w.max_inner if w.n_experts and w.experts_per_token else w.max_inner
    vectors = 4.0 * w.n_layers * (4 * w.hidden_size + 2 * w.n_heads * w.head_dim + 3 * inner)
    vectors += 4.0 * reference_states.floats(d.model)[0]
    decode |= {"layers": w.n_layers * own.layer_s, "vectors": vectors / bandwidth, "step": STEP_S}
    prefill |= {
        "layers": n_batches * w.n_layers * own.layer_s,
        "vectors": n * vectors / bandwidth,
        "step": STEP_S,
    }
    return {"decode": decode, "prefill": prefill}


def _matrices(d: Deployment) -> Iterator[tuple[str, str, int, int]]:
    """(name, format, bytes, numbers) of what is multiplied with; a tied embedding is the head."""
    from modeldb.schemes import assign

    pairs = [(t, f) for t, f in assign(d.scheme, d.model) if t.role != "draft" and len(t.shape) > 1]
    tied = all(t.name != "output.weight" for t, _ in pairs)
    for t, f in pairs:
        if t.name == "token_embd.weight" and not tied:
            continue
        yield t.name, f.id, f.n_bytes(t.shape), t.n_elements


def _embedding_row_bytes(d: Deployment) -> int:
    """A row of each table that is looked up: of words, and of positions."""
    from modeldb.schemes import assign

    tables = ("token_embd.weight", "position_embd.weight")
    rows = [f.n_bytes((t.shape[0],)) for t, f in assign(d.scheme, d.model) if t.name in tables]
    if not rows:
        raise CannotPrice(f"{d.model.id}: it has no embeddings")
    return sum(rows)


def _like(fmt: str, speed: Mapping[str, Any]) -> str:
    """The format whose kernel is most alike, of those measured."""
    for name in (fmt, *ALIKE.get(fmt, ()), "Q8_0"):
        if name in speed:
            return name
    return next(iter(speed))


def _cached_s(d: Deployment, own: KernelRates, depth: float) -> float:
    """Seconds to attend to `depth` tokens, windows respected. A key shared by more heads is worked on longer."""
    one, four = own.attention_bytes_per_s
    power = log(max(one / four, 1.0)) / log(4)
    k, v = kv_bytes(d.settings.kv_type_k), kv_bytes(d.settings.kv_type_v)
    groups = [g for b in d.model.blocks if (g := _group(b))] or [1.0]
    group = sum(groups) / len(groups)
    w = known_walk(d.model, d.scheme)
    near = min(depth, w.window_tokens)
    cached = (w.kv_k_full * k + w.kv_v_full * v) * depth + (w.kv_k_window * k + w.kv_v_window * v) * near
    return cached * group**power / one


def _group(block: Block) -> float:
    """Query heads per key head of a block's attention; 0 where it has none."""
    for mixer in block.mixers:
        if isinstance(mixer, Attention):
            return mixer.n_heads / mixer.n_kv_heads
        if isinstance(mixer, LatentAttention):
            return float(mixer.n_heads)
    return 0.0


def _mean_seen(n: int, window: float) -> float:
    """Tokens that a windowed layer sees, on average over a prompt."""
    near = min(float(n), float(window))
    return near - near * near / (2 * n) if n else 0.0


PROCESS_BYTES = 32 << 20  # libraries and compiled kernels: 10 to 50 MiB were seen


def resident_bytes(d: Deployment, n_tokens: int) -> Quantity:
    """What the process grows by: weights, the cache's rows that were written, activations, and its own code. A prompt
    shorter than a batch leaves activations untouched; what measuring the machine's rates left free is used again."""
    found = counts(d, n_tokens)
    batch = min(d.settings.batch_tokens or BATCH_TOKENS, d.settings.context_tokens)
    buffers = activation_bytes(d.model, d.scheme, batch)
    held = found.weight_bytes + min(found.cache_bytes, found.cache_allocated_bytes)
    best = held + buffers.best + PROCESS_BYTES
    low = max(0.95 * held - PROCESS_BYTES, 0.5 * held)
    return Quantity(low, best, 1.05 * held + buffers.high + 2 * PROCESS_BYTES, "derived")
