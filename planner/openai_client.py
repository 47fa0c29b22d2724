"""One streamed request to an OpenAI-compatible server, timed as a client sees it."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from planner.errors import EnvironmentFailed, UsageError

TIMEOUT_S = 600.0
CONNECT_S = 10.0
LONGEST_LINE = 1 << 20
WORDS = ["time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state",
         "family", "student", "group"]  # fmt: skip
TEXTS = ("content", "reasoning_content", "reasoning")  # vLLM and SGLang have had both names for thoughts
# what not every server knows: run to the last token, count them
EXTRAS: dict[str, Any] = {"ignore_eos": True, "stream_options": {"include_usage": True}}


class Refused(EnvironmentFailed):
    """The server answered with a status that is no success; `wait_s` where it says when to come back."""

    def __init__(self, message: str, hint: str, status: int, wait_s: float | None) -> None:
        super().__init__(message, hint)
        self.status, self.wait_s = status, wait_s


@dataclass(frozen=True)
class Served:
    """One request as a client sees it: seconds to the first text and to the last; tokens by the server's count
    (`counted`), else by its events and by what was asked."""

    ttft_s: float
    total_s: float
    n_prompt: int
    n_output: int
    counted: bool = True

    @property
    def tpot_s(self) -> float:
        return (self.total_s - self.ttft_s) / (self.n_output - 1) if self.n_output > 1 else float("nan")


class Server:
    """Requests to one base URL (`http://127.0.0.1:8080/v1`; `/v1` is meant where it names no path). `extras` are
    added to every request."""

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"`{url[:60]}` is not the address of a server", "use http://127.0.0.1:8080/v1")
        try:
            self.port = parts.port
        except ValueError:
            raise UsageError(f"`{url[:60]}` has no usable port", "use http://127.0.0.1:8080/v1") from None
        self.secure, self.host, self.url = parts.scheme == "https", parts.hostname, url
        self.base = parts.path.rstrip("/") or "/v1"
        self.timeout_s, self.extras = timeout_s, EXTRAS

    def _connect(self) -> HTTPConnection:
        kind = HTTPSConnection if self.secure else HTTPConnection
        connection = kind(self.host, self.port, timeout=min(CONNECT_S, self.timeout_s))
        try:
            connection.connect()
        except TimeoutError:
            raise EnvironmentFailed(
                f"{self.url}: no connection within {CONNECT_S:.0f} s", "is it running?"
            ) from None
        except OSError as error:
            raise _unreachable(self.url, error) from None
        assert connection.sock is not None
        connection.sock.settimeout(self.timeout_s)
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def get(self, path: str) -> str:
        """The body, or "" where the server has no such page. `/metrics` and `/props` lie beside `/v1`."""
        base = self.base if path == "/models" else self.base.removesuffix("/v1")
        connection = self._connect()
        try:
            connection.request("GET", base + path)
            answer = connection.getresponse()
            body = answer.read(8 << 20).decode("utf-8", "replace")
            return body if answer.status == 200 else ""
        except (OSError, HTTPException):
            return ""
        finally:
            connection.close()

    def events(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The JSON of each server-sent event. Raises EnvironmentFailed with one line: Refused for a status, else for
        silence beyond `timeout_s` (comments that keep a connection alive are silence too) or a broken stream."""
        connection, where = self._connect(), f"{self.url}{path}"
        try:
            connection.request(
                "POST", self.base + path, json.dumps(body), {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            if answer.status != 200:
                raise _refusal(where, answer)
            if answer.headers.get_content_type() == "application/json":
                raise EnvironmentFailed(
                    f"{where} does not stream: it answered in one piece", "stream with SSE"
                )
            yield from self._data(answer, where)
        except TimeoutError:
            raise EnvironmentFailed(
                f"{where}: no token for {self.timeout_s:g} s",
                "--timeout waits longer; fewer --prompt tokens or --users need less",
            ) from None
        except (OSError, HTTPException, ValueError) as error:
            raise _unreachable(where, error) from None
        finally:
            connection.close()

    def _data(self, answer: HTTPResponse, where: str) -> Iterator[dict[str, Any]]:
        heard, finished = time.monotonic(), False
        while True:
            line = answer.readline(LONGEST_LINE)
            if not line.endswith(b"\n") and not finished and _cut_off(answer):
                raise EnvironmentFailed(f"{where}: the stream was cut off", "see the server's log")
            if not line or line.strip() == b"data: [DONE]":
                return
            if line.startswith(b"data:"):
                event = json.loads(line[5:])
                if not isinstance(event, dict):
                    raise ValueError("an event that is no object")
                if event.get("error"):
                    raise EnvironmentFailed(
                        f"{where} broke off: {_said(json.dumps(event))}", "see the server's log"
                    )
                heard, finished = time.monotonic(), finished or _finished(event)
                yield event
            elif time.monotonic() - heard > self.timeout_s:
                raise TimeoutError


def _cut_off(answer: HTTPResponse) -> bool:
    """Whether an answer that gives no more is not at its end: bytes, or the last chunk (of no bytes), are missing."""
    return bool(answer.length) or (answer.chunked and getattr(answer, "chunk_left", None) is not None)


def _unreachable(url: str, error: Exception) -> EnvironmentFailed:
    return EnvironmentFailed(
        f"{url}: {type(error).__name__}: {' '.join(str(error).split())[:120]}", "is it running?"
    )


def _refusal(where: str, answer: HTTPResponse) -> Refused:
    said = _said(answer.read(2000).decode("utf-8", "replace"))
    wait = answer.headers.get("Retry-After", "")
    hints = {
        401: "the server wants a key: run one that does not, on this machine",
        404: "add the path of its API: http://127.0.0.1:8080/v1",
        429: "fewer --users: it takes no more at the same time",
        503: "it may still load: --timeout waits longer",
    }
    hint = hints.get(answer.status, "see the server's log")
    return Refused(f"{where} answered {answer.status}: {said}", hint, answer.status,
                   float(wait) if wait.isdigit() else None)  # fmt: skip


def _said(body: str) -> str:
    """The server's own sentence, in one line."""
    try:
        found = json.loads(body)
        error = found.get("error", found) if isinstance(found, dict) else found
        body = error["message"] if isinstance(error, dict) and "message" in error else str(error)
    except ValueError:
        pass
    return " ".join(str(body).split())[:200] or "nothing"


def _choices(event: dict[str, Any]) -> Iterator[dict[str, Any]]:
    found = event.get("choices")
    return (c for c in found if isinstance(c, dict)) if isinstance(found, list) else iter(())


def _finished(event: dict[str, Any]) -> bool:
    return any(choice.get("finish_reason") for choice in _choices(event))


def _has_text(event: dict[str, Any]) -> bool:
    """Whether an event brings text: not one that only names a role, or counts."""
    for choice in _choices(event):
        delta = choice.get("delta")
        if choice.get("text") or (isinstance(delta, dict) and any(delta.get(name) for name in TEXTS)):
            return True
    return False


def prompt(n_tokens: int, rng: random.Random) -> str:
    """About `n_tokens` tokens of plain words, different each time, so that no prefix cache helps."""
    return " ".join(rng.choice(WORDS) for _ in range(max(1, n_tokens)))


def ask(server: Server, model: str, text: str, n_prompt: int, n_output: int, chat: bool = False) -> Served:
    """One streamed request of about `n_prompt` tokens. Raises EnvironmentFailed."""
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": n_output,
        "stream": True,
        "temperature": 0,
        **server.extras,
    }
    body |= {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
    path = "/chat/completions" if chat else "/completions"
    started = time.perf_counter()
    times: list[float] = []
    usage: dict[str, Any] = {}
    for event in server.events(path, body):
        if isinstance(event.get("usage"), dict):
            usage = event["usage"]
        if _has_text(event):
            times.append(time.perf_counter())
    if not times:
        raise EnvironmentFailed(f"{server.url}{path}: an answer without text", "" if chat else "try --chat")
    first, last = times[0] - started, times[-1] - started
    n_in, n_out = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if isinstance(n_in, int) and isinstance(n_out, int) and n_in > 0 and n_out > 0:
        return Served(first, last, n_in, n_out)
    return Served(first, last, n_prompt, len(times), counted=False)
