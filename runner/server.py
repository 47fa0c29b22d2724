"""An OpenAI-compatible server over one engine: /v1/models, /v1/completions, /v1/chat/completions (with SSE),
/health, /props and /metrics. Requests are served one after another; the rest wait.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runner import generate
from runner.errors import RunnerError
from runner.sampling import Sampling

if TYPE_CHECKING:
    from runner.engine import Engine
    from runner.tokenizer import Numbered, Vocabulary

MAX_BODY_BYTES = 8 << 20


@dataclass
class Totals:
    """What /metrics reports."""

    requests: int = 0
    waiting: int = 0
    prompt_tokens: int = 0
    prompt_s: float = 0.0
    output_tokens: int = 0
    output_s: float = 0.0


@dataclass
class Service:
    """One engine and its vocabulary, used by one request at a time."""

    engine: Engine
    vocabulary: Vocabulary | Numbered
    name: str
    totals: Totals = field(default_factory=Totals)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def tokens(self, body: dict[str, Any], chat: bool) -> list[int]:
        """The prompt of a request. Raises RunnerError when it makes no sense."""
        if chat:
            messages = body.get("messages")
            if (
                not isinstance(messages, list)
                or not messages
                or not all(isinstance(m, dict) for m in messages)
            ):
                raise RunnerError("`messages` is a list of {role, content}")
            return self.vocabulary.chat(
                [{"role": str(m.get("role", "user")), "content": _text(m)} for m in messages]
            )
        prompt = body.get("prompt", "")
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
            prompt = prompt[0]
        if isinstance(prompt, list) and prompt and all(type(t) is int for t in prompt):
            return prompt
        if not isinstance(prompt, str) or not prompt:
            raise RunnerError("`prompt` is a text or a list of token numbers")
        return self.vocabulary.encode(prompt)

    def job(self, body: dict[str, Any], chat: bool) -> Job:
        """The request, checked."""
        prompt = self.tokens(body, chat)
        room = self.engine.n_context - len(prompt)
        if room < 1:
            raise RunnerError(f"{len(prompt)} tokens do not fit the context of {self.engine.n_context}")
        if any(t < 0 or t >= self.engine.vocab_size for t in prompt):
            raise RunnerError(f"a token is outside the vocabulary of {self.engine.vocab_size}")
        wanted = _number(
            body, "max_completion_tokens", _number(body, "max_tokens", 256 if not chat else room)
        )
        sampling = Sampling(
            temperature=float(_number(body, "temperature", 1.0)), top_k=int(_number(body, "top_k", 0)),
            top_p=float(_number(body, "top_p", 1.0)), min_p=float(_number(body, "min_p", 0.0)),
            repetition_penalty=float(_number(body, "repetition_penalty", 1.0)), seed=int(_number(body, "seed", 0)),
        )  # fmt: skip
        stop = body.get("stop") or ()
        words = (stop,) if isinstance(stop, str) else tuple(str(s) for s in stop)
        return Job(prompt, max(1, min(int(wanted), room)), sampling, words, bool(body.get("ignore_eos")))

    def run(self, job: Job) -> Iterator[Piece]:
        """Pieces of text as they come; the last has the reason why it ends. Holds the engine meanwhile."""
        from runner.tokenizer import pieces

        self.totals.waiting += 1
        with self.lock:
            self.totals.waiting -= 1
            self.totals.requests += 1
            self.engine.rewind(0)
            made: list[generate.Step] = []
            stops = frozenset() if job.ignore_eos else self.vocabulary.stops

            def tokens() -> Iterator[int]:
                for step in generate.stream(self.engine, job.prompt, job.sampling, job.n_tokens, stops):
                    made.append(step)
                    self._count(step, first=len(made) == 1, n_prompt=len(job.prompt))
                    yield step.token

            text, reason = "", ""
            for piece in pieces(self.vocabulary, tokens()):
                before, text = len(text), text + piece
                cut = min((text.find(w) for w in job.stop if w in text), default=-1)
                if cut >= 0:
                    piece, reason = text[before:cut], "stop"
                if piece:
                    yield Piece(piece, len(made))
                if reason:
                    break
            yield Piece("", len(made), reason or ("length" if len(made) >= job.n_tokens else "stop"))

    def _count(self, step: generate.Step, first: bool, n_prompt: int) -> None:
        if first:
            self.totals.prompt_tokens += n_prompt
            self.totals.prompt_s += step.seconds
        else:
            self.totals.output_s += step.seconds
        self.totals.output_tokens += 1


@dataclass(frozen=True)
class Job:
    """A checked request."""

    prompt: list[int]
    n_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]
    ignore_eos: bool


@dataclass(frozen=True)
class Piece:
    """Text, the tokens generated so far, and at the end the reason."""

    text: str
    n_tokens: int
    reason: str = ""


def _number(body: dict[str, Any], key: str, default: float) -> float:
    value = body.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) > 1e15:
        raise RunnerError(f"`{key}` is a number")
    return value


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")


# -- HTTP ----------------------------------------------------------------------------------------------------


def app(service: Service) -> Any:
    """The FastAPI application."""
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse, PlainTextResponse

    made = FastAPI(title="llm-plan runner", docs_url=None, redoc_url=None, openapi_url=None)

    async def models(request: Any) -> Any:
        entry = {
            "id": service.name,
            "object": "model",
            "owned_by": "llm-plan",
            "max_model_len": service.engine.n_context,
        }
        return JSONResponse({"object": "list", "data": [entry]})

    async def props(request: Any) -> Any:
        e = service.engine
        return JSONResponse({
            "model_path": service.name, "n_ctx": e.n_context, "total_slots": 1, "n_threads": e.n_threads,
            "cache_type": e.cache.key_format, "weight_bytes": e.meter.weight_bytes, "cache_bytes": e.meter.cache_bytes,
            "default_generation_settings": {"n_ctx": e.n_context},
        })  # fmt: skip

    async def health(request: Any) -> Any:
        return JSONResponse({"status": "ok"})

    async def metrics(request: Any) -> Any:
        return PlainTextResponse(prometheus(service.totals))

    async def complete(request: Any) -> Any:
        return await _answer(service, request, chat=False)

    async def chat(request: Any) -> Any:
        return await _answer(service, request, chat=True)

    for path, handler, method in (
        ("/v1/models", models, "GET"), ("/props", props, "GET"), ("/health", health, "GET"),
        ("/metrics", metrics, "GET"), ("/v1/completions", complete, "POST"), ("/v1/chat/completions", chat, "POST"),
    ):  # fmt: skip
        made.add_route(path, handler, methods=[method])
    return made


def prometheus(t: Totals) -> str:
    """Counters under the names that llama-server uses, so that the same tools read them."""
    rows = (
        ("prompt_tokens_total", t.prompt_tokens), ("prompt_seconds_total", t.prompt_s),
        ("tokens_predicted_total", t.output_tokens), ("tokens_predicted_seconds_total", t.output_s),
        ("requests_total", t.requests), ("requests_deferred", t.waiting),
    )  # fmt: skip
    return "".join(f"# TYPE llamacpp:{n} counter\nllamacpp:{n} {v}\n" for n, v in rows)


async def _answer(service: Service, request: Any, chat: bool) -> Any:
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import JSONResponse, StreamingResponse

    def refuse(message: str, status: int = 400) -> Any:
        return JSONResponse({"error": {"message": message, "type": "invalid_request_error"}}, status)

    content = await request.body()
    if len(content) > MAX_BODY_BYTES:
        return refuse("the request is too large", 413)
    try:
        body = json.loads(content)
        if not isinstance(body, dict):
            raise ValueError
    except ValueError:
        return refuse("the body is not a JSON object")
    try:
        job = service.job(body, chat)
    except RunnerError as error:
        return refuse(str(error))
    if body.get("stream"):
        usage = bool((body.get("stream_options") or {}).get("include_usage"))
        return StreamingResponse(_events(service, job, chat, usage), media_type="text/event-stream")
    return JSONResponse(await run_in_threadpool(_whole, service, job, chat))


def _frame(service: Service, chat: bool, streamed: bool, identity: str) -> dict[str, Any]:
    kind = ("chat.completion" + (".chunk" if streamed else "")) if chat else "text_completion"
    return {"id": identity, "object": kind, "created": int(time.time()), "model": service.name}


def _usage(job: Job, n_tokens: int) -> dict[str, int]:
    n_prompt = len(job.prompt)
    return {"prompt_tokens": n_prompt, "completion_tokens": n_tokens, "total_tokens": n_prompt + n_tokens}


def _whole(service: Service, job: Job, chat: bool) -> dict[str, Any]:
    found = list(service.run(job))
    text, last = "".join(p.text for p in found), found[-1]
    own = {"message": {"role": "assistant", "content": text}} if chat else {"text": text, "logprobs": None}
    choice = {"index": 0, "finish_reason": last.reason, **own}
    frame = _frame(service, chat, False, f"cmpl-{uuid.uuid4().hex[:24]}")
    return {**frame, "choices": [choice], "usage": _usage(job, last.n_tokens)}


def _events(service: Service, job: Job, chat: bool, usage: bool) -> Iterator[str]:
    frame = _frame(service, chat, True, f"cmpl-{uuid.uuid4().hex[:24]}")

    def event(choices: list[dict[str, Any]], **more: Any) -> str:
        return "data: " + json.dumps({**frame, "choices": choices, **more}, ensure_ascii=False) + "\n\n"

    n_tokens = 0
    for i, piece in enumerate(service.run(job)):
        n_tokens = piece.n_tokens
        own: dict[str, Any] = {"text": piece.text}
        if chat:
            own = {
                "delta": {
                    **({"role": "assistant"} if i == 0 else {}),
                    **({"content": piece.text} if piece.text else {}),
                }
            }
        yield event([{"index": 0, "finish_reason": piece.reason or None, **own}])
    if usage:
        yield event([], usage=_usage(job, n_tokens))
    yield "data: [DONE]\n\n"


def serve(service: Service, port: int, host: str = "127.0.0.1") -> None:
    """Serve until interrupted."""
    import uvicorn

    uvicorn.run(app(service), host=host, port=port, log_level="warning")
