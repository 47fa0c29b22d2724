"""The price of one ask: the estimators' answer in the units that the row's metric is printed in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from estimators.deployment import Deployment, Workload
from estimators.quantity import Quantity
from planner.asks import Ask, Refusal

GIB = 2**30
GB = 1e9

#: Printed unit of each memory metric, in bytes (or tokens).
UNITS = {
    "weights_gib": GIB, "kv_gib": GIB, "compute_buffer_gib": GIB, "total_gib": GIB, "gpu_mem_gb": GIB,
    "file_gb": GB, "kv_tokens": 1.0,
}  # fmt: skip

Prices = tuple[dict[str, Quantity], str]

#: Metrics in which more is slower.
SECONDS = ("ttft_ms", "tpot_ms")


def price(ask: Ask) -> Prices | Refusal:
    """Quantities by measured column (`value`; `ttft_ms`, `tpot_ms`; llama.cpp's bytes), and a bottleneck."""
    if ask.metric == "llamacpp":
        return _llamacpp(ask.deployment), "memory"
    if ask.metric == "boundary":
        return _boundary(ask.deployment), "memory"
    if ask.metric == "tensors":
        return _tensors(ask), "memory"
    if ask.metric in UNITS:
        return _memory(ask)
    if ask.metric == "serving":
        return _serving(ask)
    return _speed(ask)


def _speed(ask: Ask) -> Prices:
    from estimators import serving

    work = ask.deployment.workload
    if ask.metric in SECONDS and serving.applies(ask.deployment):
        first, each, bottleneck = serving.predict(ask.deployment, drafts="speculative" in ask.flags)
        return {"value": _milliseconds(first if ask.metric == "ttft_ms" else each)}, bottleneck
    if ask.metric == "ttft_ms" and work.client in ("closed", "burst") and work.n_sequences > 1:
        return {"value": _first_token(ask)}, "compute"
    if ask.metric == "tpot_ms" and work.client == "burst":
        return _burst_token(ask)
    found = phases(ask.deployment)
    low, best, high = (found.printed(ask.metric, work, end) for end in ("slow", "best", "fast"))
    if ask.metric in SECONDS:
        low, high = high, low
    elif ask.per_device:
        low, best, high = (x / ask.n_devices for x in (low, best, high))
    prompt = ask.metric in ("prefill_tps", "ttft_ms")
    bottleneck = found.prefill_bottleneck if prompt else found.bottleneck
    return {"value": Quantity(low, best, high, "calibrated")}, bottleneck


def _burst_token(ask: Ask) -> Prices:
    """Time per token of requests sent at once: they live while all places are taken, and the prompts that
    follow interrupt them, half of the others' on average."""
    work = ask.deployment.workload
    found = phases(ask.deployment.with_(workload=replace(work, output_spread=1.0)))
    best = 1e3 * (found.step_s + found.prefill_s / (2.0 * max(work.output_tokens, 1)))
    slow, fast = (found.factors["batch"][end] for end in ("slow", "fast"))
    return {"value": Quantity(best * fast, best, best * slow, "calibrated")}, found.bottleneck


@dataclass(frozen=True)
class Phases:
    """Seconds of prefill, of one step and of a request, and the factors at the ends of their intervals."""

    prefill_s: float
    step_s: float
    request_s: float
    n_sequences: float
    factors: dict[str, dict[str, float]]  # kind -> end -> factor on seconds
    bottleneck: str
    prefill_bottleneck: str

    def printed(self, metric: str, work: Workload, end: str) -> float:
        """What a benchmark prints when everything takes `end` (slow, best, fast) of its interval."""
        from estimators.metrics import printed

        factor = self.factors[self.kind(metric)][end]
        table = printed(
            self.prefill_s * factor,
            self.step_s * factor,
            self.request_s * factor,
            self.n_sequences,
            float(max(work.prompt_tokens, 1)),
            float(work.output_tokens),
        )
        return float(table[metric])

    def kind(self, metric: str) -> str:
        """The kind of interval: one stream's decode or prefill, or a batch or whole run."""
        if self.n_sequences > 1:
            return "batch"
        if metric in ("decode_tps", "tpot_ms"):
            return "decode"
        return "prefill" if metric in ("prefill_tps", "ttft_ms") else "batch"


def phases(deployment: Deployment) -> Phases:
    """The phases of one deployment."""
    from estimators import estimate
    from estimators.folds import KINDS
    from estimators.phases import width
    from estimators.table import BOTTLENECKS

    found = estimate.speed_of(deployment)
    factors = {}
    for kind in KINDS:
        slow, fast = (float(np.squeeze(x)) for x in width(found.plan, slice(0, 1), kind))
        factors[kind] = {"slow": slow, "best": 1.0, "fast": fast}
    first, each = (estimate._bottleneck(part) for part in (found.prefill, found.decode))
    return Phases(
        float(np.squeeze(found.prefill.total_s)),
        float(np.squeeze(found.decode.total_s)),
        found.request_s,
        found.n_sequences,
        factors,
        BOTTLENECKS[int(np.squeeze(each))],
        BOTTLENECKS[int(np.squeeze(first))],
    )


def serving_arguments(ask: Ask) -> dict[str, Any]:
    """What `estimators.serving` wants to know of a row. Most rows do not say whether speculation was on."""
    stated = "assumed-workers" not in ask.flags
    return {
        "decode": ask.deployment,
        "prefill": ask.prefill,
        "workers": ask.workers if stated else None,
        "prefill_workers": ask.prefill_workers if stated else None,
        "concurrency": ask.concurrency or ask.deployment.workload.n_sequences * ask.workers,
        "may_draft": "no-drafts" not in ask.flags,
    }


def _serving(ask: Ask) -> Prices:
    from estimators import serving

    if ask.deployment.engine in serving.ENGINES:
        first, each, bottleneck = serving.predict(**serving_arguments(ask))
        return {"ttft_ms": _milliseconds(first), "tpot_ms": _milliseconds(each)}, bottleneck
    decode, work = phases(ask.deployment), ask.deployment.workload
    first = _first_token(ask)
    low, best, high = (decode.printed("tpot_ms", work, end) for end in ("fast", "best", "slow"))
    return {"ttft_ms": first, "tpot_ms": Quantity(low, best, high, "calibrated")}, decode.bottleneck


def _milliseconds(q: Quantity) -> Quantity:
    return replace(q, low=1e3 * q.low, best=1e3 * q.best, high=1e3 * q.high)


def _first_token(ask: Ask) -> Quantity:
    """Milliseconds to the first token when users wait for each other's prefills."""
    from estimators.serving import burst_first_token_s, closed_loop_first_token_s

    work = (ask.prefill or ask.deployment).workload
    one = phases((ask.prefill or ask.deployment).with_(workload=replace(work, n_sequences=1)))
    if work.client == "burst":
        running = phases(ask.deployment)
        answer_s = running.step_s * work.output_tokens
        waited_s = burst_first_token_s(one.prefill_s, answer_s, work.n_sequences, running.n_sequences)
    else:
        waited_s = closed_loop_first_token_s(one.prefill_s, work.n_sequences, work.prompts_per_user)
    best = 1e3 * (float(waited_s) + one.request_s)
    factors = one.factors["batch"]
    return Quantity(best * factors["fast"], best, best * factors["slow"], "calibrated")


def _memory(ask: Ask) -> Prices:
    from estimators.memory_rows import observed_bytes

    # chatglm.cpp writes its own container: the weights and a header of a few hundred kilobytes
    own_file = ask.metric == "file_gb" and ask.deployment.engine == "chatglm.cpp"
    metric = "weights_gib" if own_file else ask.metric
    found = observed_bytes(ask.deployment, metric, offloaded="offloaded" in ask.flags)
    unit = GIB if own_file else UNITS[ask.metric]  # its README prints `ls -h`
    if "decimal-gb" in ask.flags:
        unit = GB
    value = Quantity(found.low / unit, found.best / unit, found.high / unit, found.origin, found.note)
    return {"value": value}, "memory"


def _boundary(deployment: Deployment) -> dict[str, Quantity]:
    from estimators.engine_memory import constants
    from estimators.memory import max_sequences

    best = max_sequences(deployment, deployment.settings.context_tokens)
    low, high = constants()["intervals"]["boundary"][:2]
    return {"max_batch_measured": Quantity(best * low, best, best * high + 1, "calibrated")}


def _tensors(ask: Ask) -> dict[str, Quantity]:
    from modeldb.schemes import assign

    model, scheme = ask.deployment.model, ask.deployment.scheme
    file = (model.id, scheme.id)
    if file not in _TENSORS:
        sums: dict[str, tuple[int, int, int]] = {}
        for tensor, stored in assign(scheme, model):
            n, elements, size = sums.get(stored.id.upper(), (0, 0, 0))
            shape = tensor.shape
            sums[stored.id.upper()] = (n + 1, elements + tensor.n_elements, size + stored.n_bytes(shape))
        _TENSORS[file] = sums
    found = _TENSORS[file].get(ask.notes[0], (0, 0, 0))
    return dict(zip(("n_tensors", "n_elements", "bytes"), map(Quantity.exact, found), strict=True))


#: (model, scheme) -> tensors, elements and bytes of each ggml type in its file.
_TENSORS: dict[tuple[str, str], dict[str, tuple[int, int, int]]] = {}


def _llamacpp(deployment: Deployment) -> dict[str, Quantity]:
    from estimators.memory_rows import observed_bytes

    file = (deployment.model.id, deployment.scheme.id)
    if file not in _FILES:
        _FILES[file] = _file(deployment)
    context = (deployment.model.id, deployment.settings, deployment.workload)
    if context not in _CONTEXTS:
        kinds = ("kv_gib", "compute_buffer_gib")
        cache, compute = (observed_bytes(deployment, kind) for kind in kinds)
        _CONTEXTS[context] = (cache, compute)
    cache, compute = _CONTEXTS[context]
    model_bytes, file_bytes = map(Quantity.exact, _FILES[file])
    return {
        "model_bytes": model_bytes,
        "kv_bytes": cache,
        "compute_bytes": compute,
        "file_bytes": file_bytes,
    }


#: (model, settings, workload) -> llama.cpp's cache and compute buffer, which no weight scheme changes.
_CONTEXTS: dict[tuple[Any, ...], tuple[Quantity, Quantity]] = {}

#: (model, scheme) -> (bytes that the loader keeps, bytes of the file). Files repeat pairs over many settings.
_FILES: dict[tuple[str, str], tuple[float, float]] = {}


def _file(deployment: Deployment) -> tuple[float, float]:
    from modeldb import gguf_layout

    model, scheme = deployment.model, deployment.scheme
    return float(gguf_layout.model_bytes(model, scheme)), float(gguf_layout.file_bytes(model, scheme))
