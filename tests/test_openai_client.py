"""Laws of `plan verify --url`: whatever a server sends ends in figures or in one line that says what to do."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

from planner import openai_client, verify_url
from planner.cli import main
from planner.errors import EnvironmentFailed
from planner.openai_client import Refused, Server, ask

Parts = list[bytes | float]  # what is sent, and pauses


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def word(text: str = "time", **fields: Any) -> bytes:
    return event(choices=[{"index": 0, "text": text, "finish_reason": None, **fields}])


def delta(**fields: Any) -> bytes:
    return event(choices=[{"index": 0, "delta": fields, "finish_reason": None}])


DONE = b"data: [DONE]\n\n"
USAGE = event(choices=[], usage={"prompt_tokens": 21, "completion_tokens": 7})


class Fake:
    """A server whose POSTs are answered in turn from `answers`, the last one again and again: parts to stream, or
    (status, headers, body)."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.whole = True  # whether the stream ends as HTTP wants
        self.address = ""

    def stream(self, *parts: bytes | float) -> Fake:
        self.answers.append(list(parts))
        return self

    def status(self, status: int, message: str, **headers: str) -> Fake:
        self.answers.append((status, headers, json.dumps({"error": {"message": message}})))
        return self


@pytest.fixture
def fake() -> Iterator[Fake]:
    state = Fake()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            body = b'{"data": [{"id": "m"}]}' if self.path == "/v1/models" else b""
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            state.paths.append(self.path)
            state.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            answer = state.answers.pop(0) if len(state.answers) > 1 else state.answers[0]
            if isinstance(answer, tuple):
                status, headers, body = answer
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                for part in answer:
                    if isinstance(part, float):
                        time.sleep(part)
                        continue
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                    self.wfile.flush()
                if state.whole:
                    self.wfile.write(b"0\r\n\r\n")
            except OSError:  # the client left
                pass
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # a client that left is no error
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    state.address = f"http://127.0.0.1:{server.server_address[1]}/v1"
    yield state
    server.shutdown()
    server.server_close()
    thread.join(5)


def one(fake: Fake, chat: bool = False, timeout_s: float = 60.0) -> Any:
    return ask(Server(fake.address, timeout_s), "m", "time year", 2, 8, chat)


# -- answers ---------------------------------------------------------------------------------------------------


def test_lines_may_be_split_anywhere(fake: Fake) -> None:
    whole = word("zeit äöü €") + word() + USAGE + DONE
    fake.stream(*(whole[i : i + 3] for i in range(0, len(whole), 3)))
    found = one(fake)
    assert (found.n_prompt, found.n_output, found.counted) == (21, 7, True)


