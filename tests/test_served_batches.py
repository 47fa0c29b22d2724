"""Batches of the engines that serve: whole seconds, weighted by source, none of a source whose runs are servers."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

from planner import rows

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # last: benchmarks has a runner too
import served_batches


def written(folder: Path, *changes: dict[str, str]) -> Path:
    base = {
        "id": "x", "source": "bench", "hardware": "H100 80GB SXM", "hardware_canonical": "nvidia-h100-80gb-sxm",
        "n_devices": "1", "engine": "vllm", "backend": "cuda", "model": "Llama-3.1-8B-Instruct",
        "model_canonical": "meta-llama/Llama-3.1-8B-Instruct", "quant": "FP16/BF16", "input_tokens": "1000",
        "batch_or_concurrency": "16", "output_tokens": "101", "metric": "total_throughput_tps", "value": "8808",
    }  # fmt: skip
    with (folder / "speed.csv").open("w", newline="", encoding="utf-8") as file:
        columns = ["source", *rows.READS["speed"], "value"]
        table = csv.DictWriter(file, list(dict.fromkeys(columns)), restval="", extrasaction="ignore")
        table.writeheader()
        table.writerows(base | change for change in changes)
    (folder / "sources.csv").write_text("source,trust\nbench,medium\nother,low\n", encoding="utf-8")
    return folder


def test_throughputs_of_one_batch_are_the_same_seconds(tmp_path: Path) -> None:
    printed = {"total_throughput_tps": 16 * 1101, "output_throughput_tps": 16 * 101, "request_throughput": 16}
    changes = [{"metric": name, "value": str(work / 2.0)} for name, work in printed.items()]
    found = served_batches.observations(written(tmp_path, *changes), set())
    assert found.whole_s == pytest.approx([2.0, 2.0, 2.0])
    assert found.load.n_users.tolist() == [16.0] * 3
    assert {x["client"] for x in found.labels} == {"static"}
    assert np.isnan(found.ttft_s).all()
    assert np.isnan(found.tpot_s).all()
    assert not found.servers.any()


def test_only_engines_that_serve_and_sources_that_are_no_servers_yet(tmp_path: Path) -> None:
    changes = ({}, {"engine": "llama.cpp", "quant": "Q8_0"}, {"source": "other"}, {"metric": "decode_tps"})
    found = served_batches.observations(written(tmp_path, *changes), {"other"})
    assert [x["source"] for x in found.labels] == ["bench"]


def test_a_large_source_does_not_drown_the_rest(tmp_path: Path) -> None:
    many = [{"value": str(8000 + i)} for i in range(240)]
    found = served_batches.observations(written(tmp_path, *many, {"source": "other"}), set())
    assert found.weights[0] == pytest.approx(0.7 / 2.0)  # four times the rows that count in full
    assert found.weights[-1] == pytest.approx(0.2)
