"""`plan verify --url`: TTFT, TPOT and throughput of any OpenAI-compatible server, in a closed loop of users."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from estimators.quantity import Quantity
from planner.errors import EnvironmentFailed, UsageError
from planner.verify import Line, Verification

TIMEOUT_S = 600.0
WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
]


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


@dataclass(frozen=True)
class Served:
    """One request as a client sees it: seconds to the first text and to the last, tokens by the server's count
    (else by its events)."""

    ttft_s: float
    total_s: float
    n_prompt: int
    n_output: int

    @property
    def tpot_s(self) -> float:
        return (self.total_s - self.ttft_s) / (self.n_output - 1) if self.n_output > 1 else float("nan")


@dataclass
class Outcome:
    """All requests of a load, and what the server says of itself."""

    load: Load
    served: list[Served] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    wall_s: float = 0.0
    properties: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    server_model: str = ""
    owner: str = ""

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


class Server:
    """Requests to one base URL (`http://127.0.0.1:8080/v1`)."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"`{url[:60]}` is not the address of a server", "use http://127.0.0.1:8080/v1")
        try:
            self.port = parts.port
        except ValueError:
            raise UsageError(f"`{url[:60]}` has no usable port", "use http://127.0.0.1:8080/v1") from None
        self.secure, self.host, self.url = parts.scheme == "https", parts.hostname, url
        self.base = parts.path.rstrip("/")

    def _connect(self) -> HTTPConnection:
        kind = HTTPSConnection if self.secure else HTTPConnection
        return kind(self.host, self.port, timeout=TIMEOUT_S)

    def get(self, path: str) -> str:
        """The body, or "" where the server has no such page. `/metrics` and `/props` lie beside `/v1`."""
        base = self.base if path == "/models" else self.base.removesuffix("/v1")
        connection = self._connect()
        try:
            connection.request("GET", base + path)
            answer = connection.getresponse()
            body = answer.read(8 << 20).decode("utf-8", "replace")
            return body if answer.status == 200 else ""
        except (OSError, HTTPException) as error:
            raise _unreachable(self.url, error) from None
        finally:
            connection.close()

    def events(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The JSON of each server-sent event."""
        connection = self._connect()
        try:
            content = json.dumps(body)
            connection.request("POST", self.base + path, content, {"Content-Type": "application/json"})
            if connection.sock is not None:
                connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            answer = connection.getresponse()
            if answer.status != 200:
                said = " ".join(answer.read(2000).decode("utf-8", "replace").split())[:200]
                raise EnvironmentFailed(
                    f"{self.url}{path} answered {answer.status}: {said}", "plan verify --help"
                )
            while line := answer.readline(1 << 20):
                if line.startswith(b"data:"):
                    data = line[5:].strip()
                    if data == b"[DONE]":
                        return
                    yield json.loads(data)
        except (OSError, HTTPException, ValueError) as error:
            raise _unreachable(self.url, error) from None
        finally:
            connection.close()


def _unreachable(url: str, error: Exception) -> EnvironmentFailed:
    return EnvironmentFailed(
        f"{url}: {type(error).__name__}: {' '.join(str(error).split())[:120]}", "is it running?"
    )


def prompt(n_tokens: int, rng: random.Random) -> str:
    """About `n_tokens` tokens of plain words, different each time, so that no prefix cache helps."""
    return " ".join(rng.choice(WORDS) for _ in range(max(1, n_tokens)))


def ask(server: Server, load: Load, model: str, text: str) -> Served:
    """One streamed request."""
    body: dict[str, Any] = {
        "model": model, "max_tokens": load.n_output, "stream": True, "temperature": 0, "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    body |= {"messages": [{"role": "user", "content": text}]} if load.chat else {"prompt": text}
    started = time.perf_counter()
    first = last = None
    n_events = 0
    usage: dict[str, Any] = {}
    for event in server.events("/chat/completions" if load.chat else "/completions", body):
        usage = event.get("usage") or usage
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            if choice.get("text") or delta.get("content") or delta.get("reasoning_content"):
                last = time.perf_counter()
                first, n_events = first or last, n_events + 1
    if first is None or last is None:
        raise EnvironmentFailed(f"{load.url}: an answer without text", "try --chat")
    n_prompt = int(usage.get("prompt_tokens") or load.n_prompt)
    return Served(first - started, last - started, n_prompt, int(usage.get("completion_tokens") or n_events))


def run(load: Load) -> Outcome:
    """The closed loop, after one request that warms the server up."""
    server = Server(load.url)
    outcome = Outcome(load)
    _identify(server, outcome)
    model = load.model if not outcome.server_model else outcome.server_model
    rng = random.Random(load.seed)
    ask(server, load, model, prompt(min(load.n_prompt, 16), rng))
    texts = [prompt(load.n_prompt, rng) for _ in range(load.n_requests)]
    lock = threading.Lock()

    def user() -> None:
        while True:
            with lock:
                if not texts or outcome.failures:
                    return
                text = texts.pop()
            try:
                served = ask(server, load, model, text)
            except EnvironmentFailed as error:
                with lock:
                    outcome.failures.append(error.message)
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
    outcome.metrics = parse_metrics(server.get("/metrics"))
    if not outcome.served:
        raise EnvironmentFailed(
            outcome.failures[0] if outcome.failures else "no request was served", "is it running?"
        )
    return outcome


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
    notes = [
        f"{len(outcome.served)} requests of {outcome.n_prompt} + {outcome.n_output} tokens, {outcome.load.users} users",
        *(f"failed: {f}" for f in outcome.failures[:3]),
    ]
    subject = f"{outcome.server_model or outcome.load.url} at {outcome.load.url}"
    if not name:
        return Verification(subject, "measured only", (), (), (*notes, figures(outcome)))
    chosen = engine or outcome.engine
    if not chosen:
        raise UsageError("the server does not say which engine it is", "add --engine vllm (or llama.cpp ...)")
    ttft, tpot, rate = predict(outcome, name, quant, chosen, threads)
    lines = (
        Line("TTFT", "s", ttft, outcome.ttft_s, False),
        Line("TPOT", "s", tpot, outcome.tpot_s, False),
        Line("throughput", "tok/s", rate, outcome.tokens_per_s, False),
    )
    return Verification(f"{subject} as {name}", chosen, lines, (), tuple(notes))


def figures(outcome: Outcome) -> str:
    """The measured figures in a line."""
    from planner import units

    return (
        f"TTFT {units.format_seconds(outcome.ttft_s)}, TPOT {units.format_seconds(outcome.tpot_s)}, "
        f"{units.format_rate(outcome.tokens_per_s)} tok/s"
    )


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
