"""`plan verify`: what the runner allocates equals what was predicted; modelled lines are judged by their interval."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import runner_tiny
import test_runner_checkpoint

from estimators import reference
from estimators.quantity import Quantity
from hwdb.device import Device, Machine
from planner import verify, verify_bench
from planner.errors import EnvironmentFailed, UsageError
from planner.verify import Line, Question, Verification
from runner import weights

pytest.importorskip("numba")

HOST = Device(
    "cpu", "Some CPU", "AMD", "cpu", memory_bytes=16 << 30, bandwidth_bytes_per_s=40e9, fp32_flops=300e9,
    int8_ops=800e9,    cpu_cores=4, basis="measured",
)  # fmt: skip
MACHINE = Machine("here", host=HOST, host_memory_bytes=16 << 30)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "machine_for", lambda threads, formats=(): (MACHINE, (), ()))
    monkeypatch.setattr("planner.measure.this_machine", lambda: MACHINE)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "llama",
            "qwen2moe",
            "gemma3",
            "deepseek2",
            "gpt-oss",
            "phi3",
            "falcon-h1",
            "granite-h",
            "granite-h-moe",
        ),
        *("nemotron-h", "nemotron-h-moe", "lfm2", "lfm2moe", "qwen3next", "qwen35", "qwen35moe"),
    ],
)
def test_exact_lines_are_equal_for_files_of_every_kind_of_layer(name: str, tmp_path: Path) -> None:
    path = runner_tiny.write(tmp_path / "m.gguf", name, "Q8_0")
    asked = verify.question(str(path), None, n_prompt=40, n_decode=4, threads=1)
    found = verify.verify(asked)
    assert found.mode == "full"
    wrong = [line for line in found.lines if line.exact and not line.holds]
    assert not wrong
    assert {"parameters", "all weights", "a step touches", "a step computes", "cache allocated"} <= {
        line.name for line in found.lines
    }


@pytest.mark.parametrize("name", sorted(test_runner_checkpoint.CONFIGS))
def test_a_safetensors_folder_is_run_and_its_lines_are_equal(name: str, tmp_path: Path) -> None:
    file = weights.open_file(runner_tiny.write(tmp_path / "m.gguf", name, "F16"))
    folder = test_runner_checkpoint.write_folder(tmp_path / "hf", name, "F16", file)
    asked = verify.question(str(folder), None, n_prompt=24, n_decode=4, threads=1)
    assert asked.file == folder
    found = verify.verify(asked)
    assert found.mode == "full"
    assert [line for line in found.lines if line.exact and not line.holds] == []
    assert len([line for line in found.lines if line.exact]) >= 8


def test_sampled_and_full_count_the_same(tmp_path: Path) -> None:
    path = runner_tiny.write(tmp_path / "m.gguf", "qwen3", "Q8_0")
    asked = verify.question(str(path), None, n_prompt=64, n_decode=1, threads=1)
    full, sampled = verify.verify(asked), verify.verify(replace(asked, quick=True))
    assert sampled.mode == "sampled"
    exact = lambda v: {line.name: line.measured for line in v.lines if line.exact}  # noqa: E731
    assert exact(full) == exact(sampled)
    assert "layers run" in sampled.notes[0]


def test_a_lie_about_bytes_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = runner_tiny.write(tmp_path / "m.gguf", "llama", "Q8_0")
    honest = reference.counts

    def counts(d, n):
        return replace(honest(d, n), step_weight_bytes=honest(d, n).step_weight_bytes + 1)

    monkeypatch.setattr(reference, "counts", counts)
    found = verify.verify(verify.question(str(path), None, n_prompt=8, n_decode=2, threads=1))
    assert [line.name for line in found.lines if line.exact and not line.holds] == ["a step touches"]
    assert not found.holds


def test_modelled_lines_hold_inside_their_interval_only() -> None:
    span = Quantity(1.0, 2.0, 3.0)
    assert [Line("t", "s", span, m, False).holds for m in (0.9, 1.0, 2.5, 3.0, 3.1)] == [
        False,
        True,
        True,
        True,
        False,
    ]
    assert [Line("t", "bytes", Quantity.exact(5), m, True).holds for m in (5, 6)] == [True, False]
    bad = Verification(
        "x", "full", (Line("t", "s", span, 9.0, False), Line("b", "bytes", Quantity.exact(5), 6, True))
    )
    text = verify.text(bad)
    assert "0 of 2 lines hold" in text
    assert text.count("NO:") == 2
    assert json.loads(json.dumps(verify.document(bad)))["holds"] is False


def test_counts_grow_with_the_cache_and_windows_stop_growing() -> None:
    asked = verify.question("gemma-3-1b-it", "Q4_0", context=8192)
    d = verify.deployment(asked, MACHINE)
    at = lambda n: reference.counts(d, n)  # noqa: E731
    assert at(2000).step_bytes > at(1000).step_bytes
    assert at(1000).step_flops < at(2000).step_flops
    windowed = [at(n + 1).cache_bytes - at(n).cache_bytes for n in (100, 4000)]
    assert windowed[0] > windowed[1] > 0


def test_predictions_follow_the_measured_rates() -> None:
    asked = verify.question("llama-3.1-8b-instruct", "Q4_K_M")
    one = reference.predict(verify.deployment(asked, MACHINE))
    fast = replace(MACHINE, host=replace(HOST, bandwidth_bytes_per_s=80e9, int8_ops=1600e9, fp32_flops=600e9))
    two = reference.predict(verify.deployment(asked, fast))
    assert two.tpot_s.best < 0.6 * one.tpot_s.best
    assert two.ttft_s.best < 0.6 * one.ttft_s.best
    floor = reference.counts(verify.deployment(asked, MACHINE), 512).step_bytes / 40e9
    assert floor < one.tpot_s.best < 2 * floor
    assert one.tpot_s.low < one.tpot_s.best < one.tpot_s.high


def test_an_answer_names_what_to_verify(tmp_path: Path) -> None:
    row = {"model": "qwen3-0.6b", "scheme": "Q8_0", "kv_type": "q8_0", "context_tokens": 4096}
    path = tmp_path / "answer.json"
    path.write_text(json.dumps({"request": {"prompt": 300}, "answer": {"rows": [row]}}))
    found = verify.question(str(path), None)
    assert (found.model.id, found.scheme.id, found.kv, found.context) == ("qwen3-0.6b", "Q8_0", "q8_0", 4096)
    path.write_text("{}")
    with pytest.raises(UsageError, match="not an answer"):
        verify.question(str(path), None)


BENCH = [
    {"n_prompt": 512, "n_gen": 0, "avg_ts": 80.0, "stddev_ts": 1.0, "n_threads": 4,
     "n_gpu_layers": 0, "backends": "CPU", "type_k": "f16", "type_v": "f16"},
    {"n_prompt": 0, "n_gen": 128, "avg_ts": 7.0, "stddev_ts": 2.0, "n_threads": 4,
     "n_gpu_layers": 0, "backends": "CPU"},
]  # fmt: skip


def test_llama_bench_is_run_and_read(tmp_path: Path) -> None:
    program = tmp_path / "llama-bench"
    program.write_text(f"#!/bin/sh\necho '{json.dumps(BENCH)}'\n")
    program.chmod(0o755)
    path = runner_tiny.write(tmp_path / "m.gguf", "llama", "Q8_0")
    found = verify_bench.verification(program, path, 512, 128, 4)
    assert [(line.name, line.measured) for line in found.lines] == [
        ("prompt of 512", 80.0),
        ("generation of 128", 7.0),
    ]
    assert found.remarks == ("29% deviation between repetitions",)
    program.write_text("#!/bin/sh\necho broken >&2; exit 3\n")
    with pytest.raises(EnvironmentFailed, match="code 3: broken"):
        verify_bench.run(program, path, 1, 1, 0)
    with pytest.raises(EnvironmentFailed, match="could not be run"):
        verify_bench.run(tmp_path / "none", path, 1, 1, 0)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '[{"avg_ts": "x"}]', '[{"n_prompt": 1, "n_gen": 1, "avg_ts": 0}]']
)
def test_what_is_not_llama_bench_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="llama-bench"):
        verify_bench.parse(text)


def test_questions_about_models_default_to_the_usual_scheme() -> None:
    found = verify.question("qwen3-0.6b", None)
    assert isinstance(found, Question)
    assert (found.scheme.id, found.n_context, found.subject) == ("Q4_K_M", 544, "qwen3-0.6b Q4_K_M")
