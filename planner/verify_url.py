"""`plan verify --url`: TTFT, TPOT and throughput of any OpenAI-compatible server, in a closed loop of users."""

from __future__ import annotations

import json
import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from estimators.quantity import Quantity
from planner import units
from planner.errors import PlanError, UsageError
from planner.openai_client import TIMEOUT_S, Refused, Served, Server, ask, prompt
from planner.verification import Line, Verification

AGAIN_S = 0.5  # between questions to a server that still loads


@dataclass(frozen=True)
class Load:
    """A closed loop: `users` send `n_requests` in all, one after another each."""

    url: str
    model: str = ""
    users: int = 1
    n_requests: int = 4
    n_prompt: int = 512
    n_output: int = 64
    seed: int = 0
    chat: bool = False
    timeout_s: float = TIMEOUT_S


@dataclass
class Outcome:
    """All requests of a load, and what the server says of itself."""

    load: Load
    served: list[Served] = field(default_factory=list)
    failures: list[PlanError] = field(default_factory=list)
    wall_s: float = 0.0
    properties: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    server_model: str = ""
    owner: str = ""
    notes: tuple[str, ...] = ()

    @property
    def ttft_s(self) -> float:
        return float(np.median([s.ttft_s for s in self.served]))

    @property
    def tpot_s(self) -> float:
        found = [s.tpot_s for s in self.served if s.n_output > 1]
        return float(np.median(found)) if found else float("nan")

    @property
    def n_prompt(self) -> int:
        return int(np.median([s.n_prompt for s in self.served]))

    @property
    def n_output(self) -> int:
        return int(np.median([s.n_output for s in self.served]))

    @property
    def tokens_per_s(self) -> float:
        return sum(s.n_output for s in self.served) / self.wall_s

    @property
    def engine(self) -> str:
        """The engine, where the server gives itself away."""
        if self.owner == "llm-plan":
            return "llm-plan-runner"
        if any(name.startswith("vllm:") for name in self.metrics):
            return "vllm"
        if any(name.startswith("sglang:") for name in self.metrics):
            return "sglang"
        if self.properties or self.owner == "llamacpp" or self.server_model.endswith(".gguf"):
            return "llama.cpp"
        return self.owner if self.owner in ("vllm", "sglang") else ""


