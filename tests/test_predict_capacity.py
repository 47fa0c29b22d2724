"""`plan predict` on largest batches and on the tensors of GGUF files."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from planner import predict, rows

BOUNDARIES = Path(__file__).parent / "data/memory/trtllm_kv_boundary.csv"


def predicted(path: Path, tmp_path: Path) -> list[dict[str, str]]:
    out = tmp_path / "out.csv"
    predict.predict_file(path, out)
    return list(csv.DictReader(out.read_text().splitlines()))


def test_largest_batches_are_met_and_lie_in_their_intervals(tmp_path):
    found = predicted(BOUNDARIES, tmp_path)
    assert found
    for row in found:
        assert row["status"] == "ok"
        best, measured = int(row["predicted_max_batch"]), int(row["max_batch_measured"])
        assert best == pytest.approx(measured, rel=0.04, abs=1)
        assert int(row["low_max_batch"]) <= best <= int(row["high_max_batch"])


def test_tensors_of_a_file_are_counted_by_type(tmp_path):
    # gguf-py over Llama-3.1-8B-Instruct: 226 matrices in F16 and 66 vectors in F32
    path = tmp_path / "tensors.csv"
    path.write_text(
        "model_canonical,arch,scheme,ggml_type,n_tensors,n_elements,bytes\n"
        "meta-llama/Llama-3.1-8B-Instruct,llama,F16,F16,226,8029995008,16059990016\n"
        "meta-llama/Llama-3.1-8B-Instruct,llama,F16,Q4_K,0,0,0\n"
        "no-such/model,llama,F16,F16,1,1,1\n"
    )
    assert rows.read(path).layout == "tensors"
    first, absent, unknown = predicted(path, tmp_path)
    for name in ("n_tensors", "n_elements", "bytes"):
        assert first[f"predicted_{name}"] == first[name]
        assert absent[f"predicted_{name}"] == "0"
    assert unknown["status"] == "unsupported"
    assert "no-such/model" in unknown["reason"]


def test_measured_columns_are_not_read(tmp_path):
    text = BOUNDARIES.read_text().splitlines()
    column = text[0].split(",").index("max_batch_measured")
    changed = [text[0]]
    for line in text[1:]:
        cells = line.split(",")
        cells[column] = "7"
        changed.append(",".join(cells))
    other = tmp_path / "other.csv"
    other.write_text("\n".join(changed) + "\n")
    names = ("predicted_max_batch", "low_max_batch", "high_max_batch")
    one, two = predicted(BOUNDARIES, tmp_path), predicted(other, tmp_path)
    assert [[r[n] for n in names] for r in one] == [[r[n] for n in names] for r in two]
