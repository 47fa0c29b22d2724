"""What the bundled runner costs on a processor that was measured: exact counts, time, memory.

Its kernels' shares of the measured rates are in `data/runner.json`, fitted by `benchmarks/verify.py --fit`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from estimators.deployment import Deployment
from estimators.efficiency import Efficiency, load
from estimators.observation import known_walk, kv_bytes
from estimators.quantity import Quantity
from estimators.walk import Walk
from modeldb.layers import LinearAttention, StateSpace
from modeldb.model import Model

ENGINE = "llm-plan-runner"
CALIBRATION = Path(__file__).parent / "data" / "runner.json"
BATCH_TOKENS = 512  # the runner's default batch
SHARED_GATE = "ffn_gate_inp_shexp.weight"  # a vector, but multiplied with
STATE_VECTORS = (".ssm_a", ".ssm_d")  # stored as matrices of Mamba-2, but one number a head
# Operations per number of a recurrent state and token: decay, what is added (product and sum), the sum that reads it;
# the delta rule also reads it before it writes.
SCAN_FLOPS, DELTA_FLOPS = 5, 7


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
    row = w.embedding_bytes / w.vocab_size
    dense = w.mixer_bytes + w.dense_bytes + w.shared_bytes + w.other_bytes + w.head_bytes
    params = w.mixer_params + w.dense_params + w.shared_params + w.head_params + w.expert_params * share
    gates: float = sum(t.n_elements for t in d.model.tensors() if t.name.endswith(SHARED_GATE))
    gates -= (
        sum(t.n_elements for t in d.model.tensors() if t.name.endswith("_exps.bias")) * share
    )  # only added
    gates -= sum(
        t.n_elements for t in d.model.tensors() if t.name.endswith(STATE_VECTORS) and len(t.shape) > 1
    )
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
        step_flops=2.0 * (params + gates) + attention + _state_flops(d.model),
    )


def _state_flops(model: Model) -> float:
    """FLOPs of one token in the states of recurrent layers."""
    total = 0.0
    for block in model.blocks:
        for mixer in block.mixers:
            if isinstance(mixer, StateSpace):
                total += SCAN_FLOPS * mixer.state * mixer.inner
            elif isinstance(mixer, LinearAttention):
                total += DELTA_FLOPS * mixer.k_dim * mixer.n_v_heads * mixer.v_dim
    return total


@dataclass(frozen=True)
class Prediction:
    """Modelled lines: seconds of the first token, of each further one, bytes of the activations."""

    ttft_s: Quantity
    tpot_s: Quantity
    activation_bytes: Quantity


def predict(d: Deployment) -> Prediction:
    """Time and activations of a deployment whose engine is the runner. Raises CannotPrice on a processor whose
    bandwidth is not known: measure it first."""
    from estimators.estimate import table_of
    from estimators.phases import phases, plan

    held = load(CALIBRATION)
    prefill, decode, _ = phases(plan(table_of(d), held), slice(0, 1))
    batch = min(d.settings.batch_tokens or BATCH_TOKENS, d.settings.context_tokens)
    return Prediction(
        _wide(float(np.squeeze(prefill.total_s)), held, "prefill"),
        _wide(float(np.squeeze(decode.total_s)), held, "decode"),
        activation_bytes(known_walk(d.model, d.scheme), batch),
    )


def _wide(best: float, held: Efficiency, phase: str) -> Quantity:
    width = held.intervals[phase]
    return Quantity(best * width["fast"], best, best * width["slow"], "calibrated", width.get("note", ""))


def activation_bytes(w: Walk, n_batch: int) -> Quantity:
    """Buffers of a batch: per token the residual stream and its norm, queries, keys, values and their mix, gate
    and up and their product in float32, and one packed copy (float32, int8, scales) of the widest input; one row
    of logits. Latent attention keeps absorbed queries and outputs, experts one output each."""
    attention = w.n_heads * w.head_dim
    inner = w.max_inner
    floats = 2 * w.hidden_size + 2.5 * attention + 3 * inner
    floats += w.experts_per_token * w.hidden_size
    widest = max(inner, attention, w.hidden_size)
    if w.latent:
        absorbed = w.n_heads * w.kv_k_full / w.n_layers
        floats += 2 * absorbed + w.n_heads * w.head_dim
        widest = max(widest, absorbed)
    packed = 5.5 * widest
    best = n_batch * (4.0 * floats + packed) + 4.0 * w.vocab_size
    return Quantity(0.7 * best, best, 1.5 * best, "derived")
