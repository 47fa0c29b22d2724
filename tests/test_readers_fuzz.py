"""Nothing that a file may hold makes a reader raise anything but its own errors, or take long."""

from __future__ import annotations

import json
import struct
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import readers_files as files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_readers_config import CONFIGS, LLAMA
from test_readers_safetensors import CONFIG, plain

from modeldb import catalogue, gguf_header, readers
from modeldb.errors import ModelError
from modeldb.gguf_file import open_gguf
from modeldb.hub_http import Refused, get

QUICK = settings(
    max_examples=150,
    deadline=None,  # `survives` counts the processor's time: a busy machine is no fault
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SMALL_MODELS = (
    "gemma-3-270m-it",
    "granite-3.1-1b-a400m-instruct",
    "falcon-h1-0.5b-instruct",
    "deepseek-v2-lite",
)


LIMIT_S = 2.0  # of processor time; a file usually takes 5 ms


def survives(path: Path) -> None:
    started = time.process_time()
    try:
        model, _ = readers.read(str(path))
        model.caches()
    except ModelError as error:
        said = str(error)
    else:
        said = ""
    assert "\n" not in said
    assert len(said) < 4000
    assert time.process_time() - started < LIMIT_S


@cache
def header_of(model_id: str, folder: str) -> bytes:
    path = Path(folder) / "whole.gguf"
    files.write_model(path, catalogue.load().get(model_id), "F16")
    end = min(t.offset for t in open_gguf(path).tensors)
    with path.open("rb") as file:
        return file.read(end)


@QUICK
@given(
    data=st.binary(max_size=300), start=st.sampled_from([b"", b"GGUF", b"GGUF\x03\0\0\0", b"GGUF\0\0\0\x03"])
)
def test_random_bytes_as_gguf(data: bytes, start: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(start + data)
    survives(path)


@pytest.mark.parametrize("model_id", SMALL_MODELS)
@settings(QUICK, max_examples=60)
@given(data=st.data())
def test_mutated_gguf_headers(
    model_id: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / model_id
    folder.mkdir(exist_ok=True)
    head = bytearray(header_of(model_id, str(folder)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(head) - 9))
        what = data.draw(st.sampled_from(["bit", "byte", "u32", "u64", "cut", "drop"]))
        if what == "bit":
            head[at] ^= 1 << data.draw(st.integers(0, 7))
        elif what == "byte":
            head[at] = data.draw(st.integers(0, 255))
        elif what == "u32":
            head[at : at + 4] = struct.pack("<I", data.draw(st.sampled_from([0, 1, 1 << 31, (1 << 32) - 1])))
        elif what == "u64":
            head[at : at + 8] = struct.pack(
                "<Q", data.draw(st.sampled_from([0, 1, 1 << 40, 1 << 63, (1 << 64) - 1]))
            )
        elif what == "cut":
            del head[at + 1 :]
            head += b"\0" * 16
        else:
            del head[at : at + 3]
            head += b"\0" * 3
    path = folder / "m.gguf"
    path.write_bytes(head)
    with path.open("r+b") as file:
        file.truncate(8 << 30)  # a hole: as long as a real model, so that lengths are believable
    survives(path)


numbers = st.one_of(
    st.integers(-3, 40), st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=5),
    st.sampled_from([1 << 31, 1 << 63, 1 << 80, -1, 0.5]),
)  # fmt: skip
values = st.recursive(
    numbers, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=4), x, max_size=3)
)


@QUICK
@given(data=st.binary(max_size=200))
def test_random_bytes_as_config(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(data)
    survives(tmp_path / "config.json")


def keys_of(config: dict[str, Any]) -> list[str]:
    inner = config.get("text_config")
    return sorted(inner if isinstance(inner, dict) else config)


@settings(QUICK, max_examples=400)
@given(data=st.data())
def test_mutated_configurations(data: st.DataObject, tmp_path: Path) -> None:
    config = json.loads(json.dumps(CONFIGS[data.draw(st.sampled_from(sorted(CONFIGS)))]))
    place = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(
            st.sampled_from([*keys_of(config), "quantization_config", "layer_types", "text_config"])
        )
        if data.draw(st.booleans()):
            place[key] = data.draw(values)
        else:
            place.pop(key, None)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    survives(path)


@QUICK
@given(
    config=st.dictionaries(st.sampled_from([*LLAMA, "text_config", "quantization_config", "num_x"]), values)
)
def test_random_values_under_known_keys(config: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "llama", **config}))
    survives(path)


@QUICK
@given(data=st.one_of(st.binary(max_size=200), st.tuples(st.integers(0, 1 << 64), st.binary(max_size=100))))
def test_random_bytes_as_safetensors(data: Any, tmp_path: Path) -> None:
    raw = data if isinstance(data, bytes) else struct.pack("<Q", min(data[0], (1 << 64) - 1)) + data[1]
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors").write_bytes(raw)
    survives(tmp_path)


@QUICK
@given(data=st.data())
def test_mutated_safetensors_headers(data: st.DataObject, tmp_path: Path) -> None:
    table = json.loads(files.safetensors_bytes(plain())[0][8:])
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(table)))
        if data.draw(st.booleans()) and isinstance(table[name], dict):
            table[name][data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))] = data.draw(values)
        else:
            table[name] = data.draw(values)
    raw = json.dumps(table).encode()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + b"\0" * 500_000)
    survives(tmp_path)


@QUICK
@given(text=st.text(max_size=60))
def test_any_text_is_a_path_or_is_not(text: str) -> None:
    readers.looks_like_path(text)
    readers.looks_like_repository(text)


@QUICK
@given(text=st.text(alphabet=st.characters(exclude_characters="/"), min_size=1, max_size=30))
def test_any_text_read_offline_is_a_model_error(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        readers.read(f"no-such-{text}", offline=True)
    assert "\n" not in str(caught.value)


def test_a_huge_declared_length_takes_no_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "m.gguf"
    path.write_bytes(files.assemble([files.entry("k", 8, struct.pack("<Q", 10 << 30))], []))
    with path.open("r+b") as file:
        file.truncate(40 << 30)
    tracemalloc.start()
    with pytest.raises(ModelError):
        open_gguf(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * gguf_header.HEADER_LIMIT_BYTES
    assert peak < 64 << 20


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/\n", "http://[bad", "http://127.0.0.1:99999/x"])
def test_an_odd_address_is_refused(url: str) -> None:
    with pytest.raises(Refused):
        get(url, 10, timeout_s=0.5)