def run(load: Load) -> Outcome:
    """The closed loop, after one request that warms the server up (and is asked again while the server loads)."""
    server = Server(load.url, load.timeout_s)
    outcome = Outcome(load)
    rng = random.Random(load.seed)
    model = _warm_up(server, outcome, prompt(min(load.n_prompt, 16), rng))
    texts = [prompt(load.n_prompt, rng) for _ in range(load.n_requests)]
    lock = threading.Lock()

    def user() -> None:
        while True:
            with lock:
                if not texts or outcome.failures:
                    return
                text = texts.pop()
            try:
                served = ask(server, model, text, load.n_prompt, load.n_output, load.chat)
            except PlanError as error:
                with lock:
                    outcome.failures.append(error)
                return
            with lock:
                outcome.served.append(served)

    threads = [threading.Thread(target=user, daemon=True) for _ in range(load.users)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcome.wall_s = time.perf_counter() - started
    if not outcome.served:
        raise outcome.failures[0]
    outcome.metrics = parse_metrics(server.get("/metrics"))
    return outcome


def _warm_up(server: Server, outcome: Outcome, text: str) -> str:
    """The model's name for the server, once it has answered a first request. A server that loads (503), or that wants
    fewer questions (429), is asked again until the load's patience ends; one that refuses fields it does not know is
    asked without."""
    load, until = outcome.load, time.monotonic() + outcome.load.timeout_s
    while True:
        _identify(server, outcome)
        model = outcome.server_model or load.model
        try:
            ask(server, model, text, load.n_prompt, load.n_output, load.chat)
            return model
        except Refused as error:
            wait = error.wait_s if error.wait_s is not None else AGAIN_S
            if error.status in (429, 503) and time.monotonic() + wait < until:
                time.sleep(wait)
            elif error.status in (400, 422) and server.extras:
                server.extras = {}
                outcome.notes = ("the server refuses ignore_eos: answers may end early",)
            else:
                raise


def _identify(server: Server, outcome: Outcome) -> None:
    try:
        listed = json.loads(server.get("/models") or "{}").get("data") or [{}]
        outcome.server_model, outcome.owner = str(listed[0].get("id", "")), str(listed[0].get("owned_by", ""))
        outcome.properties = json.loads(server.get("/props") or "{}")
    except (ValueError, AttributeError, TypeError):
        return
    outcome.metrics = parse_metrics(server.get("/metrics"))


def parse_metrics(text: str) -> dict[str, float]:
    """Prometheus text: the sum over labels of each name."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith("#") or " " not in line:
            continue
        name, _, value = line.rpartition(" ")
        try:
            found[name.split("{")[0]] = found.get(name.split("{")[0], 0.0) + float(value)
        except ValueError:
            continue
    return found


# -- against the prediction ----------------------------------------------------------------------------------


def verification(
    outcome: Outcome, name: str, quant: str | None, engine: str | None, threads: int
) -> Verification:
    """The measured figures beside the prediction for catalogue model `name`; without a name, only measured."""
    about = "" if all(s.counted for s in outcome.served) else "about "
    notes = (
        f"{units.counted(len(outcome.served), 'request')} of {about}{outcome.n_prompt} + {outcome.n_output} tokens, "
        f"{units.counted(outcome.load.users, 'user')}"
        + (", by our count: the server tells none" if about else ""),
        *outcome.notes,
    )
    remarks = tuple(f"a request failed, and no more were sent: {e.message}" for e in outcome.failures[:1])
    subject = f"{outcome.server_model or outcome.load.url} at {outcome.load.url}"
    if not name:
        figures = (("TTFT", "s", outcome.ttft_s), ("TPOT", "s", outcome.tpot_s),
                   ("throughput", "tok/s", outcome.tokens_per_s))  # fmt: skip
        return Verification(subject, "measured only", (), remarks, notes, measured=figures)
    chosen = engine or outcome.engine
    if not chosen:
        raise UsageError("the server does not say which engine it is", "add --engine vllm (or llama.cpp ...)")
    ttft, tpot, rate = predict(outcome, name, quant, chosen, threads)
    lines = (
        Line("TTFT", "s", ttft, outcome.ttft_s, False),
        Line("TPOT", "s", tpot, outcome.tpot_s, False),
        Line("throughput", "tok/s", rate, outcome.tokens_per_s, False),
    )
    return Verification(f"{subject} as {name}", chosen, lines, remarks, notes)


def predict(
    outcome: Outcome, name: str, quant: str | None, engine: str, threads: int
) -> tuple[Quantity, Quantity, Quantity]:
    """(TTFT, TPOT, output tokens per second of wall time) for this load on this machine."""
    from estimators import reference
    from planner import deploy, measure, verify

    q = verify.question(name, quant)
    users, n_prompt, n_output = outcome.load.users, outcome.n_prompt, outcome.n_output
    if engine == reference.ENGINE:
        machine, _, _ = verify.machine_for(threads)
        d = verify.deployment(verify.Question(q.model, q.scheme, None, n_prompt, n_output), machine)
        alone = reference.predict(d)
        first, each = alone.ttft_s, alone.tpot_s
        turn = lambda f, e: f + (n_output - 1) * e  # noqa: E731
        # one after another: a request waits for those of the other users
        wait = Quantity(*((users - 1) * turn(*p) for p in zip(_ends(first), _ends(each), strict=True)))
        ttft = Quantity(first.low, first.best + wait.best, first.high + wait.high, "calibrated")
        rate = [n_output / turn(f, e) for f, e in zip(_ends(first), _ends(each), strict=True)]
        return ttft, each, Quantity(rate[2], rate[1], rate[0], "calibrated")
    from estimators.estimate import estimate

    machine = measure.this_machine()
    wish = deploy.Wish(
        engine,
        context_tokens=n_prompt + n_output,
        prompt_tokens=n_prompt,
        output_tokens=n_output,
        users=users,
    )
    found = estimate(deploy.deployment(q.model, q.scheme, machine, wish))
    first, each = found.ttft_s, found.tpot_s
    rate = [
        users * n_output / (f + (n_output - 1) * e) for f, e in zip(_ends(first), _ends(each), strict=True)
    ]
    return first, each, Quantity(rate[2], rate[1], rate[0], "calibrated")


def _ends(q: Quantity) -> tuple[float, float, float]:
    return q.low, q.best, q.high
