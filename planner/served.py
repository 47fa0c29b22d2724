"""What the benchmarks of servers have in common: a run under load -> rows of one phase each."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from modeldb.model import Model
from planner import drafts, labels
from planner.asks import Ask, Refusal
from planner.drafts import Draft, Hints

#: Quantizations that a repository's name ends with, and how the rows spell them.
_NAMED = re.compile(
    r"(AWQ|GPTQ[-_]Int[48]|GPTQ|FP8|NVFP4|W4A16|W8A8|INT8|INT4|bnb-4bit|MXFP4|Q\d_K_[SML]|Q\d_[0K])\b",
    re.IGNORECASE,
)
ALONE = 1.05  # mean requests in flight up to which first tokens wait for nobody


@dataclass(frozen=True)
class Run:
    """One run of a load generator. Lengths are means over the completed requests; `in_flight` is the mean
    number of requests in the server (Little's law where the tool does not print it), None where nothing
    tells it."""

    where: str
    engine: str
    model: str
    quant: str
    date: str
    n_devices: int
    in_flight: float | None
    most_in_flight: int | None
    completed: int
    failed: int
    prompt_tokens: float
    output_tokens: float
    tpot_ms: float | None
    tpot_deviation_ms: float | None
    ttft_ms: float | None
    ttft_deviation_ms: float | None
    speculative: bool
    gpu: str = ""
    version: str = ""
    settings: str = ""


def little(request_rate: float | None, latency_s: float | None) -> float | None:
    """Mean requests in the server: arrivals per second times seconds each stays (Little 1961)."""
    return request_rate * latency_s if request_rate and latency_s else None


def rows(run: Run, hints: Hints) -> list[Draft]:
    """The time per output token, and the time to the first one where it waited for nobody."""
    label = f"{run.model} under {run.engine}"
    if reason := _unusable(run):
        return [drafts.refused(run.where, label, reason)]
    engine = hints.engine or labels.engine(run.engine)
    if not engine:
        return [
            drafts.refused(run.where, label, f"engine `{run.engine}` is not known; name it with --engine")
        ]
    device, n_devices = drafts.device(run.gpu, hints, run.where)
    model = drafts.model((run.model,), hints)
    if isinstance(model, Refusal):
        return [drafts.refused(run.where, label, f"{model.reason}; name it with --model")]
    named = _NAMED.search(run.model)
    quant = run.quant or (named[1] if named else "")
    if quant or hints.quant:
        scheme = drafts.scheme(quant, engine, model, hints)
        if isinstance(scheme, Refusal):
            return [drafts.refused(run.where, label, f"{scheme.reason}; name it with --quant")]
        quant = scheme.id
    users = max(1, round(run.in_flight if run.in_flight is not None else run.most_in_flight or 1))
    row = _fields(run, engine, device.id, max(n_devices, run.n_devices), model, quant, users)
    times = (("tpot_ms", run.tpot_ms, run.tpot_deviation_ms), ("ttft_ms", run.ttft_ms, run.ttft_deviation_ms))
    found = [
        _draft(run, f"{label}, {metric} at {users} in flight", {**row, "metric": metric}, value, deviation)
        for metric, value, deviation in times
        if value and value > 0
    ]
    return found or [drafts.refused(run.where, label, "it holds no time per output token")]


def _draft(run: Run, label: str, row: dict[str, str], value: float, deviation: float | None) -> Draft:
    """One of the run's mean times. First tokens count only where they waited for nobody."""
    users = float(row["batch_or_concurrency"])
    if row["metric"] == "ttft_ms" and (users if run.in_flight is None else run.in_flight) > ALONE:
        why = "first tokens waited for other requests: a property of the load"
        return drafts.refused(run.where, label, why)
    spread, refine = _of_mean(deviation, run.completed), _closed if users > 1 else None
    return Draft(run.where, label, row, value, (), spread, run.date, run.settings, refine=refine)


def _unusable(run: Run) -> str:
    if run.speculative:
        return "speculative decoding: its rate is not that of the model"
    if run.failed:
        return f"{run.failed} requests failed: what the others took is not the rule"
    if run.completed < 1 or run.prompt_tokens < 1 or run.output_tokens < 2:
        return "it has no completed requests with two or more output tokens"
    users = max(run.in_flight or 0, run.most_in_flight or 0)
    if max(run.prompt_tokens, run.output_tokens, users) > drafts.MOST_TOKENS or users < 0:
        return "its lengths cannot be"
    if run.in_flight is None and run.most_in_flight is None:
        return "it does not say how many requests were in flight"
    return ""


def _of_mean(deviation: float | None, n: int) -> float | None:
    """Requests differ in length: what matters is how well their mean is known."""
    return None if deviation is None else deviation / max(1, n) ** 0.5


def _closed(ask: Ask) -> Ask:
    """A mean number of requests in flight is a closed loop of as many users."""
    work = replace(ask.deployment.workload, client="closed")
    return replace(ask, deployment=ask.deployment.with_(workload=work))


def _fields(
    run: Run, engine: str, device: str, n_devices: int, model: Model, quant: str, users: int
) -> dict[str, str]:
    return drafts.fields(
        date_if_known=run.date,
        hardware_canonical=device,
        n_devices=n_devices,
        engine=engine,
        engine_version_or_build=run.version,
        model_canonical=model.id,
        quant=quant,
        batch_or_concurrency=users,
        input_tokens=round(run.prompt_tokens),
        output_tokens=round(run.output_tokens),
        depth=0,
    )
