"""Servers under load as throughput: Little's law, one observation per configuration."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from planner import rows

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # last: benchmarks has a runner too
import served_throughput


def written(folder: Path, *changes: dict[str, str]) -> Path:
    base = {
        "id": "x_c16", "source": "s", "source_ref": "silicon_concurrency=16", "engine": "vllm",
        "model_canonical": "meta-llama/Llama-3.1-8B-Instruct", "system": "h100_sxm",
        "hardware_canonical": "nvidia-h100-80gb-sxm", "precision": "fp8", "mode": "agg", "isl": "1000",
        "osl": "101", "gemm_quant_mode": "fp8", "batch_size": "16", "tp_size": "1", "pp_size": "1",
        "attention_dp_size": "1", "moe_tp_size": "1", "moe_ep_size": "1", "ttft_ms": "1000", "tpot_ms": "10",
    }  # fmt: skip
    with (folder / "serving.csv").open("w", newline="", encoding="utf-8") as file:
        columns = ["source", *rows.READS["serving"], "ttft_ms", "tpot_ms"]
        table = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        table.writeheader()
        table.writerows(base | change for change in changes)
    return folder


def test_a_closed_loop_finishes_as_many_requests_as_it_holds_in_the_time_of_one(tmp_path: Path) -> None:
    (found,) = served_throughput.observations(written(tmp_path, {}))
    assert found.metric == "total_throughput_tps"
    assert found.value == pytest.approx(16 * 1101 / 2.0)  # 1 s to the first token, 100 more of 10 ms
    assert found.trust == "low"
    assert found.deployment.workload.client == "static"


def test_repeats_count_once_and_separate_workers_not_at_all(tmp_path: Path) -> None:
    repeats = [{"tpot_ms": x} for x in ("10", "12", "90")]
    apart = {"mode": "disagg", "prefill_tp_size": "1", "decode_tp_size": "1", "decode_batch_size": "16"}
    (found,) = served_throughput.observations(written(tmp_path, *repeats, apart))
    assert found.value == pytest.approx(16 * 1101 / 2.2)


def test_without_the_file_there_is_nothing_to_learn(tmp_path: Path) -> None:
    assert served_throughput.observations(tmp_path) == []
