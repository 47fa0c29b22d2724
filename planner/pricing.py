"""The price of one ask: the estimators' answer in the units that the row's metric is printed in."""

from __future__ import annotations

from typing import Any

import numpy as np

from estimators.deployment import Deployment
from estimators.quantity import Quantity
from planner import spill
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
    if ask.metric in UNITS:
        return _memory(ask)
    if ask.metric == "serving":
        return _serving(ask)
    return _speed(ask)


def _speed(ask: Ask) -> Prices:
    from estimators.table import BOTTLENECKS

    deployment = spill.placed(ask)
    found = _phases(deployment)
    first = ask.metric in ("prefill_tps", "ttft_ms")
    low, best, high = (found.printed(ask.metric, deployment, end) for end in ("slow", "best", "fast"))
    if ask.metric in SECONDS:
        low, high = high, low
    if ask.per_device and ask.metric not in SECONDS:
        low, best, high = (x / ask.n_devices for x in (low, best, high))
    bottleneck = found.prefill_bottleneck if first else found.bottleneck
    return {"value": Quantity(low, best, high, "calibrated")}, BOTTLENECKS[bottleneck]


class _phases:
    """Seconds of prefill, of a step and of a request, with the factors at the ends of their intervals."""

    def __init__(self, deployment: Deployment) -> None:
        from estimators import efficiency, estimate

        found = estimate.speed_of(deployment)
        labels, table = found.plan.main.situation, efficiency.load()
        self.prefill_s = float(np.squeeze(found.prefill.total_s))
        self.step_s = float(np.squeeze(found.decode.total_s))
        self.request_s = found.request_s
        self.n_sequences = found.n_sequences
        self.factors = {
            "best": (1.0, 1.0),
            **{
                end: tuple(efficiency.interval(table, labels, phase)[i] for phase in ("prefill", "decode"))
                for i, end in enumerate(("slow", "fast"))
            },
        }
        self.bottleneck = int(np.squeeze(estimate._bottleneck(found.decode)))
        self.prefill_bottleneck = int(np.squeeze(estimate._bottleneck(found.prefill)))

    def printed(self, metric: str, deployment: Deployment, end: str) -> float:
        from estimators.metrics import printed

        first, each = self.factors[end]
        work = deployment.workload
        table = printed(
            self.prefill_s * first,
            self.step_s * each,
            self.request_s * first,
            self.n_sequences,
            float(max(work.prompt_tokens, 1)),
            float(work.output_tokens),
        )
        return float(table[metric])


def _serving(ask: Ask) -> Prices:
    from estimators.table import BOTTLENECKS

    decode = _phases(ask.deployment)
    first = _phases((ask.prefill or ask.deployment).with_(workload=_one(ask.deployment)))
    ttft = [first.printed("ttft_ms", ask.deployment, end) for end in ("fast", "best", "slow")]
    tpot = [decode.printed("tpot_ms", ask.deployment, end) for end in ("fast", "best", "slow")]
    return (
        {"ttft_ms": Quantity(*ttft, "calibrated"), "tpot_ms": Quantity(*tpot, "calibrated")},
        BOTTLENECKS[decode.bottleneck],
    )


def _one(deployment: Deployment) -> Any:
    from dataclasses import replace

    return replace(deployment.workload, n_sequences=1)


def _memory(ask: Ask) -> Prices:
    from estimators.memory_rows import observed_bytes

    found = observed_bytes(ask.deployment, ask.metric, offloaded="offloaded" in ask.flags)
    unit = UNITS[ask.metric]
    value = Quantity(found.low / unit, found.best / unit, found.high / unit, found.origin, found.note)
    return {"value": value}, "memory"


def _llamacpp(deployment: Deployment) -> dict[str, Quantity]:
    from estimators.memory_rows import observed_bytes

    key = (deployment.model.id, deployment.scheme.id)
    if key not in _FILES:
        _FILES[key] = _file(deployment)
    cache = observed_bytes(deployment, "kv_gib").best
    compute = observed_bytes(deployment, "compute_buffer_gib")
    model_bytes, file_bytes = map(Quantity.exact, _FILES[key])
    return {
        "model_bytes": model_bytes,
        "kv_bytes": Quantity.exact(cache),
        "compute_bytes": compute,
        "file_bytes": file_bytes,
    }


#: (model, scheme) -> (bytes that the loader keeps, bytes of the file). Files repeat pairs over many settings.
_FILES: dict[tuple[str, str], tuple[float, float]] = {}


def _file(deployment: Deployment) -> tuple[float, float]:
    from modeldb import gguf_layout

    model, scheme = deployment.model, deployment.scheme
    return float(gguf_layout.model_bytes(model, scheme)), float(gguf_layout.file_bytes(model, scheme))
