"""`benchmarks/gpu.py` runs on the processor with a toy model, so that it is whole when a GPU is at hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from hwdb.device import Device, Machine

torch = pytest.importorskip("torch")
ROOT = Path(__file__).parent.parent
HOST = Device("cpu", "Some CPU", "AMD", "cpu", memory_bytes=16 << 30, bandwidth_bytes_per_s=1e10, fp32_flops=1e11,
              cpu_cores=4, basis="measured")  # fmt: skip


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch):
    from runner import torch_measure

    monkeypatch.setattr("hwdb.detect.detect", lambda: Machine("here", host=HOST))
    monkeypatch.setattr(torch_measure, "ITEM_S", 0.01)
    specification = importlib.util.spec_from_file_location("benchmark_gpu", ROOT / "benchmarks" / "gpu.py")
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(__import__("sys").modules, "benchmark_gpu", module)
    specification.loader.exec_module(module)
    return module


def test_the_page_has_a_row_for_every_format(
    benchmark, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gpu.md"
    assert benchmark.main(["--device", "cpu", "--tiny", "--page", str(path)]) == 0
    text = path.read_text()
    assert capsys.readouterr().out == text
    for label, _ in benchmark.RUNS:
        assert text.count(f"| {label} |") == 2  # decode and prompts
        assert f"- {label}: " in text
    assert "no measurement" in text
    assert "F8_E4M3 kept packed" in text
    assert "Q4_K, Q6_K kept packed" in text


def test_without_a_gpu_it_ends_in_one_line(
    benchmark, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmark.main(["--device", "cuda"]) == 5
    assert "no device `cuda` on this machine" in capsys.readouterr().err