def test_the_first_token_is_the_first_text_not_the_role(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.stream(delta(role="assistant"), delta(role="assistant", content=""), delta(content=None),
                delta(content="a"), delta(content="b"), USAGE, DONE)  # fmt: skip
    events, n_seen = Server.events, 0

    def counted(*request: Any) -> Iterator[Any]:
        nonlocal n_seen
        for n_seen, found in enumerate(events(*request), 1):  # noqa: B007
            yield found

    clock = SimpleNamespace(perf_counter=lambda: float(n_seen), monotonic=time.monotonic)
    monkeypatch.setattr(Server, "events", counted)
    monkeypatch.setattr(openai_client, "time", clock)
    found = one(fake, chat=True)
    assert (found.ttft_s, found.total_s) == (4, 5)
    assert fake.bodies[0]["messages"] == [{"role": "user", "content": "time year"}]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thoughts_are_tokens(fake: Fake, name: str) -> None:
    fake.stream(delta(**{name: "hm"}), delta(**{name: "so"}), delta(content="a"), DONE)
    assert one(fake, chat=True).n_output == 3


def test_without_a_count_events_are_counted_and_it_is_said(fake: Fake) -> None:
    fake.stream(word(), word(), event(choices=[], usage=None), DONE)
    found = one(fake)
    assert (found.n_prompt, found.n_output, found.counted) == (2, 2, False)
    outcome = verify_url.run(verify_url.Load(fake.address, n_requests=1, n_prompt=2))
    told = verify_url.verification(outcome, "", None, None, 0)
    assert told.notes[0] == "1 request of about 2 + 2 tokens, 1 user, by our count: the server tells none"


def test_an_answer_may_end_without_done_and_be_cut_off_after_its_last_word(fake: Fake) -> None:
    fake.stream(word(), word())
    assert one(fake).n_output == 2
    fake.answers, fake.whole = [], False
    fake.stream(word(), word(finish_reason="length"))
    assert one(fake).n_output == 2


def test_comments_keep_a_connection_alive_but_not_for_ever(fake: Fake) -> None:
    fake.stream(b": ping\n\n", b"event: message\n", word(), b": ping\n\n", word(), DONE)
    assert one(fake).n_output == 2
    fake.answers = []
    fake.stream(*([b": ping\n\n", 0.1] * 30), word(), DONE)
    with pytest.raises(EnvironmentFailed, match=r"/completions: no token for 0.3 s") as told:
        one(fake, timeout_s=0.3)
    assert "--timeout" in told.value.hint


def test_silence_ends_in_a_line(fake: Fake) -> None:
    fake.stream(word(), 3.0, word())
    with pytest.raises(EnvironmentFailed, match=r"no token for 0.2 s"):
        one(fake, timeout_s=0.2)


@pytest.mark.parametrize(
    ("send", "says"),
    [
        (
            lambda f: f.stream(event(error={"message": "out\nof memory", "code": 500})),
            "broke off: out of memory",
        ),
        (lambda f: f.stream(b"data: {nonsense\n\n"), "JSONDecodeError"),
        (lambda f: f.stream(b"data: \xff\xfe\n\n"), "UnicodeDecodeError"),
        (lambda f: f.stream(b"data: 5\n\n"), "an event that is no object"),
        (lambda f: f.stream(event(choices=5), event(choices=[5]), DONE), "an answer without text"),
        (lambda f: f.stream(delta(content="a", role=3) * 0, DONE), "an answer without text"),
        (lambda f: f.status(200, "all at once"), "does not stream"),
        (lambda f: f.status(401, "no key"), "answered 401: no key"),
        (lambda f: f.status(500, ""), "answered 500"),
    ],
)
def test_what_is_no_answer_ends_in_one_line(
    fake: Fake, send: Callable[[Fake], Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    send(fake)
    assert main(["verify", "--url", fake.address, "--requests", "1", "--timeout", "60s"]) == 5
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert error.count("\n") == 2  # what, and what next


def test_a_stream_cut_off_early_is_no_answer(fake: Fake) -> None:
    fake.whole = False
    for last in (word(), word()[:9]):
        fake.answers = []
        fake.stream(word(), last)
        with pytest.raises(EnvironmentFailed, match="the stream was cut off"):
            one(fake)


# -- loads -----------------------------------------------------------------------------------------------------


def test_a_server_that_loads_or_is_busy_is_asked_again(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_url, "AGAIN_S", 0.01)
    fake.status(503, "Loading model").status(503, "Loading model").status(429, "slow down", Retry_After="0")
    fake.stream(word(), word(), USAGE, DONE)
    found = verify_url.run(verify_url.Load(fake.address, users=2, n_requests=3, n_prompt=2))
    assert len(found.served) == 3
    assert len(fake.bodies) == 3 + 1 + 3


def test_patience_with_a_server_that_loads_ends(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    slept = [0.0]
    clock = SimpleNamespace(monotonic=lambda: sum(slept), sleep=slept.append)
    monkeypatch.setattr(verify_url, "time", clock)
    monkeypatch.setattr(verify_url, "AGAIN_S", 20.0)
    fake.status(503, "Loading model")
    with pytest.raises(Refused, match="answered 503: Loading model") as told:
        verify_url.run(verify_url.Load(fake.address, n_requests=1, timeout_s=60.0))
    assert len(fake.bodies) == 3  # at 0, 20 and 40 s
    assert "may still load" in told.value.hint


def test_a_server_that_refuses_unknown_fields_is_asked_without(fake: Fake) -> None:
    fake.status(400, "Unrecognized request argument supplied: ignore_eos").stream(word(), word(), DONE)
    found = verify_url.run(verify_url.Load(fake.address, n_requests=1))
    assert "ignore_eos" in fake.bodies[0]
    assert all("ignore_eos" not in body for body in fake.bodies[1:])
    assert "ignore_eos" in found.notes[0]
    fake.answers = []
    fake.status(400, "this model's maximum context length is 32 tokens")
    with pytest.raises(Refused, match="maximum context"):
        verify_url.run(verify_url.Load(fake.address, n_requests=1))


def test_a_load_that_breaks_says_so_and_its_times_are_not_judged(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.stream(word(), word(), DONE).stream(word(), word(), DONE).status(429, "too many requests")
    outcome = verify_url.run(verify_url.Load(fake.address, n_requests=4))
    assert len(outcome.served) == 1
    told = verify_url.verification(outcome, "", None, None, 0)
    assert "answered 429: too many requests" in told.remarks[0]
    fake.answers = []
    fake.stream(word(), DONE).status(429, "too many requests")
    with pytest.raises(Refused) as refused:
        verify_url.run(verify_url.Load(fake.address, n_requests=4))
    assert refused.value.hint == "fewer --users: it takes no more at the same time"


def test_v1_is_meant_where_the_address_names_no_path(fake: Fake) -> None:
    fake.stream(word(), word(), DONE)
    ask(Server(fake.address.removesuffix("/v1")), "m", "time", 1, 2)
    ask(Server(fake.address + "/"), "m", "time", 1, 2)
    assert fake.paths == ["/v1/completions", "/v1/completions"]


def test_the_command_prints_the_figures_of_a_chat(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake.stream(delta(role="assistant"), delta(content="a"), delta(content="b"), USAGE, DONE)
    asked = ["verify", "--url", fake.address, "--chat", "--requests", "2", "--prompt", "4"]
    assert main(asked) == 0
    shown = capsys.readouterr()
    assert [line.split()[0] for line in shown.out.splitlines()[1:]] == ["TTFT", "TPOT", "throughput"]
    assert "2 requests of 21 + 7 tokens" in shown.err
    assert main([*asked, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["measured"]
    assert [f["unit"] for f in figures] == ["s", "s", "tok/s"]
    assert set(fake.paths) == {"/v1/chat/completions"}


def test_a_timeout_that_is_no_time_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--url", "http://127.0.0.1:9", "--timeout", "banana"]) == 2
    assert "--timeout `banana` is not a number with a unit" in capsys.readouterr().err
