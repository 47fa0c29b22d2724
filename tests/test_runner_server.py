"""The server speaks OpenAI's protocol, and `plan verify --url` measures it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import runner_tiny

from planner import verify_url
from planner.errors import EnvironmentFailed, UsageError

pytest.importorskip("numba")
pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    import runner
    from runner import server, tokenizer

    path = runner_tiny.write(tmp_path_factory.mktemp("served") / "m.gguf", "llama", "Q8_0")
    engine = runner.load(path, n_context=256, n_threads=1, n_batch=64)
    yield server.Service(engine, tokenizer.Numbered(engine.vocab_size), "tiny")
    engine.close()


@pytest.fixture(scope="module")
def url(service: Any) -> Iterator[str]:
    from runner import server

    running = uvicorn.Server(
        uvicorn.Config(server.app(service), port=0, log_level="critical", lifespan="off")
    )
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started and thread.is_alive():
        time.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/v1"
    running.should_exit = True
    thread.join(10)


def _post(url: str, path: str, body: Any) -> tuple[int, str]:
    from http.client import HTTPConnection
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=300)
    connection.request("POST", parts.path + path, body if isinstance(body, bytes) else json.dumps(body))
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_a_completion_is_greedy_counted_and_the_same_when_streamed(service: Any, url: str) -> None:
    from runner import generate
    from runner.sampling import Sampling

    service.engine.rewind(0)
    wanted = [s.token for s in generate.stream(service.engine, [1, 2, 3], Sampling(), 8)]
    body = {"prompt": [1, 2, 3], "max_tokens": 8, "temperature": 0}
    status, text = _post(url, "/completions", body)
    found = json.loads(text)
    assert status == 200
    assert found["choices"][0]["text"].split() == [str(t) for t in wanted]
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["usage"] == {"prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11}
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    status, text = _post(url, "/completions", streamed)
    events = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(e) for e in events[:-1]]
    assert "".join(c["choices"][0]["text"] for c in chunks if c["choices"]) == found["choices"][0]["text"]
    assert chunks[-1]["usage"] == found["usage"]


def test_a_chat_streams_deltas_and_stop_words_cut(service: Any, url: str) -> None:
    body = {"messages": [{"role": "user", "content": "4 5 6"}], "max_tokens": 6, "temperature": 0}
    whole = json.loads(_post(url, "/chat/completions", body)[1])["choices"][0]["message"]["content"]
    assert len(whole.split()) == 6
    _, text = _post(url, "/chat/completions", {**body, "stream": True})
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == whole
    third = " " + whole.split()[2]
    cut = json.loads(_post(url, "/chat/completions", {**body, "stop": [third]})[1])["choices"][0]
    assert cut["message"]["content"] == whole[: whole.index(third)]
    assert cut["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "not a JSON object"), ([1], "not a JSON object"), ({"prompt": ""}, "`prompt` is"),
        ({"prompt": [1], "temperature": "hot"}, "`temperature` is a number"),
        ({"prompt": [1], "top_p": 3}, "top-p"), ({"prompt": [10**9]}, "outside the vocabulary"),
        ({"prompt": [1] * 300}, "do not fit the context"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused_in_a_sentence(url: str, body: Any, says: str) -> None:
    status, text = _post(url, "/completions", body)
    assert status == 400
    assert says in json.loads(text)["error"]["message"]


def test_a_closed_loop_of_users_measures_the_server(url: str) -> None:
    load = verify_url.Load(url, users=3, n_requests=6, n_prompt=20, n_output=10)
    found = verify_url.run(load)
    assert (len(found.served), found.failures) == (6, [])
    assert (found.n_prompt, found.n_output, found.engine) == (20, 10, "llm-plan-runner")
    assert 0 < found.tpot_s < found.ttft_s + 10 * found.tpot_s <= found.wall_s
    assert found.tokens_per_s == pytest.approx(60 / found.wall_s)
    assert found.properties["n_ctx"] == 256
    assert found.metrics["llamacpp:tokens_predicted_total"] >= 60
    alone = verify_url.verification(found, "", None, None, 0)
    assert alone.holds
    assert [name for name, _, _ in alone.measured] == ["TTFT", "TPOT", "throughput"]


def test_a_served_model_is_held_against_its_prediction(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from estimators.quantity import Quantity

    found = verify_url.run(verify_url.Load(url, n_requests=2, n_prompt=20, n_output=8))
    for factor, holds in ((1.0, True), (0.01, False)):
        spans = [
            Quantity(0.0, v * factor, 2 * v * factor)
            for v in (found.ttft_s, found.tpot_s, found.tokens_per_s)
        ]
        monkeypatch.setattr(verify_url, "predict", lambda *_, spans=spans: tuple(spans))
        assert verify_url.verification(found, "qwen3-0.6b", "Q8_0", None, 0).holds is holds


def test_addresses_that_lead_nowhere_end_in_a_sentence() -> None:
    with pytest.raises(UsageError, match="not the address"):
        verify_url.Server("ftp://x")
    with pytest.raises(EnvironmentFailed, match=r"127\.0\.0\.1:9"):
        verify_url.run(verify_url.Load("http://127.0.0.1:9/v1"))


def test_prometheus_text_sums_over_labels() -> None:
    text = '# TYPE a counter\na{x="1"} 2\na{x="2"} 3.5\nb 1e3\nbroken\n'
    assert verify_url.parse_metrics(text) == {"a": 5.5, "b": 1000.0}


def test_a_port_in_use_is_said_before_anything_is_loaded(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from planner.cli import main

    port = url.rpartition(":")[2].removesuffix("/v1")
    assert main(["serve", "llama-3.1-70b-instruct", "--port", port]) == 5
    assert f"port {port}: Address already in use" in capsys.readouterr().err
