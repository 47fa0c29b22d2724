"""Measuring and verifying a PyTorch device, on the processor; and what only a GPU has, on stand-ins for it."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import runner_tiny
import test_runner_checkpoint
import test_torch_blocks

from hwdb.device import Device, Machine
from modeldb import readers, schemes
from modeldb.errors import UnsupportedModel
from planner import measure_gpu, verify, verify_gpu
from planner.cli import main
from planner.errors import EnvironmentFailed, UsageError
from runner import torch_device, torch_measure, torch_meter, weights
from runner.errors import RunnerError
from runner.torch_backend import TorchEngine

torch = pytest.importorskip("torch")

HOST = Device("cpu", "Some CPU", "AMD", "cpu", memory_bytes=16 << 30, bandwidth_bytes_per_s=1e10, fp32_flops=1e11,
              cpu_cores=4, basis="measured")  # fmt: skip
SIZES = {"read_bytes": 1 << 24, "widths": (128,), "n_tokens": 64}
CARD = Device("card", "Some Card", "NVIDIA", "gpu", memory_bytes=8 << 30, bandwidth_bytes_per_s=1e12,
              fp16_tensor_flops=1e14)  # fmt: skip
FOUND = torch_measure.GpuSurvey(
    "Some Card", "cuda", 8 << 30, "sm_89", 0.9e12, 0.8e12,
    tuple(torch_measure.ProductRate("float16", width, 4096, rate) for width, rate in ((4096, 7e13), (8192, 8e13))),
    4e-6, 1e-6, 2e-5, 2e10, 2.1e10, 9.0, torch_device.GpuConditions(),
)  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_PLAN_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setattr("hwdb.detect.detect", lambda: Machine("here", host=HOST))
    monkeypatch.setattr(torch_measure, "ITEM_S", 0.01)
    monkeypatch.setattr(torch_measure, "WIDTHS", (128,))


# -- plan measure ----------------------------------------------------------------------------------------------


def test_a_survey_of_a_device_has_positive_rates_of_every_kind() -> None:
    found = measure_gpu.survey("cpu", **SIZES)
    assert found.backend == "cpu"
    assert {p.dtype for p in found.products} >= {"float32", "float16", "bfloat16"}
    assert all(p.median_flops > 1e6 and p.width == 128 for p in found.products)
    assert found.read_bytes_per_s == max(found.sum_bytes_per_s, found.copy_bytes_per_s) > 1e7
    assert 0 < found.launch_s < 0.1
    assert found.round_trip_s > 0
    assert (found.graph_launch_s, found.host_to_device_bytes_per_s) == (None, None)  # a processor has neither
    text = measure_gpu.text(found)
    assert "read (sum)" in text
    assert "bfloat16, 128" in text


def test_a_machine_without_a_gpu_gets_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments in (["measure", "--device", "cuda"], ["verify", "qwen3-0.6b", "--device", "cuda"]):
        assert main(arguments) == 5
        error = capsys.readouterr().err
        assert "no device `cuda` on this machine: PyTorch finds no CUDA or ROCm GPU" in error
        assert "Traceback" not in error
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None)
    with pytest.raises(EnvironmentFailed, match="PyTorch, which is not installed"):
        measure_gpu.survey("cuda")


def test_rates_of_a_known_gpu_are_shown_but_not_used_and_those_of_an_unknown_one_are() -> None:
    known, unknown = Machine("m", devices=(CARD,)), replace(CARD, bandwidth_bytes_per_s=None)
    assert measure_gpu.device_of(FOUND, known) == CARD
    assert measure_gpu.keep(FOUND, known) is None
    assert "90% of the datasheet" in measure_gpu.text(FOUND, CARD)
    assert "datasheet" not in measure_gpu.text(FOUND, unknown)
    machine = Machine("m", devices=(unknown,))
    used = measure_gpu.device_of(FOUND, machine)
    assert (used.bandwidth_bytes_per_s, used.fp16_tensor_flops, used.basis) == (0.9e12, 0.8e14, "measured")
    path = measure_gpu.keep(FOUND, machine)
    assert path is not None
    assert json.loads(path.read_text())["bandwidth_bytes_per_s"] == 0.9e12
    assert measure_gpu.forget(machine)
    assert not measure_gpu.forget(machine)


def test_the_command_measures_and_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", "--device", "cpu", "--json", "--dry-run"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["bandwidth_bytes_per_s"] > 1e7
    assert shown["products"][0]["dtype"] == "float32"


# -- conditions ------------------------------------------------------------------------------------------------


class Nvml:
    """Answers as NVML does, the clock falling each time."""

    def __init__(self, reasons: int, clocks: list[int], pids: list[int]) -> None:
        self.reasons, self.clocks, self.pids = reasons, clocks, pids

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:
        return self.clocks.pop(0)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> int:
        return self.reasons

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=p) for p in self.pids]


@pytest.mark.parametrize(
    ("reasons", "clocks", "pids", "says"),
    [(0, [1900, 1900], [], []), (0x4, [1900, 1900], [], ["slowed down: power cap"]),
     (0x60, [1900, 1900], [], ["slowed down: heat"]), (0, [1900, 1200], [], ["fell from 1.90 to 1.20 GHz"]),
     (0, [1900, 1900], [1, 2], ["2 other processes computed"])],
)  # fmt: skip
def test_every_condition_of_a_gpu_has_its_remark(reasons, clocks, pids, says) -> None:
    watch = torch_device.GpuWatch(SimpleNamespace(type="cuda", index=0), Nvml(reasons, clocks, pids))
    remarks = watch.conditions().remarks()
    assert len(remarks) == len(says)
    assert all(s in r for s, r in zip(says, remarks, strict=True))


def test_a_device_that_nobody_tells_of_has_no_remarks() -> None:
    assert torch_device.GpuWatch(torch.device("cpu")).conditions() == torch_device.GpuConditions()


# -- the meter and plan verify ---------------------------------------------------------------------------------


def test_a_metered_request_counts_what_the_engine_holds(tmp_path: Path) -> None:
    opened = weights.open_file(runner_tiny.write(tmp_path / "m.gguf", "llama", "Q4_0"))
    for static in (True, False):
        engine = TorchEngine(opened, n_context=64, device="cpu", packed=True, static=static)
        report = torch_meter.run(engine, list(range(20)), 5)
        assert len(report.token_s) == 5
        assert report.weight_bytes == opened.weight_bytes
        assert (report.first.n_tokens, report.last.n_tokens, engine.n_tokens) == (21, 25, 25)
        assert min(report.ttft_s, report.tpot_s, report.decode_bytes_per_s, report.prefill_flops_per_s) > 0
        assert report.overhead_bytes is None
        engine.close()


@pytest.mark.parametrize(
    ("name", "kind"), [("llama", "Q4_0"), ("qwen3moe", "Q8_0"), ("gemma2", "Q4_0"), ("gpt-oss", "Q8_0")]
)
def test_exact_lines_of_a_packed_model_are_equal(name: str, kind: str, tmp_path: Path) -> None:
    path = runner_tiny.write(tmp_path / "m.gguf", name, kind)
    asked = verify.question(str(path), None, n_prompt=20, n_decode=4)
    found = verify_gpu.verify(asked, "cpu", **SIZES)
    exact = [line for line in found.lines if line.exact]
    assert len(exact) >= 8
    assert [(line.name, line.predicted.best, line.measured) for line in exact if not line.holds] == []
    assert {line.name for line in found.lines if not line.exact} == {"TTFT", "TPOT"}
    notes = "\n".join(found.notes)
    assert f"{kind} kept packed" in notes
    assert "of the bandwidth reached" in notes
    assert "not captured" in notes
    assert "as gpt-fast" in notes


def test_expanded_weights_are_said_and_not_compared(tmp_path: Path) -> None:
    path = runner_tiny.write(tmp_path / "m.gguf", "llama", "F16")
    found = verify_gpu.verify(verify.question(str(path), None, n_prompt=8, n_decode=2), "cpu", **SIZES)
    assert [line.name for line in found.lines if line.exact] == [
        "parameters",
        "other weights",
        "cache allocated",
    ]
    assert any("F16 expanded to float32" in note for note in found.notes)


@pytest.mark.parametrize(
    ("name", "quant"), [("llama", "fp8"), ("qwen3moe", "native-fp8"), ("gpt-oss", "fp8-per-channel"),
                        ("mixtral", "fp8"), ("gemma3", "bf16"), ("phi3", "fp16"), ("deepseek2", "bf16")],
)  # fmt: skip
def test_exact_lines_of_checkpoint_schemes_are_equal_scales_included(
    name: str, quant: str, tmp_path: Path
) -> None:
    found = verify_gpu.verify(_toy(name, quant, tmp_path), "cpu", own_types=True, **SIZES)
    exact = [line for line in found.lines if line.exact]
    assert {"all weights", "a step touches", "a step computes"} <= {line.name for line in exact}
    assert [(line.name, line.predicted.best, line.measured) for line in exact if not line.holds] == []


@pytest.mark.parametrize(("name", "scales"), [("llama", "tensor"), ("qwen3", "row"), ("qwen3moe", "block")])
def test_exact_lines_of_fp8_checkpoints_are_equal(name: str, scales: str, tmp_path: Path) -> None:
    folder, _ = test_torch_blocks.write_fp8_folders(tmp_path, name, scales, "BF16")
    asked = verify.question(str(folder), None, n_prompt=8, n_decode=2)
    found = verify_gpu.verify(asked, "cpu", own_types=True, **SIZES)
    exact = [line for line in found.lines if line.exact]
    assert len(exact) >= 11
    assert [(line.name, line.predicted.best, line.measured) for line in exact if not line.holds] == []


def test_classes_that_are_held_as_stored_are_compared_though_others_are_expanded(tmp_path: Path) -> None:
    found = verify_gpu.verify(_toy("qwen3", "fp8", tmp_path), "cpu", **SIZES)
    exact = {line.name: line.holds for line in found.lines if line.exact}
    assert exact == {
        "parameters": True,
        "mixer weights": True,
        "dense weights": True,
        "cache allocated": True,
    }


def test_the_command_verifies_fp8_on_a_device_and_refuses_it_on_the_processor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = test_runner_checkpoint.COMMON | test_runner_checkpoint.CONFIGS["qwen3"]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    lengths = ["--prompt", "8", "--output", "2"]
    assert main(["verify", str(path), "-q", "fp8", "--device", "cpu", *lengths]) == 0  # times are not judged
    shown = capsys.readouterr()
    assert "fp8-per-tensor (on cpu)" in shown.out
    assert "F8_E4M3 kept packed" in shown.err
    assert main(["verify", str(path), "-q", "fp8", *lengths]) == 4
    assert (
        "no kernel for fp8 (`blk.0.attn_q.weight`); on PyTorch (--device) it has one"
        in capsys.readouterr().err
    )


def test_latent_attention_of_fp8_checkpoints_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"splits `blk.0.attn_kv_b.weight`, which it can in 16 bits"):
        verify_gpu.verify(_toy("deepseek2", "fp8", tmp_path), "cpu", **SIZES)


def _toy(name: str, quant: str, tmp_path: Path) -> verify.Question:
    """The model of a tiny file, under another scheme."""
    model, _ = readers.read(str(runner_tiny.write(tmp_path / "toy.gguf", name, "F16")), offline=True)
    return verify.Question(replace(model, file_tensors=()), schemes.get(quant), n_prompt=8, n_decode=2)


def test_a_model_too_large_for_the_device_is_refused_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_device, "memory_bytes", lambda device: (1 << 28, 1 << 28))
    with pytest.raises(UsageError, match=r"of weights and cache do not fit `cpu`: 256 MiB are free"):
        verify_gpu.verify(verify.question("qwen3-0.6b", None), "cpu", **SIZES)


# -- CUDA graphs, on a stand-in that records as CUDA does: capturing computes nothing ---------------------------


class Graph:
    """Stands for torch.cuda.CUDAGraph."""

    recording: Graph | None = None
    made = 0

    def __init__(self) -> None:
        self.work: list = []
        Graph.made += 1

    def pool(self) -> int:
        return 1

    def replay(self) -> None:
        for work in self.work:
            work()


class Recording:
    def __init__(self, graph: Graph, pool: object = None) -> None:
        self.graph = graph

    def __enter__(self) -> None:
        Graph.recording = self.graph

    def __exit__(self, *_: object) -> None:
        Graph.recording = None


def test_captured_steps_replayed_give_the_logits_of_the_plain_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, stand_in in (("Stream", lambda: stream), ("current_stream", lambda: stream), ("graph", Recording),
                           ("stream", lambda s: nullcontext()), ("CUDAGraph", Graph)):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    opened = weights.open_file(runner_tiny.write(tmp_path / "m.gguf", "gemma3", "F16"))
    plain = TorchEngine(opened, n_context=600, n_batch=64, device="cpu", static=False)
    captured = TorchEngine(opened, n_context=600, n_batch=64, device="cpu", static=True)
    decode = captured._decode
    assert decode is not None
    decode.capture, compute = True, decode.step

    def step(n_seen: int) -> None:
        if Graph.recording is not None:
            Graph.recording.work.append(lambda: compute(n_seen))
        else:
            compute(n_seen)

    monkeypatch.setattr(decode, "step", step)
    prompt = np.random.default_rng(0).integers(0, runner_tiny.VOCAB, 253).tolist()
    np.testing.assert_array_equal(plain.prefill(prompt), captured.prefill(prompt))
    Graph.made = 0
    for token in range(8):
        wanted = plain.decode(token)
        np.testing.assert_allclose(
            captured.decode(token), wanted, atol=1e-3 * float(np.std(wanted)), rtol=1e-3
        )
    assert Graph.made == 2  # one bucket of 256 slots, one of 512
    assert len(captured.decode_times(5, 3)) == 3
    assert Graph.made == 2
    last = [int(np.argmax(plain.decode(9)))]
    plain.rewind(261)
    captured.rewind(261)
    assert captured.greedy(9, 1) == last


def test_devices_that_are_not_there_are_named() -> None:
    with pytest.raises(RunnerError, match="no device `nonsense` on this machine"):
        torch_device.open_device("nonsense")
    assert torch_device.backend(torch.device("cpu")) == "cpu"
    assert torch_device.open_device("cpu").type == "cpu"
