"""The commands that execute: exit codes, streams, and what happens without the runner's packages."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import runner_tiny

from hwdb.device import Device, Machine
from planner import measure
from planner.cli import COMMANDS, main

pytest.importorskip("numba")
HOST = Device(
    "cpu", "Some CPU", "AMD", "cpu", memory_bytes=16 << 30, bandwidth_bytes_per_s=1e7, fp32_flops=1e7, int8_ops=1e7,
    cpu_cores=1, basis="measured",
)  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_PLAN_CONFIG_DIR", str(tmp_path))
    monkeypatch.setattr("hwdb.detect.detect", lambda: Machine("here", host=HOST))
    monkeypatch.setattr("runner.engine.physical_cores", lambda: 1)
    monkeypatch.setattr("planner.verify.ATTEMPTS", 1)  # a busy machine is no reason to measure again


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return runner_tiny.write(tmp_path / "m.gguf", "llama", "Q8_0")


@pytest.mark.parametrize("name", ["measure", "run", "verify", "serve"])
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert name in COMMANDS
    assert "Usage: plan " + name in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["measure"], ["run", "m.gguf", "-p", "x"], ["verify", "qwen3-0.6b"], ["serve", "qwen3-0.6b"]],
)
def test_without_numba_the_extra_is_named(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "numba" else real(name, *a)
    )
    assert main(arguments) == 5
    assert 'pip install "llm-plan[run]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [(["verify"], 2, "nothing to verify"), (["run", "m.gguf"], 2, "no prompt"),
     (["verify", "no-such-model"], 4, "no model"),
     (["verify", "--url", "ftp://x"], 2, "not the address"), (["run", "missing.gguf", "-p", "x"], 5, "missing"),
     (["verify", "--llama-bench", "x"], 2, "needs a GGUF file")],
)  # fmt: skip
def test_mistakes_end_in_a_sentence(
    arguments: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error


def test_verify_exits_by_its_lines_and_prints_json(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tiny.with_name("saved.json")
    code = main(
        [
            "verify",
            str(tiny),
            "--threads",
            "1",
            "--prompt",
            "16",
            "--output",
            "2",
            "--json",
            "--save",
            str(saved),
        ]
    )
    from planner import verify_bench

    prompt, generation = verify_bench.parse(saved.read_text())
    assert (prompt.n_prompt, generation.n_output, generation.depth) == (16, 2, 16)
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert code == (1 if found["verdict"] == "fails" else 0)
    assert all(line["holds"] for line in found["lines"] if line["exact"])
    assert not found["holds"]  # a processor of 10 MFLOP/s was claimed
    assert {line["name"] for line in found["lines"] if not line["exact"]} == {
        "TTFT",
        "TPOT",
        "peak overhead",
        "peak resident",
    }


def test_forgetting_nothing_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", "--forget"]) == 0
    assert "nothing was kept" in capsys.readouterr().err


def test_a_file_without_a_vocabulary_is_refused_by_run(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(tiny), "-p", "x"]) == 4
    assert "has no vocabulary" in capsys.readouterr().err


def test_a_small_vocabulary_is_prompted_within_it(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tiny), "--prompt", "300", "--output", "4"]) in (0, 1)  # a toy's times may miss
    assert "parameters" in capsys.readouterr().out


def test_a_file_that_is_none_is_refused_before_kernels_compile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.target.is_compiled", lambda: False)
    measure.tell_of_compiling.cache_clear()
    (tmp_path / "noise.gguf").write_bytes(b"noise" * 100)
    for name, why in (("noise.gguf", "not a GGUF file"), ("none.gguf", "none.gguf: no such file\n")):
        assert main(["run", str(tmp_path / name), "-p", "x"]) == 5
        error = capsys.readouterr().err
        assert why in error
        assert "compiling" not in error


def test_that_kernels_compile_is_said_once(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.target.is_compiled", lambda: False)
    measure.tell_of_compiling.cache_clear()
    assert main(["verify", str(tiny), "--quick", "--prompt", "8"]) in (0, 1)
    told = capsys.readouterr().err
    assert told.count("compiling the runner's kernels") == 1
    assert "1 kind, " in told


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("whisper-tiny", "llama.cpp has no architecture"),
        ("bge-m3", "the runner has no `bert` architecture"),
    ],
)
def test_what_the_runner_does_not_execute_can_be_checked_on_a_server(
    model: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", model, "--quick"]) == 4
    message, hint = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note:")]
    assert why in message
    assert len(message) < 120
    assert f"plan verify --url http://127.0.0.1:8000/v1 -m {model}" in hint
