"""Batch prediction: rows keep their place and their bytes, what was measured is never looked at."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from planner import predict, rows
from planner.asks import Refusal
from planner.errors import EnvironmentFailed, UsageError

DATA = Path(__file__).parent / "data" / "rows"
Predicted = dict[str, tuple[Path, predict.Summary]]
NAMES = ("speed", "memory", "serving", "llamacpp_memory")


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> Predicted:
    folder = tmp_path_factory.mktemp("predicted")
    return {
        name: (folder / f"{name}.csv", predict.predict_file(DATA / f"{name}.csv", folder / f"{name}.csv"))
        for name in NAMES
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_row_keeps_its_place_and_its_bytes(name: str, predicted: Predicted) -> None:
    before = (DATA / f"{name}.csv").read_bytes().split(b"\n")
    after = predicted[name][0].read_bytes().split(b"\n")
    assert len(after) == len(before)
    assert all(new.startswith(old) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_row_has_a_price_or_a_reason(name: str, predicted: Predicted) -> None:
    path, summary = predicted[name]
    layout = rows.read(DATA / f"{name}.csv").layout
    value = predict.COLUMNS[layout][0]
    found = table(path)
    assert len(found) == summary.n_rows
    for row in found:
        if row["status"] == "ok":
            assert float(row[value]) > 0
            assert not row["reason"]
        else:
            assert row["status"] == "unsupported"
            assert row["reason"]
            assert not row[value]
    assert sum(row["status"] == "ok" for row in found) == summary.n_priced


@pytest.mark.parametrize(
    ("name", "share"), [("speed", 0.93), ("memory", 0.85), ("serving", 0.99), ("llamacpp_memory", 1.0)]
)
def test_most_public_measurements_can_be_priced(name: str, share: float, predicted: Predicted) -> None:
    summary = predicted[name][1]
    assert summary.n_priced >= share * summary.n_rows, summary.text()


@pytest.mark.parametrize("name", ["speed", "serving"])
def test_low_best_high_are_in_order(name: str, predicted: Predicted) -> None:
    for row in table(predicted[name][0]):
        if row["status"] != "ok":
            continue
        triples = [("low", "predicted", "high")]
        if name == "serving":
            triples = [(f"low_{m}", f"predicted_{m}", f"high_{m}") for m in ("ttft_ms", "tpot_ms")]
        for low, best, high in triples:
            assert float(row[low]) <= float(row[best]) <= float(row[high])


@pytest.mark.parametrize("name", ["speed", "memory", "serving"])
def test_what_was_measured_changes_no_prediction(name: str, tmp_path: Path, predicted: Predicted) -> None:
    measured = rows.MEASURED[rows.read(DATA / f"{name}.csv").layout]
    found = table(DATA / f"{name}.csv")
    shifted = [
        {**row, **{column: found[(i + 7) % len(found)][column] if i % 2 else "" for column in measured}}
        for i, row in enumerate(found)
    ]
    path = tmp_path / "shifted.csv"
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, found[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(shifted)
    predict.predict_file(path, tmp_path / "out.csv")
    appended = predict.COLUMNS[rows.read(path).layout]
    for new, old in zip(table(tmp_path / "out.csv"), table(predicted[name][0]), strict=True):
        assert [new[c] for c in appended] == [old[c] for c in appended]


def test_llamacpp_bytes_are_those_that_llamacpp_computed(
    predicted: Predicted,
) -> None:
    for row in table(predicted["llamacpp_memory"][0]):
        assert row["predicted_model_bytes"] == row["model_bytes"]
        assert row["predicted_kv_bytes"] == row["kv_bytes"]
        assert row["predicted_file_bytes"] == row["file_bytes"]
        assert abs(int(row["predicted_compute_bytes"]) / int(row["compute_bytes"]) - 1) < 0.15


def test_an_extra_leading_column_is_carried_through(tmp_path: Path) -> None:
    lines = (DATA / "llamacpp_memory.csv").read_text().splitlines()[:4]
    path = tmp_path / "heldout.csv"
    path.write_text("\n".join(["heldout," + lines[0], *("yes," + line for line in lines[1:])]) + "\n")
    predict.predict_file(path, tmp_path / "out.csv")
    found = table(tmp_path / "out.csv")
    assert [row["heldout"] for row in found] == ["yes"] * 3
    assert all(row["status"] == "ok" for row in found)


def test_line_ends_and_byte_order_mark_stay(tmp_path: Path) -> None:
    text = "\r\n".join((DATA / "llamacpp_memory.csv").read_text().splitlines()[:3]) + "\r\n"
    path = tmp_path / "windows.csv"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    predict.predict_file(path, tmp_path / "out.csv")
    out = (tmp_path / "out.csv").read_bytes()
    assert out.startswith(b"\xef\xbb\xbfmodel_canonical")
    assert out.count(b"\r\n") == 3 == out.count(b"\n")


def test_columns_that_exist_already_are_not_doubled(tmp_path: Path) -> None:
    path = tmp_path / "again.csv"
    path.write_text(
        "engine,model_canonical,quant,metric,input_tokens,predicted\nvllm,m,BF16,decode_tps,1,3\n"
    )
    with pytest.raises(UsageError, match="already has the column `predicted`"):
        predict.predict_file(path, tmp_path / "out.csv")


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed, match="cannot write"):
        predict.predict_file(DATA / "llamacpp_memory.csv", tmp_path / "none" / "out.csv")
    assert list(tmp_path.iterdir()) == []


def test_equal_rows_are_priced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from planner import pricing

    calls = []
    monkeypatch.setattr(pricing, "price", lambda ask: calls.append(ask) or Refusal("counted"))
    file = rows.read(DATA / "speed.csv")
    twice = rows.File(file.path, file.layout, file.columns, file.header, file.records * 2)
    answers = predict.price(twice)
    assert len(answers) == 2 * len(file.records)
    assert len(calls) <= len(file.records)


def test_a_broken_row_is_refused_and_a_broken_program_is_not_hidden() -> None:
    file = rows.read(DATA / "speed.csv")
    ask = next(a for a in (rows.ask(r, file.layout) for r in file.records) if not isinstance(a, Refusal))

    def refuse(_: object) -> Refusal:
        raise ValueError("the memory bandwidth is not known\nsecond line")

    def broken(_: object) -> Refusal:
        raise KeyError("bug")

    answer = predict.price_ask(ask, refuse)
    assert answer.reason == "the memory bandwidth is not known"
    with pytest.raises(KeyError):
        predict.price_ask(ask, broken)


def test_a_target_that_cannot_be_is_said_before_any_row_is_priced(tmp_path: Path) -> None:
    for out, why in ((tmp_path / "none" / "out.csv", "there is no folder"), (tmp_path, "is a folder")):
        with pytest.raises(EnvironmentFailed, match=why):
            predict.predict_file(tmp_path / "not-even-there.csv", out)
