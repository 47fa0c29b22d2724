"""What the bundled runner costs on a processor that was measured: exact counts, time, memory.

Times are sums of terms at rates that `plan measure` found; factors of the terms are in `data/runner.json`, fitted by
`benchmarks/verify.py --fit`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from estimators import (
    reference_compressed,
    reference_prompt,
    reference_sparse,
    reference_states,
    reference_step,
)
from estimators.deployed_walk import known_walk
from estimators.deployment import Deployment
from estimators.errors import CannotPrice
from estimators.observation import kv_bytes
from estimators.quantity import Quantity
from estimators.reference_buffers import activation_bytes
from estimators.walk import ROLE_GROUPS
from hwdb.device import Device, KernelRates
from modeldb.layers import Attention
from modeldb.model import Model
from modeldb.walk import idle_layers, is_idle

ENGINE = "llm-plan-runner"
CALIBRATION = Path(__file__).parent / "data" / "runner.json"
BATCH_TOKENS = 512  # the runner's default batch
FLOATS = ("F32", "F16", "BF16")
ASKED_TWICE = "altup_router.weight"  # before a layer works, and for what came of it
STREAMED = "_fn.weight"  # of hyper-connections: coefficients of the residual's streams
ADDED = "_compressor_ape.weight"  # to gates
HASHED = "ffn_gate_tid2eid.weight"  # experts by token: looked up
SHARED_GATE = "ffn_gate_inp_shexp.weight"  # a vector, but multiplied with
TABLES = ("token_embd.weight", "position_embd.weight", "per_layer_token_embd.weight")
STATE_VECTORS = (".ssm_a", ".ssm_d")  # stored as matrices of Mamba-2, but one number a head


@dataclass(frozen=True)
class Counts:
    """What must come out equal, to the byte: of the whole model, and of the decode step that has `n_tokens`
    tokens in the cache, its own included. `step_cache_bytes` are those of `cache_bytes` that the step reads."""

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
    share = w.experts_per_token / max(w.n_experts, 1)
    context = d.settings.context_tokens
    ring = min(context, w.window_tokens + _batch_tokens(d))
    windowed = w.kv_k_window * k + w.kv_v_window * v
    full = w.kv_k_full * k + w.kv_v_full * v
    if w.expanded_k:
        full = w.expanded_k * k + w.expanded_v * v
    near = _near(d.model, w.window_tokens, n_tokens)
    groups = ("embedding", "head", "mixer", "dense", "expert", "shared", "other")
    sizes = {name: getattr(w, f"{name}_bytes") for name in groups}
    if w.tied:
        sizes["head"] = 0.0
    for name, size in _idle_bytes(d).items():
        sizes[name] += size
    row = _embedding_row_bytes(d)  # a table may have fewer rows than the vocabulary is said to have
    dense = w.mixer_bytes + w.dense_bytes + w.shared_bytes + w.other_bytes + w.head_bytes
    params = w.mixer_params + w.dense_params + w.shared_params + w.head_params + w.expert_params * share
    if not d.model.has_head:  # a model of embeddings: the runner scores all words with them
        dense += w.embedding_bytes
        params += w.embedding_params
    states = 4.0 * (w.state_elements + reference_sparse.state_elements(d.model))
    few = reference_sparse.spared(d.model, n_tokens)
    far = w.decode_attention_flops * n_tokens - few.flops + few.index_flops
    index, index_allocated = (reference_sparse.index_elements(d.model, n) * k for n in (n_tokens, context))
    unread = few.elements
    if any(reference_compressed.layers(d.model)):  # the walk's figures are per token, as if rows were cut
        held, most = (reference_compressed.rows(d.model, n) for n in (n_tokens, context))
        full, far, unread = 0.0, held.flops, held.unread
        index, index_allocated = held.elements * k, most.elements * k
    attention = far + w.attention_flops_window * near
    cached = full * n_tokens + index + windowed * near
    again = (w.again_full * n_tokens + w.again_window * near) * (k + v) / 2
    return Counts(
        n_params=round(w.total_params),
        class_bytes=tuple((name, round(size)) for name, size in sizes.items()),
        weight_bytes=round(w.total_bytes - w.tower_bytes),
        cache_bytes=round(cached + states),
        cache_allocated_bytes=round(full * context + index_allocated + windowed * ring + states),
        step_weight_bytes=round(dense + row + w.expert_bytes * share),
        step_cache_bytes=round(cached + again + states - unread * k),
        step_flops=2.0 * (params + _misread_params(d, share)) + attention + reference_states.flops(d.model),
    )


def _misread_params(d: Deployment, share: float) -> float:
    """Numbers that a step multiplies with though the walk takes them for vectors, or a second time, less those that it
    takes for matrices though they are only added or scale; of experts a `share`."""
    from modeldb.schemes import assign

    found = 0.0
    for t, _ in assign(d.scheme, d.model):
        if t.role == "draft":
            continue
        if t.name.endswith((SHARED_GATE, ASKED_TWICE, STREAMED)):
            found += t.n_elements
        elif t.name.endswith("_exps.bias"):
            found -= t.n_elements * share
        elif (
            t.name == "output.bias"
            or t.name.endswith(ADDED)
            or (t.name.endswith(STATE_VECTORS) and len(t.shape) > 1)
        ):
            found -= t.n_elements
    return found


def _idle_bytes(d: Deployment) -> dict[str, int]:
    """Bytes that no step reads (see `Walk.idle_bytes`), by what their tensors would count as."""
    from modeldb.schemes import assign

    found: dict[str, int] = {}
    if known_walk(d.model, d.scheme).idle_bytes:
        layers = idle_layers(d.model)
        for t, f in assign(d.scheme, d.model):
            if is_idle(t, layers):
                # matrices of the role itself are keys and values that nothing reads
                group = ROLE_GROUPS.get(t.role if t.role != "idle" else "attention", "other")
                group = group if len(t.shape) > 1 else "other"
                found[group] = found.get(group, 0) + f.n_bytes(t.shape)
    return found


def _batch_tokens(d: Deployment) -> int:
    """Most tokens that a prompt's pass takes."""
    if reference_step.prefixed(d.model):
        return d.settings.context_tokens
    return min(d.settings.batch_tokens or BATCH_TOKENS, d.settings.context_tokens)


