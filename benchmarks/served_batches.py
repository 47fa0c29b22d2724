"""What static batches and offline runs of `speed.csv` say of the engines that serve: one calibration for both.

vLLM, SGLang and TensorRT-LLM run the same kernels for a batch as for the users of a server. A whole batch takes a
prefill of all its prompts and a decode step per further token, without a queue; a drained queue is batches of as many
sequences as its cache holds (`estimators.observation.n_sequences`). Sources whose runs `fit_serving` reads as servers
are left out here, or one measurement would count twice.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import fit_speed
import numpy as np

from estimators import measurements, serving
from estimators.deployed_walk import known_walk
from estimators.observation import Observation, main_device, n_sequences
from estimators.serving_measurements import Rows


def observations(folder: Path, servers: Collection[str]) -> Rows:
    """One row per run, but for those of the sources `servers`; weighted as the fit of single streams weighs them."""
    loads, labels, seconds, names, trust = [], [], [], [], []
    for o in fit_speed.observations(folder)[0]:
        d = o.deployment
        device = main_device(d.machine, d.backend)
        known = d.engine in serving.ENGINES and d.backend == "cuda" and o.metric in WHOLE
        if o.source in servers or not known or not device:
            continue
        n = n_sequences(d, known_walk(d.model, d.scheme), device)
        work = replace(d.workload, client="static", n_sequences=max(1, round(n)), prompts_per_user=1)
        if o.metric == "ttft_ms":
            work = replace(work, output_tokens=1)
        static = d.with_(workload=work)
        loads.append(serving.load_of(static, None, 1, 1, n, False))
        labels.append(_labels(static, o))
        seconds.append(_seconds(o, n))
        names.append(f"{sorted(labels[-1].items())}{d.placement}{work.prompt_tokens}{work.output_tokens}")
        trust.append(o.trust)
    weights = measurements.trust_weights(np.array([x["source"] for x in labels]), trust)
    none = np.full(len(loads), np.nan)
    return Rows(serving.stacked(loads), labels, none, none, np.array(names), weights, np.array(seconds))


#: What a run prints that holds all its seconds, or those of its prompts.
WHOLE = frozenset({"total_throughput_tps", "output_throughput_tps", "request_throughput", "ttft_ms"})


def _seconds(o: Observation, n: float) -> float:
    """Seconds of a batch of `n`, from what was printed."""
    work = o.deployment.workload
    tokens = {
        "total_throughput_tps": work.prompt_tokens + work.output_tokens,
        "output_throughput_tps": work.output_tokens,
        "request_throughput": 1,
    }
    return o.value / 1e3 if o.metric == "ttft_ms" else n * tokens[o.metric] / o.value


def _labels(d: serving.Deployment, o: Observation) -> dict[str, str]:
    """Those of a server without clients; where nobody states the version, the year tells it from newer ones."""
    found = dict(serving.labels_of(d, False, True))
    version = f"{d.settings.year:.0f}" if d.settings.year else "unstated"
    return {
        **found,
        "client": "static",
        "version": version if found["version"] == "unstated" else found["version"],
        "device": d.machine.devices[0].id,
        "source": o.source,
    }
