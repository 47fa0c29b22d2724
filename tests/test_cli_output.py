"""What is written where: formats, pipes, colour, widths, notes on stderr."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys

import pytest

import hwdb.catalogue
from hwdb.errors import AmbiguousDevice
from planner import cli, completion, report_csv
from planner.report_table import bar

QUESTION = ("--gpu", "rtx 4060", "--task", "chat")


def out_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(list(arguments)) == 0
    return capsys.readouterr().out


def test_a_pipe_gets_tabs_and_whole_names(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [line.split("\t") for line in out_of(capsys, *QUESTION).splitlines()]
    assert rows[0] == list(report_csv.HEADERS)
    assert {len(row) for row in rows} == {len(report_csv.HEADERS)}
    assert "…" not in str(rows)


def test_csv_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(out_of(capsys, *QUESTION, "--csv", "--commands"))))
    assert rows
    for row in rows:
        assert 0 < int(row["device_bytes"]) <= int(row["capacity_bytes"])
        assert float(row["tokens_per_s_low"]) <= float(row["tokens_per_s"]) <= float(row["tokens_per_s_high"])
        assert row["command"]


def test_json_is_byte_identical_and_unrounded(capsys: pytest.CaptureFixture[str]) -> None:
    first = out_of(capsys, *QUESTION, "--json")
    assert first == out_of(capsys, *QUESTION, "--json")
    document = json.loads(first)
    assert document["schema_version"] == 1
    assert set(document) == {"schema_version", "request", "answer", "provenance"}
    assert document["request"]["task"] == "chat"
    assert document["provenance"]["machine"]["devices"][0]["source"]
    assert list(document) == sorted(document)


def test_json_does_not_depend_on_hashing() -> None:
    command = [sys.executable, "-m", "planner.cli", *QUESTION, "--json"]
    outputs = {
        subprocess.run(
            command, capture_output=True, env={**os.environ, "PYTHONHASHSEED": seed}, check=True
        ).stdout
        for seed in ("0", "1", "7")
    }
    assert len(outputs) == 1
    assert outputs != {b""}


def test_markdown_is_a_table_with_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    text = out_of(capsys, *QUESTION, "--markdown")
    assert "| # | model |" in text
    assert "```sh\nllama-server" in text


@pytest.mark.parametrize("width", [60, 80, 100, 129, 130, 200])
def test_a_table_never_exceeds_its_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    text = out_of(capsys, *QUESTION, "--format", "table")
    body = text.split("\nrun 1:")[0]
    assert max(map(len, body.splitlines())) <= width
    assert "\x1b" not in text


@pytest.mark.parametrize("machine", [("--gpu", "rtx 4090"), ("--gpu", "h100", "--users", "32")])
def test_a_narrow_table_gives_up_bars_and_names_but_no_number(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, machine: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    lines = out_of(capsys, *machine, "--format", "table", "--top", "3").splitlines()
    numbered = [line.split() for line in lines if re.match(r"[123]  \S", line)]
    rows = json.loads(out_of(capsys, *machine, "--json", "--top", "3"))["answer"]["rows"]
    assert [line[-1].lstrip("~") for line in numbered] == [f"{r['quality']['best']:.0f}" for r in rows]


def test_colour_follows_flag_then_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    assert "\x1b" not in out_of(capsys, *QUESTION, "--format", "table")
    assert "\x1b" in out_of(capsys, *QUESTION, "--format", "table", "--color", "always")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" in out_of(capsys, *QUESTION)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in out_of(capsys, *QUESTION, "--format", "table")


def test_notes_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--vram", "8G"]) == 0
    out, err = capsys.readouterr()
    assert "note: any GPU with 8.0 GiB" in err
    assert "note:" not in out


def test_a_class_spans_more_than_one_of_its_members(capsys: pytest.CaptureFixture[str]) -> None:
    question = ("--model", "qwen3-8b", "--quant", "Q4_K_M", "--context", "4k", "--json")
    spans = {}
    for name, machine in (("class", ("--vram", "8G")), ("one", ("--gpu", "rtx 4060"))):
        row = json.loads(out_of(capsys, *machine, *question))["answer"]["rows"][0]
        spans[name] = (row["tokens_per_s"]["low"], row["tokens_per_s"]["high"])
    assert spans["class"][0] < spans["one"][0]
    assert spans["class"][1] > spans["one"][1]


def test_why_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(out_of(capsys, "why", "qwen3-8b", "--gpu", "rtx 4060", "--json"))
    for device in document["bill"]:
        assert sum(line["bytes"]["best"] for line in device["lines"]) == pytest.approx(
            device["total"]["best"]
        )
    assert document["decode_terms"]


def test_why_prints_bill_speed_and_quality(capsys: pytest.CaptureFixture[str]) -> None:
    text = out_of(capsys, "why", "qwen3-8b", "--gpu", "rtx 4060")
    for part in ("memory", "keys and values", "first token", "each token", "quality", "machine"):
        assert part in text


def test_commands_of_every_engine(capsys: pytest.CaptureFixture[str]) -> None:
    text = out_of(capsys, "command", "qwen3-8b", "--gpu", "rtx 3090", "--all")
    assert "llama-server" in text
    assert "vllm serve" in text
    assert "# mlx: " in text  # refused, with the reason


def test_a_flag_says_what_it_means_for_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert "print every row" in out_of(capsys, "--help")
    text = out_of(capsys, "command", "--help")
    assert "print every row" not in text
    assert "of every engine" in text


def test_facts_of_a_device_have_their_units(capsys: pytest.CaptureFixture[str]) -> None:
    lines = dict(line.split(maxsplit=1) for line in out_of(capsys, "hw", "rtx 4060").splitlines()[1:])
    assert lines["boost_hz"].startswith("2.46 GHz")
    assert lines["fp8_flops"].startswith("60.5 TFLOP/s")
    assert lines["int8_ops"].startswith("120.9 TOP/s")
    assert "cpu_sockets" not in lines
    assert "cpu_sockets" in out_of(capsys, "hw", "amd-ryzen-9-7950x")


def test_lists_and_single_facts(capsys: pytest.CaptureFixture[str]) -> None:
    assert "geforce-rtx-4060" in out_of(capsys, "hw")
    assert "272 GB/s" in out_of(capsys, "hw", "rtx 4060")
    assert json.loads(out_of(capsys, "hw", "--detect", "--json"))["origin"] == "detected"
    small = json.loads(out_of(capsys, "models", "--task", "code", "--max-size", "10B", "--json"))
    assert small
    assert all(row["parameters"] <= 10e9 for row in small)
    assert [r["quality"]["low"] for r in small] == sorted((r["quality"]["low"] for r in small), reverse=True)
    free = json.loads(out_of(capsys, "models", "--license", "permissive", "--json"))
    assert {row["licence"] for row in free} >= {"apache-2.0", "mit"}
    assert "Q4_K_M" in out_of(capsys, "show", "qwen3-8b")
    assert json.loads(out_of(capsys, "show", "qwen3-8b", "--json"))["parameters"] == 8190735360
    assert "chat" in out_of(capsys, "tasks")


def test_completed_devices_are_one_word_and_denote_what_their_name_does() -> None:
    offered = set(completion.devices(""))
    assert "rtx-4060-ti" in offered
    for name in hwdb.catalogue.load().names():
        word = name.replace(" ", "-").lower()
        assert word in offered
        if word != name:
            assert _device(word) == _device(name)


def _device(name: str) -> str:
    try:
        return hwdb.catalogue.load().resolve(name).id
    except AmbiguousDevice as error:
        return " ".join(error.choices)


def test_completion_offers_what_starts_alike() -> None:
    assert "qwen3-8b" in completion.models("qwen3-8")
    assert completion.devices("2xgeforce-rtx-409")[0].startswith("2xgeforce-rtx-409")
    assert completion.tasks("ch") == ["chat"]
    assert "vllm" in completion.engines("v")
    assert completion.formats("j") == ["json"]
    assert completion.formats("t") == ["table", "tsv"]
    assert completion.colors("n") == ["never"]


@pytest.mark.parametrize(
    ("share", "drawn"), [(0.0, "░" * 8), (0.5, "████░░░░"), (1.0, "█" * 8), (2.0, "█" * 8), (-1, "░" * 8)]
)
def test_a_bar_is_as_long_as_its_share(share: float, drawn: str) -> None:
    assert bar(share, 8) == drawn


def test_a_named_model_beyond_its_own_context_is_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--vram", "8G", "--context", "32k"]
    for arguments in (["--model", "smollm2-135m-instruct", *asked], ["why", "smollm2-135m-instruct", *asked]):
        cli.main(arguments)
        assert "SmolLM2-135M-Instruct is made for 8k of context, not for 32k" in capsys.readouterr().err
    cli.main(["--model", "qwen3-8b", *asked])
    assert "is made for" not in capsys.readouterr().err
