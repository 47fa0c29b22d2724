"""`plan verify`: what the runner allocates equals what was predicted; modelled lines are judged by their interval."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import runner_tiny
import test_runner_checkpoint

from estimators import reference, reference_matrices
from estimators.quantity import Quantity
from hwdb.device import Device, KernelRates, Machine
from planner import verification, verify, verify_bench
from planner.errors import EnvironmentFailed, UsageError
from planner.verification import Line, Verification
from planner.verify import Question
from runner import weights
from runner.bandwidth import Bandwidth

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
        *(
            "nemotron-h",
            "nemotron-h-moe",
            "lfm2",
            "lfm2moe",
            "qwen3next",
            "qwen35",
            "qwen35moe",
            "granite",
            "granite-moe",
            "gemma4-shared",
            "gemma3n",
        ),
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
    text = verification.text(bad)
    assert "0 of 2 lines hold" in text
    assert text.count("NO:") == 2
    assert json.loads(json.dumps(verification.document(bad)))["holds"] is False


def test_times_of_a_contaminated_run_are_not_judged_and_the_rest_is() -> None:
    span = Quantity(1.0, 2.0, 3.0)
    slow, equal = Line("t", "s", span, 9.0, False), Line("b", "bytes", Quantity.exact(5), 5, True)
    lie, large = replace(equal, measured=6), Line("peak", "bytes", span, 9.0, False)
    verdict = lambda lines, remarks: Verification("x", "full", lines, remarks).verdict  # noqa: E731
    assert verdict((slow, equal), ()) == "fails"
    assert verdict((slow, equal), ("busy",)) == "not judged"
    assert verdict((slow, lie), ("busy",)) == verdict((slow, large), ("busy",)) == "fails"
    assert verdict((replace(slow, measured=2.0), equal), ("busy",)) == "holds"
    text = verification.text(Verification("x", "full", (slow, equal), ("busy",)))
    assert "not judged: +350%" in text
    assert text.endswith("1 of 2 lines hold, 1 not judged: the run was contaminated\n")
    assert verification.document(Verification("x", "full", (slow,), ("busy",)))["verdict"] == "not judged"


@pytest.mark.parametrize(
    ("remarks", "times", "expected"),
    [
        (((), ()), (9.0, 1.0), (9.0, 1)),  # clean: judged as it is
        ((("busy",), ()), (9.0, 4.0), (4.0, 2)),  # spoiled: once more, and the clean one counts
        ((("busy",), ("busy",), ("busy",)), (9.0, 4.0, 5.0), (4.0, 3)),  # never clean: the least spoiled
        ((("busy",),), (0.01,), (0.01, 1)),  # spoiled, but it holds
    ],
)
def test_a_spoiled_run_is_measured_again(
    remarks: tuple, times: tuple, expected: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = iter(zip(remarks, times, strict=False))

    def run(*_: object, **__: object) -> SimpleNamespace:
        told, seconds = next(runs)
        return SimpleNamespace(remarks=told, tpot_s=seconds, ttft_s=0.01)

    span = Quantity(0.001, 0.01, 0.02)
    found = SimpleNamespace(ttft_s=span, tpot_s=span, activation_bytes=span)
    monkeypatch.setattr("runner.meter.run", run)
    monkeypatch.setattr(reference, "predict", lambda d: found)
    question = SimpleNamespace(n_prompt=4, n_decode=2, model=SimpleNamespace(vocab_size=8))
    report, n = verify._metered(None, question, None)  # type: ignore[arg-type]
    assert (report.tpot_s, n) == expected


def test_a_machine_whose_memory_changed_its_rate_since_it_was_measured_is_remarked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = lambda *_: Bandwidth(1, 40e9, 41e9)  # noqa: E731
    monkeypatch.setattr("runner.bandwidth.read_bandwidth", now)
    assert verify._drift(42e9, 1) == ()
    assert verify._drift(60e9, 1) == ("memory reads at 40 GB/s, and at 60 when `plan measure` ran",)


def test_a_run_that_measured_its_rates_says_when_memory_changed_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates = iter([41e9, 66e9])
    monkeypatch.setattr("runner.bandwidth.read_bandwidth", lambda *_: Bandwidth(1, next(rates), 70e9))
    monkeypatch.setattr(
        verify, "machine_for", lambda threads, formats=(): (MACHINE, ("rates measured for this run",), ())
    )
    done = verify.Verification("x", "sampled", ())
    monkeypatch.setattr(verify, "_executed", lambda *_: done)
    question = verify.Question(None, None, threads=1)  # type: ignore[arg-type]
    monkeypatch.setattr(verify, "_formats", lambda q: ())
    monkeypatch.setattr(verify, "deployment", lambda q, machine: None)
    assert verify.verify(question) == done
    assert verify.verify(question).remarks == ("memory reads at 66 GB/s, and at 40 when this run began",)


def test_terms_follow_the_rates_of_the_formats_that_a_model_has() -> None:
    asked = verify.question("llama-3.2-1b-instruct", "Q4_0")
    kernels = KernelRates((("Q4_0", 30e9, 900e9), ("Q6_K", 20e9, 600e9)), (20e9, 10e9), 150e9, 2e-5)
    at = lambda k: reference.terms(verify.deployment(asked, replace(MACHINE, host=replace(HOST, kernels=k))))  # noqa: E731
    base = at(kernels)
    slower_head = at(replace(kernels, formats=(kernels.formats[0], ("Q6_K", 10e9, 600e9))))
    d = verify.deployment(asked, MACHINE)
    head = d.model.vocab_size * d.model.hidden_size * 210 / 256  # the tied embedding is Q6_K
    assert slower_head["decode"]["weights"] - base["decode"]["weights"] == pytest.approx(head / 20e9)
    longer = at(replace(kernels, layer_s=5.2e-5)), at(replace(kernels, layer_s=2.6e-5))
    assert longer[0]["decode"]["layers"] == 2 * longer[1]["decode"]["layers"]
    # four query heads per key head: the rate that was measured for four
    cached = reference.counts(d, 512 + 16).cache_bytes
    assert base["decode"]["cache"] == pytest.approx(cached / 10e9)
    assert reference_matrices.most_alike("Q5_0", {"Q4_0": 1, "Q8_0": 2}) == "Q4_0"


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
     "n_gpu_layers": -1, "backends": "CPU"},
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


def test_a_prompt_that_takes_long_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = verify.question(str(runner_tiny.write(tmp_path / "m.gguf", "llama", "Q8_0")), None, n_prompt=24, n_decode=2,
                            threads=1)  # fmt: skip
    verify.verify(asked)
    assert "takes about" not in capsys.readouterr().err
    monkeypatch.setattr(verify, "LONG_S", 0.0)
    verify.verify(asked)
    assert "note: the prompt takes about" in capsys.readouterr().err
