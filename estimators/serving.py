"""Serving: mean time to first token and time per output token of requests that share a server.

`predict` is calibrated on public measurements of vLLM, SGLang and TensorRT-LLM (`serving_rates`, `serving_model`). The
plain queue formulas below it serve engines that nobody measured under load.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from estimators import formats
from estimators.deployed_walk import known_walk
from estimators.deployment import Deployment
from estimators.efficiency import STRUCTURES, structure_index
from estimators.errors import CannotPrice
from estimators.observation import (
    bandwidth_bytes_per_s,
    device_peaks,
    kv_bytes,
    link_bytes_per_s,
    main_device,
)
from estimators.peaks import family
from estimators.peaks import tier as memory
from estimators.quantity import Quantity
from estimators.serving_model import Load, Served, Worker, serve
from estimators.serving_rates import Labels, interval, latents, load, shape_label, shares_matrices, tier
from estimators.traits import traits
from estimators.walk import Number, Walk
from hwdb.device import Device

ENGINES = frozenset({"vllm", "sglang", "trt-llm"})
CLIENTS = frozenset({"burst", "closed", "poisson"})
DOCUMENTED_PROMPTS = 10  # per user, of the InferenceX protocol; other numbers come from undocumented clients
#: Structures whose releases have draft heads (multi-token prediction); their rows do not say when these were on.
DRAFTING = frozenset({"mla", "sparse", "hybrid", "hybrid-moe"})
# of these structures, but its configuration has no layer that predicts further tokens
NO_DRAFT_HEADS = "kimi-k2"
STEADY_PROMPTS = 1e6  # per user of a Poisson stream: nobody starts together
ARRIVAL_ROUNDS = 12
FLAGS = ("disaggregated", "drafts", "may_draft", "prompts_first", "at_once", "ragged")  # of a load
#: SGLang schedules waiting prompts before it decodes on; vLLM and TensorRT-LLM mix both in one step.
PROMPTS_FIRST = frozenset({"sglang"})
RAGGED_SPREAD = 1.5  # longest answer over the mean one, from which lengths count as those of conversations
RAISED = 2025.3  # vLLM's engine v1 runs 1024 sequences by default on large devices, before 256
UNCAPPED = 1e9  # sequences: whoever measures a closed loop raises the scheduler's cap to its users


def applies(d: Deployment) -> bool:
    """Whether `predict` knows servers of this kind: a measured engine on accelerators, several requests at once."""
    work = d.workload
    served = d.engine in ENGINES and d.backend == "cuda" and bool(d.machine.devices)
    return served and work.client in CLIENTS and (work.n_sequences > 1 or work.client == "poisson")


def predict(
    decode: Deployment,
    prefill: Deployment | None = None,
    workers: int | None = 1,
    prefill_workers: int | None = 1,
    concurrency: int | None = None,
    may_draft: bool = False,
    drafts: bool = False,
) -> tuple[Quantity, Quantity, str]:
    """(TTFT, TPOT, bottleneck) in seconds, means over the requests of `decode.workload`'s client.

    `prefill` is the deployment of separate prefill workers. `concurrency` counts the users of the whole system (None:
    `n_sequences` of the workload for each decode worker). `workers` None: nobody said how many. `may_draft`: nobody
    said that speculation was off; `drafts`: somebody said that it was on.

    Raises:
        CannotPrice: the device's bandwidth or arithmetic is not known.
    """
    found, labels = _served(decode, prefill, workers, prefill_workers, concurrency, may_draft, drafts)
    answer = _answer(found, labels)
    return answer.ttft_s, answer.tpot_s, answer.bottleneck


@dataclass(frozen=True)
class Answer:
    """Means over the requests, in seconds; `parts` add up to the best `tpot_s`; `n_running` sequences at once."""

    ttft_s: Quantity
    tpot_s: Quantity
    bottleneck: str
    parts: dict[str, float]
    n_running: float


def answer(d: Deployment) -> Answer:
    """What one aggregated server does with its workload, and why. Raises CannotPrice."""
    return _answer(*_served(d, None, 1, 1, None, False, False))


def source() -> str:
    """Where the calibration comes from."""
    return str(load().provenance["source"])


def _answer(found: Served, labels: Labels) -> Answer:
    parts = {name: float(seconds) for name, seconds in found.parts.items()}
    largest = max(parts, key=lambda name: parts[name])
    held = load()
    where = tier(held, labels)
    never = {
        "seen": "",
        "model": f"{labels['model']} was never measured under load with {labels['engine']}",
        "device": f"no device of this kind was measured under load with {labels['engine']}",
    }
    quantities = []
    for metric, seconds in (("ttft", float(found.ttft_s)), ("tpot", float(found.tpot_s))):
        fast, slow = interval(held, labels, metric)
        quantities.append(Quantity(seconds * fast, seconds, seconds * slow, "calibrated", never[where]))
    bottleneck = "compute" if largest == "prefill" else largest  # the prompts of others
    return Answer(quantities[0], quantities[1], bottleneck, parts, float(found.n_running))


def _served(
    decode: Deployment,
    prefill: Deployment | None,
    workers: int | None,
    prefill_workers: int | None,
    concurrency: int | None,
    may_draft: bool,
    drafts: bool,
) -> tuple[Served, Labels]:
    users = concurrency or decode.workload.n_sequences * (workers or 1)
    asked = load_of(decode, prefill, workers, prefill_workers, users, may_draft, drafts)
    labels = labels_of(decode, prefill is not None, workers is not None, speculation(may_draft, drafts))
    rates = latents(load(), labels)
    rate = decode.workload.requests_per_s
    if decode.workload.client != "poisson" or not rate:
        return serve(asked, rates), labels
    found = serve(asked, rates)
    for _ in range(ARRIVAL_ROUNDS):  # Little's law: users = rate x time in the system; damped, it settles
        stay = float(found.ttft_s + found.tpot_s * asked.output_tokens)
        level = min(float(asked.n_users + rate * stay) / 2.0, float(users) if users > 1 else np.inf)
        asked = load_of(decode, prefill, workers, prefill_workers, max(level, 1.0), may_draft, drafts)
        found = serve(asked, rates)
    return found, labels


def load_of(
    decode: Deployment,
    prefill: Deployment | None,
    workers: int | None,
    prefill_workers: int | None,
    concurrency: float,
    may_draft: bool,
    drafts: bool = False,
) -> Load:
    """The numbers that the closed form takes."""
    work = decode.workload
    prompts = {"burst": 1.0, "closed": float(max(work.prompts_per_user, 1)), "static": 1.0}
    main = worker(decode)
    drafting = may_draft and not drafts and _has_draft_heads(decode)
    return Load(
        decode=main,
        prefill=worker(prefill) if prefill else main,
        disaggregated=np.bool_(prefill is not None),
        n_users=float(concurrency),
        n_workers=float(workers or 0),
        n_prefill_workers=float((prefill_workers or 0) if workers else 0),
        prompt_tokens=float(max(work.prompt_tokens, 1)),
        output_tokens=float(max(work.output_tokens, 1)),
        prompts_per_user=prompts.get(work.client, STEADY_PROMPTS),
        drafts=np.bool_(drafts),
        may_draft=np.bool_(drafting),
        most_sequences=_most_sequences(decode) if work.client == "burst" else UNCAPPED,
        chunk_tokens=chunk_tokens(
            decode.engine, main_device(decode.machine, decode.backend), decode.settings.batch_tokens
        ),
        prompts_first=np.bool_(decode.engine in PROMPTS_FIRST),
        at_once=np.bool_(work.client == "burst"),
        ragged=np.bool_(work.output_spread > RAGGED_SPREAD),
    )


def _has_draft_heads(d: Deployment) -> bool:
    structure = STRUCTURES[int(structure_index(known_walk(d.model, d.scheme)))]
    return structure in DRAFTING and not d.model.id.startswith(NO_DRAFT_HEADS)


def small(device: Device | None) -> bool:
    """Whether vLLM starts with the modest defaults that it keeps for devices under 70 GiB and for the A100
    (`EngineArgs.get_batch_defaults`)."""
    return device is None or (device.memory_bytes or 0) < 70e9 or "a100" in device.id


def chunk_tokens(engine: str, device: Device | None, stated: int | None) -> float:
    """New tokens of one step: --max-num-batched-tokens, --chunked-prefill-size, --max_num_tokens."""
    if stated:
        return float(stated)
    return 2048.0 if engine == "vllm" and small(device) else float(traits(engine).chunk_tokens)


def _most_sequences(d: Deployment) -> float:
    """Sequences that the scheduler runs at once by default."""
    if d.engine == "vllm" and not small(main_device(d.machine, d.backend)):
        year = d.settings.year
        return 256.0 if year and year < RAISED else 1024.0
    return float(traits(d.engine).max_sequences)


def worker(d: Deployment) -> Worker:
    """The devices that hold one copy. Raises CannotPrice."""
    device = main_device(d.machine, d.backend)
    bandwidth = device and bandwidth_bytes_per_s(device, d.backend, None)
    rates = device and device_peaks(d, device, formats.class_of(d.scheme, d.model.hidden_size))
    if not device or not bandwidth or not rates:
        raise CannotPrice("the memory bandwidth or the arithmetic rate of the device is not known")
    tensor, data = _ranks(d)
    return Worker(
        walk=known_walk(d.model, d.scheme),
        n_tensor=float(tensor),
        n_data=float(data),
        n_stages=float(d.placement.pipeline_parallel),
        bandwidth_bytes_per_s=bandwidth,
        matrix_flops=rates.matrix,
        attention_flops=rates.attention,
        link_bytes_per_s=link_bytes_per_s(device),
        memory_bytes=float(device.memory_bytes or 0),
        kv_bytes=kv_bytes(d.settings.kv_type_k),
    )


def _ranks(d: Deployment) -> tuple[int, int]:
    """(devices per matrix of attention, copies of attention)."""
    placed = d.placement
    if not shares_matrices(placed.tensor_parallel):
        return 1, placed.tensor_parallel * placed.data_parallel
    return placed.tensor_parallel, placed.data_parallel


def speculation(may_draft: bool, drafts: bool) -> str:
    """What is known of speculation."""
    return "on" if drafts else "unsaid" if may_draft else "off"


def labels_of(d: Deployment, disaggregated: bool, stated: bool, speculation: str = "off") -> Labels:
    """What the calibration may know about a server."""
    device = main_device(d.machine, d.backend)
    walk, work = known_walk(d.model, d.scheme), d.workload
    other_client = work.client == "closed" and work.prompts_per_user < DOCUMENTED_PROMPTS
    client = "undocumented" if other_client else "at once" if work.client == "burst" else "documented"
    total = not shares_matrices(d.placement.tensor_parallel)
    return {
        "engine": d.engine,
        "version": d.settings.engine_version.removeprefix("v") or "unstated",
        "model": d.model.id,
        "format": formats.SERVED[formats.served_index(d.scheme)],
        "family": family(device) if device else "",
        "memory": memory(device) if device else "",
        "structure": STRUCTURES[int(structure_index(walk))],
        "shape": shape_label(walk.n_layers, walk.hidden_size),
        "mode": "apart" if disaggregated else "together",
        "client": client,
        "stated": "stated" if stated or not disaggregated else "total" if total else "unstated",
        "attention": "data" if _ranks(d)[1] > 1 else "tensor",
        "speculation": speculation,
    }


def stacked(loads: list[Load]) -> Load:
    """Many loads as one of arrays: the closed form broadcasts."""

    def workers(those: list[Worker]) -> Worker:
        walks = [w.walk for w in those]
        walk = Walk(
            **{f.name: np.array([getattr(w, f.name) for w in walks], dtype=float) for f in fields(Walk)}
        )
        rest = [f.name for f in fields(Worker) if f.name != "walk"]
        return Worker(walk=walk, **{n: np.array([getattr(w, n) for w in those], dtype=float) for n in rest})

    rest = [f.name for f in fields(Load) if f.name not in ("decode", "prefill", *FLAGS)]
    return Load(
        decode=workers([x.decode for x in loads]),
        prefill=workers([x.prefill for x in loads]),
        **{n: np.array([getattr(x, n) for x in loads], dtype=bool) for n in FLAGS},
        **{n: np.array([getattr(x, n) for x in loads], dtype=float) for n in rest},
    )


def closed_loop_first_token_s(prefill_s: Number, n_users: Number, prompts_per_user: Number) -> Number:
    """Mean seconds to the first token when each of `n_users` sends its next prompt as soon as it is answered.

    All users start at once: their first prompts wait (n + 1) / 2 prefills on average. Later prompts come one by one
    and wait for their own prefill only.
    """
    users, prompts = np.maximum(n_users, 1.0), np.maximum(prompts_per_user, 1.0)
    return prefill_s * (1.0 + (users - 1.0) / (2.0 * prompts))


def burst_first_token_s(prefill_s: Number, answer_s: Number, n_requests: Number, n_running: Number) -> Number:
    """Mean seconds to the first token of `n_requests` that arrive at once, of which `n_running` run together.

    The first `n_running` wait for each other's prefills; each later one takes the place of one that is answered
    after `answer_s`, so the i-th waits i / n_running answers.
    """
    running = np.clip(n_running, 1.0, np.maximum(n_requests, 1.0))
    waves = n_requests / running - 1.0
    return prefill_s * (running + 1.0) / 2.0 + np.maximum(waves, 0.0) / 2.0 * answer_s