def _near(model: Model, window: float, n_tokens: int) -> float:
    """Tokens that the last of `n_tokens` sees in windowed layers: the last ones, or those of its chunk."""
    mixers = [m for block in model.blocks for m in block.mixers]
    if window and any(isinstance(m, Attention) and m.chunked for m in mixers):
        return (n_tokens - 1) % window + 1
    return min(n_tokens, window)


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
    return Prediction(
        expected(found, held, "prefill"),
        expected(found, held, "decode"),
        activation_bytes(d.model, d.scheme, _batch_tokens(d), d.settings.context_tokens),
    )


@cache
def calibration() -> dict[str, Any]:
    """`data/runner.json`: factors of the terms by phase, intervals, and what stands in for rates not measured."""
    return json.loads(CALIBRATION.read_text(encoding="utf-8"))


def total(found: dict[str, float], factors: dict[str, float]) -> float:
    """Seconds: every term times its factor."""
    return sum(factors[name] * seconds for name, seconds in found.items())


#: How far terms of prompts lie from their factor outside the models that these were fitted on, as logarithms, on top of
#: the interval: of twelve large mixtures that came later, prompts of seven took 12 to 29% less or 14% more than
#: predicted (sampled, AMD EPYC, 2026), though mixtures left out of the fit lie within 3%: 0.3 holds all
#: but the two farthest; a prompt of 131,000 tokens, with attention nine tenths of it, took 8 to 11% less.
SPREADS = {"experts": 0.3, "attention": 0.12}


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
    """Seconds by phase and term, before their factors."""
    held = held or calibration()
    host = d.machine.host
    if host is None:
        raise CannotPrice(f"{d.machine.name}: its processor is not known")
    own = rates(host, held)
    bandwidth = host.bandwidth_bytes_per_s or max(stream for _, stream, _ in own.formats)
    batch = min(_batch_tokens(d), d.workload.prompt_tokens)
    unpacking = held["usual"]["unpacking"]
    return {
        "decode": reference_step.seconds(d, own, bandwidth),
        "prefill": reference_prompt.seconds(d, own, bandwidth, unpacking, max(1, batch)),
    }


def _embedding_row_bytes(d: Deployment) -> int:
    """A row of each table that is looked up: of words, of positions, of words for each layer."""
    from modeldb.schemes import assign

    pairs = assign(d.scheme, d.model)
    rows = [f.n_bytes((t.shape[0],)) for t, f in pairs if t.name in TABLES]
    if not rows:
        raise CannotPrice(f"{d.model.id}: it has no embeddings")
    # tables of experts count with what is read whole
    beside = (f.n_bytes((t.shape[0],)) - f.n_bytes(t.shape) for t, f in pairs if t.name.endswith(HASHED))
    return sum(rows) + sum(beside)


PROCESS_BYTES = 32 << 20  # libraries and compiled kernels: 10 to 50 MiB were seen


def resident_bytes(d: Deployment, n_tokens: int) -> Quantity:
    """What the process grows by: weights, the cache's rows that were written, activations, and its own code. A prompt
    shorter than a batch leaves activations untouched; what measuring the machine's rates left free is used again."""
    found = counts(d, n_tokens)
    buffers = activation_bytes(d.model, d.scheme, _batch_tokens(d), d.settings.context_tokens)
    held = found.weight_bytes + min(found.cache_bytes, found.cache_allocated_bytes)
    best = held + buffers.best + PROCESS_BYTES
    low = max(0.95 * held - PROCESS_BYTES, 0.5 * held)
    return Quantity(low, best, 1.05 * held + buffers.high + 2 * PROCESS_BYTES, "derived")
