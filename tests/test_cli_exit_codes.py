"""Every exit code of `plan --help`, reached; errors are one line and a hint on stderr."""

from __future__ import annotations

import re

import pytest

from planner import cli, errors


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def test_0_answered(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--vram", "8G", "--task", "chat")
    assert code == errors.OK
    assert out.count("\n") > 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["--vram", "-8G"],
        ["--vram", "eight"],
        ["--vram"],
        ["--no-such-flag"],
        ["no-such-command"],
        ["--users", "0", "--vram", "8G"],
        ["--vram", "8G", "--context", "1000000000000"],
        ["--vram", "8G", "--context", "4096", "--prompt", "4096", "--output", "100"],
        ["--vram", "8G", "--json", "--csv"],
        ["--vram", "8G", "--color", "mauve"],
        ["--gpu", " "],
        ["--vram", "8G", "--top", "0"],
        ["--gpu", "rtx 4090", "--engine", "mlx"],
        ["--machine", "machine.yaml", "--vram", "8G"],
        ["--vram", "8G", "models"],
        ["hw", "rtx 4060", "--detect"],
    ],
)
def test_2_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == errors.USAGE
    assert out == ""
    assert re.fullmatch(r"error: [^\n]+\nhint: [^\n]+\n", err), err


def test_3_nothing_fits_says_what_would_change_that(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "--gpu", "rtx 4060", "--model", "qwen3-32b", "--quant", "Q8_0")
    assert code == errors.NOTHING_FITS
    assert "misses by" in err
    assert "hint: " in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--gpu", "rtx 9999 ultra"],
        ["--gpu", "2xnonsense"],
        ["--vram", "8G", "--model", "qwen99"],
        ["--vram", "8G", "--quant", "Q99"],
        ["--vram", "8G", "--kv", "q99"],
        ["--vram", "8G", "--task", "knitting"],
        ["--vram", "8G", "--engine", "steam"],
        ["--vram", "8G", "--format", "xml"],
        ["show", "qwen99"],
        ["hw", "rtx 9999 ultra"],
        ["why", "qwen99", "--vram", "8G"],
    ],
)
def test_4_unknown_names(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == errors.UNKNOWN, err
    assert out == ""
    assert err.startswith("error: ")
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [["show", "./missing.gguf"], ["--machine", "missing.yaml"]])
def test_5_environment(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == errors.ENVIRONMENT, err
    assert "Traceback" not in err


def test_70_a_defect_keeps_its_trace(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("planner.answer.answer", broken)
    code, _, err = run(capsys, "--vram", "8G")
    assert code == errors.INTERNAL
    assert "Traceback" in err
    assert "boom" in err


def test_130_interrupted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("planner.answer.answer", interrupted)
    assert run(capsys, "--vram", "8G")[0] == errors.INTERRUPTED


def test_help_documents_every_code(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == errors.OK
    for number in (0, 1, 2, 3, 4, 5, 70, 130):
        assert re.search(rf"\b{number}  +[a-z]", out), number


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in cli.COMMANDS:
        code, out, err = run(capsys, name, "--help")
        assert code == errors.OK, (name, err)
        assert out.startswith(f"Usage: plan {name}"), out[:60]
