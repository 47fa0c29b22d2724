"""`plan predict`, `plan validate` and `plan check` from the command line, and a fuzz of every flag."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import cli, errors

ROOT = Path(__file__).parent.parent
ROWS = Path(__file__).parent / "data" / "rows" / "speed.csv"
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


def read(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))


def test_predict_keeps_rows_and_appends_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.csv"
    assert cli.main(["predict", str(ROWS), "--out", str(out)]) == errors.OK
    before = read(ROWS)
    after = read(out)
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        assert {name: new[name] for name in old} == old
        assert new["status"] in ("ok", "unsupported")
    priced = [row for row in after if row["status"] == "ok"]
    assert priced
    assert all(float(row["low"]) <= float(row["predicted"]) <= float(row["high"]) for row in priced)
    assert "predicted" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["text", "markdown", "json"])
def test_validate_reports_errors(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["validate", str(ROWS), "--format", form]) == errors.OK
    out = capsys.readouterr().out
    assert "median" in out
    if form == "json":
        assert json.loads(out)["schema_version"] == 1


def test_a_file_of_no_known_layout_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "odd.csv"
    file.write_text("a,b\n1,2\n", encoding="utf-8")
    assert cli.main(["predict", str(file), "--out", str(tmp_path / "o.csv")]) == errors.USAGE
    assert (
        cli.main(["predict", str(tmp_path / "none.csv"), "--out", str(tmp_path / "o.csv")])
        == errors.ENVIRONMENT
    )
    assert cli.main(["validate", str(ROWS), "--format", "xml"]) == errors.UNKNOWN
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("spec", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_decided_or_say_that_they_are_not(
    spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(["check", str(spec), "--format", "json"])
    document = json.loads(capsys.readouterr().out)
    assert code == document["exit_code"]
    assert code in (errors.OK, errors.NOTHING_FITS)
    assert document["findings"]


SPEC = """version: 1
machine: {gpu: rtx 4060}
deployments:
  - name: a
    model: qwen3-8b
    quant: Q4_K_M
    require: {min_tps: 100000}
"""


def test_a_broken_promise_exits_1_and_a_broken_spec_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "plan.yaml"
    spec.write_text(SPEC, encoding="utf-8")
    assert cli.main(["check", str(spec)]) == errors.FAILED
    spec.write_text(SPEC.replace("min_tps: 100000", "min_tpz: 1"), encoding="utf-8")
    capsys.readouterr()
    assert cli.main(["check", str(spec)]) == errors.USAGE
    assert ":7:" in capsys.readouterr().err


ODD_WORDS = (
    "8G", "-1", "0", "1e9", "nan", "qwen3-8b", "Q4_K_M", "f16", "2x", "x3090", "3090x2", "../", "/", ".",
    "chat", "%s", "--json", "rtx 4060", "", "\x00",
)  # fmt: skip
FLAGS = (
    "--vram", "--ram", "--gpu", "--cpu", "--task", "--context", "--prompt", "--output", "--min-tps",
    "--max-ttft", "--engine", "--model", "--quant", "--kv", "--license", "--max-size", "--top", "--users",
    "--format", "--color",
)  # fmt: skip
WORDS = st.one_of(st.text(max_size=12), st.sampled_from(ODD_WORDS))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(FLAGS), WORDS), max_size=4))
def test_no_flags_make_a_defect(pairs: list[tuple[str, str]]) -> None:
    arguments = [word for pair in pairs for word in pair]
    code = cli.main(["--gpu", "rtx 4060", "--max-size", "3B", *arguments])
    assert code in (errors.OK, errors.USAGE, errors.NOTHING_FITS, errors.UNKNOWN, errors.ENVIRONMENT)
