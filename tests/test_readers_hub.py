"""Repositories over a server on this machine: only headers travel, and every way that a network fails is
one line."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import readers_files as files
from test_readers_safetensors import CONFIG, plain

from modeldb import catalogue, hub, readers
from modeldb.errors import BrokenFile, ModelError, UnsupportedModel
from modeldb.hub import Hub, choose, read_from
from modeldb.hub_http import get


class Server(ThreadingHTTPServer):
    """Serves a folder of repositories; `mode` is how it misbehaves."""

    daemon_threads = True
    root: Path
    mode = ""
    sent_bytes = 0
    requests: list[tuple[str, dict[str, str]]]
    other: str = ""
    counting = threading.Lock()

    def count(self, n_bytes: int) -> None:
        """Called before bytes leave, not after: a client that has them must find them counted."""
        with self.counting:
            self.sent_bytes += n_bytes


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        if self.server.mode == "stall":
            time.sleep(2)
            return
        if self.server.mode.isdecimal():
            return self.answer(int(self.server.mode), b"no")
        if self.path.startswith("/api/models/"):
            return self.listing(self.path.removeprefix("/api/models/"))
        user, repo, _, _, *rest = self.path.strip("/").split("/")
        path = self.server.root / user / repo / "/".join(rest)
        if not path.is_file():
            return self.answer(404, b"no")
        if self.server.other and self.headers.get("Authorization"):
            return self.answer(302, b"", Location=f"{self.server.other}{self.path}")
        self.file(path)

    def listing(self, repo: str) -> None:
        folder = self.server.root / repo
        if not folder.is_dir():
            return self.answer(401, b"no")
        names = [
            {"rfilename": p.relative_to(folder).as_posix()} for p in sorted(folder.rglob("*")) if p.is_file()
        ]
        self.answer(200, json.dumps({"siblings": names, "tags": ["license:apache-2.0"]}).encode())

    def file(self, path: Path) -> None:
        total = path.stat().st_size
        etag = f'"{hashlib.sha256(f"{path}{path.stat().st_mtime_ns}".encode()).hexdigest()}"'
        if self.headers.get("If-None-Match") == etag:
            return self.answer(304, b"", ETag=etag)
        if self.server.mode == "no ranges":
            self.send_response(200)
            self.send_header("Content-Length", str(total))
            self.end_headers()
            with path.open("rb") as file:
                try:
                    while piece := file.read(1 << 16):
                        self.server.count(len(piece))
                        self.wfile.write(piece)
                except OSError:
                    self.close_connection = True
            return
        last = min(int(self.headers["Range"].removeprefix("bytes=0-")), total - 1)
        with path.open("rb") as file:
            data = file.read(last + 1)
        if self.server.mode == "cut":
            self.send_response(206)
            self.send_header("Content-Range", f"bytes 0-{last}/{total}")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        shown = f"bytes 5-{last}/{total}" if self.server.mode == "wrong range" else f"bytes 0-{last}/{total}"
        self.answer(206, data, ETag=etag, **{"Content-Range": shown})

    def answer(self, code: int, data: bytes, **headers: str) -> None:
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, value)
        if code != 304:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.server.count(len(data))
        self.wfile.write(data)


def serve(root: Path) -> Server:
    server = Server(("127.0.0.1", 0), Handler)
    server.root, server.requests = root, []
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "repos").mkdir()
    running = serve(tmp_path / "repos")
    yield running
    running.shutdown()
    running.server_close()


def address(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def client(server: Server, tmp_path: Path, **options: Any) -> Hub:
    given: dict[str, Any] = {
        "token": "",
        "offline": False,
        "cache": tmp_path / "cache",
        "timeout_s": 60.0,
        "deadline_s": 60.0,
    }
    return Hub(address(server), **{**given, **options})


def checkpoint(server: Server) -> int:
    folder = server.root / "user" / "repo"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return files.write_safetensors(folder / "model.safetensors", plain())


def gguf_repository(server: Server) -> int:
    folder = server.root / "user" / "repo-GGUF"
    folder.mkdir(parents=True)
    model = catalogue.load().get("llama-3.3-70b-instruct")
    for scheme in ("Q4_K_M", "Q8_0"):
        files.write_model(folder / f"m-{scheme}.gguf", model, scheme, tokens=100)
    return (folder / "m-Q4_K_M.gguf").stat().st_size


def test_a_checkpoint_of_a_repository_equals_the_folder(server: Server, tmp_path: Path) -> None:
    checkpoint(server)
    model, scheme = read_from(client(server, tmp_path), "user/repo")
    local, local_scheme = readers.read(str(server.root / "user" / "repo"))
    assert model.file_tensors == local.file_tensors
    assert (model.hf_id, model.licence, scheme.label) == ("user/repo", "apache-2.0", local_scheme.label)


def test_only_the_header_of_a_40_gb_file_travels(server: Server, tmp_path: Path) -> None:
    size = gguf_repository(server)
    model, scheme = read_from(client(server, tmp_path), "user/repo-GGUF:Q4_K_M")
    assert size > 40e9
    assert server.sent_bytes < 10e6
    assert (scheme.label, model.n_layers, model.hf_id) == ("Q4_K_M", 80, "user/repo-GGUF")
    local, _ = readers.read(str(server.root / "user" / "repo-GGUF" / "m-Q4_K_M.gguf"))
    assert model.file_tensors == local.file_tensors
    assert read_from(client(server, tmp_path), "user/repo-GGUF/m-Q8_0.gguf")[1].label == "Q8_0"


def test_a_server_that_ignores_ranges_is_cut_off(server: Server, tmp_path: Path) -> None:
    gguf_repository(server)
    server.mode = "no ranges"
    model, _ = read_from(client(server, tmp_path), "user/repo-GGUF/m-Q4_K_M.gguf")
    assert model.n_layers == 80
    assert server.sent_bytes < 64e6


def test_the_cache_is_used_while_its_tag_holds(server: Server, tmp_path: Path) -> None:
    checkpoint(server)
    first = read_from(client(server, tmp_path), "user/repo")
    sent = server.sent_bytes
    assert read_from(client(server, tmp_path), "user/repo") == first
    assert server.sent_bytes - sent < 1000  # the listing only
    assert any("If-None-Match" in headers for _, headers in server.requests)
    asked = len(server.requests)
    assert read_from(client(server, tmp_path, offline=True), "user/repo") == first
    assert len(server.requests) == asked
    changed = {**CONFIG, "max_position_embeddings": 1024}
    (server.root / "user" / "repo" / "config.json").write_text(json.dumps(changed))
    assert read_from(client(server, tmp_path), "user/repo")[0].max_context == 1024


def test_a_spoiled_cache_is_fetched_again(server: Server, tmp_path: Path) -> None:
    checkpoint(server)
    first = read_from(client(server, tmp_path), "user/repo")
    for entry in (tmp_path / "cache").iterdir():
        entry.write_bytes(b"spoiled")
    assert read_from(client(server, tmp_path), "user/repo") == first


def test_offline_without_a_cache_says_so(server: Server, tmp_path: Path) -> None:
    with pytest.raises(BrokenFile, match=r"not in the cache, and offline"):
        read_from(client(server, tmp_path, offline=True), "user/repo")
    assert not server.requests


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("401", "set HF_TOKEN"),
        ("403", "licence"),
        ("404", "check the id"),
        ("429", "too many"),
        ("500", "answered 500"),
        ("stall", "in time"),
        ("418", "answered 418"),
    ],
)
def test_each_refusal_is_one_line_with_what_to_do(
    mode: str, says: str, server: Server, tmp_path: Path
) -> None:
    checkpoint(server)
    server.mode = mode
    patience = {"timeout_s": 0.5} if mode == "stall" else {}
    with pytest.raises(BrokenFile, match=says) as caught:
        read_from(client(server, tmp_path, **patience), "user/repo")
    assert len(server.requests) == 1  # nobody is asked twice
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("mode", "says"), [("cut", "broke"), ("wrong range", "another range")])
def test_a_broken_transfer_is_refused(mode: str, says: str, server: Server, tmp_path: Path) -> None:
    checkpoint(server)
    server.mode = mode
    with pytest.raises(BrokenFile, match=says):
        read_from(client(server, tmp_path), "user/repo")


def test_a_trickling_server_meets_the_deadline(server: Server, tmp_path: Path) -> None:
    import socket

    listener = socket.create_server(("127.0.0.1", 0))

    def trickle() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            try:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
                for _ in range(100):
                    connection.sendall(b"x")
                    time.sleep(0.05)
            except OSError:
                pass

    threading.Thread(target=trickle, daemon=True).start()
    with pytest.raises(Exception, match="in time"):
        get(f"http://127.0.0.1:{listener.getsockname()[1]}/x", 1000, timeout_s=60, deadline_s=0.5)
    listener.close()


def test_nobody_listening_is_no_network(tmp_path: Path) -> None:
    with pytest.raises(BrokenFile, match="no network"):
        read_from(Hub("http://127.0.0.1:9", "", False, tmp_path), "user/repo")


def test_the_token_stays_with_its_host(server: Server, tmp_path: Path) -> None:
    checkpoint(server)
    elsewhere = serve(server.root)
    server.other = address(elsewhere)
    try:
        model, _ = read_from(client(server, tmp_path, token="hf_secret"), "user/repo")
    finally:
        elsewhere.shutdown()
        elsewhere.server_close()
    assert model.n_layers == CONFIG["num_hidden_layers"]
    assert all(h.get("Authorization") == "Bearer hf_secret" for _, h in server.requests)
    assert elsewhere.requests
    assert not any("Authorization" in h for _, h in elsewhere.requests)


def test_the_environment_is_honoured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert (hub.from_environment().token, hub.from_environment().offline) == ("", False)
    assert hub.from_environment().endpoint == "https://huggingface.co"
    (tmp_path / "token").write_text("hf_file\n")
    assert hub.from_environment().token == "hf_file"
    monkeypatch.setenv("HF_TOKEN", "hf_env")
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example/")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.from_environment().token == "hf_env"
    assert hub.from_environment().endpoint == "http://mirror.example"
    assert hub.from_environment().offline
    assert hub.from_environment(offline=True).offline
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc")
    with pytest.raises(ModelError, match="HF_ENDPOINT"):
        hub.from_environment()


NAMES = [
    "m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-UD-Q4_K_XL.gguf", "mmproj-Q8_0.gguf", "m-Q8_0.gguf",
    "BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf", "a-Q6_K.gguf", "b-Q6_K.gguf",
]  # fmt: skip


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("Q4_K_M", NAMES[0]),
        ("q4_k_s", NAMES[1]),
        ("Q8_0", "m-Q8_0.gguf"),
        ("BF16", NAMES[5]),
        ("UD-Q4_K_XL", NAMES[2]),
    ],
)
def test_a_tag_chooses_its_file(tag: str, name: str) -> None:
    assert choose(NAMES, tag, "u/r") == name


@pytest.mark.parametrize(
    ("tag", "says"), [("Q3_K_L", "no GGUF file is tagged"), ("Q6_K", "a-Q6_K.gguf, b-Q6_K.gguf")]
)
def test_a_tag_that_chooses_none_or_several_lists_them(tag: str, says: str) -> None:
    with pytest.raises(UnsupportedModel, match=says):
        choose(NAMES, tag, "u/r")


def test_a_repository_of_ggufs_asks_which(server: Server, tmp_path: Path) -> None:
    gguf_repository(server)
    with pytest.raises(UnsupportedModel, match=r"say which: user/repo-GGUF:Q4_K_M"):
        read_from(client(server, tmp_path), "user/repo-GGUF")


@pytest.mark.parametrize(
    "text",
    ["user", "user/repo/../x", "user/repo/../../x.gguf", "a b/c", "user/repo:", "http://x/y", "user//repo"],
)
def test_what_is_no_repository_id_is_refused(text: str, server: Server, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        read_from(client(server, tmp_path), text)
    assert not server.requests
