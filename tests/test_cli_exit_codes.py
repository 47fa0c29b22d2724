"""Every exit code of `plan --help`, reached; errors are one line and a hint on stderr."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hwdb import user_devices
from hwdb.errors import CannotKeep
from planner import calibrations, cli, errors

ROOT = Path(__file__).parent.parent


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
        ["--vram", "8"],
        ["--ram", "16"],
        ["--model", ""],
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


def test_models_that_are_too_large_are_not_counted_among_those_tried(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, _, err = run(capsys, "--vram", "8G", "--max-size", "1")
    assert code == errors.NOTHING_FITS
    assert "none of 0 deployments of 0 models" in err
    assert "larger than --max-size" in err
    _, _, err = run(capsys, "--gpu", "rtx 4060", "-m", "qwen3-32b", "-m", "qwen3-8b", "-q", "Q8_0", "--max-size", "10B",
                    "--min-tps", "1000")  # fmt: skip
    assert "none of 2 deployments of 1 model holds" in err
    assert "Qwen3-8B" in err


def test_3_nothing_fits_says_what_would_change_that(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "--gpu", "rtx 4060", "--model", "qwen3-32b", "--quant", "Q8_0")
    assert code == errors.NOTHING_FITS
    assert "misses by" in err
    assert "hint: " in err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--vram", "8"], "for GiB write --vram 8G"),
        (["predict"], "plan predict --help"),
        (["why", "qwen3-8b", "--vram", "8G", "--csv"], "or --json"),
        (["command", "qwen3-8b", "--vram", "8G", "--format", "markdown"], "or --json"),
        (["verify", "qwen3-8b", "--threads", "100000"], "--threads "),
        (["--gpu", "h100", "--users", "32", "--max-ttft", "1ms"], "accepted with --max-ttft 0.0"),
        (["--gpu", "rtx 4060", "--min-tps", "1e6"], "accepted with --min-tps"),
        (
            ["--gpu", "rtx 5090", "--quant", "fp8", "--engine", "llama.cpp"],
            "another --quant, --kv or --engine",
        ),
        (["--vram", "8G", "--license", "nonsense"], "another --license"),
        (["--vram", "8G", "--max-size", "1"], "no model is left"),
        (["command", "qwen3-8b", "--vram", "1G"], "plan why qwen3-8b"),
    ],
)
def test_the_hint_names_what_stood_in_the_way(
    capsys: pytest.CaptureFixture[str], arguments: list[str], hint: str
) -> None:
    code, _, err = run(capsys, *arguments)
    assert code in (errors.USAGE, errors.NOTHING_FITS)
    assert f"hint: {hint}" in err or (err.count("hint: ") == 1 and hint in err.partition("hint: ")[2])


@pytest.mark.parametrize("name", ["Llama 3.1 8B Instruct", " qwen3-8b ", "Qwen3 8B"])
def test_models_may_be_spelt_as_their_cards_do(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert run(capsys, "show", name)[0] == errors.OK


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
        ["verify", "qwen3-8b", "--kv", "q99"],
        ["run", "model.gguf", "--prompt", "hi", "--kv", "q99"],
    ],
)
def test_4_unknown_names(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == errors.UNKNOWN, err
    assert out == ""
    assert err.startswith("error: ")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments", [["show", "./missing.gguf"], ["--machine", "missing.yaml"], ["--machine", "/"]]
)
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


def test_130_an_interrupt_that_a_callback_swallowed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted:
        def __del__(self) -> None:
            raise KeyboardInterrupt

    def broken(*_: object) -> None:
        Interrupted()
        raise RuntimeError("no compiled object yet")

    monkeypatch.setattr("planner.answer.answer", broken)
    assert run(capsys, "--vram", "8G") == (errors.INTERRUPTED, "", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["hw"], ["models", "--json"], ["show", "qwen3-8b"], ["--vram", "8G", "--all"], ["--help"],
        ["--vram", "8G", "--format", "table"],
    ],
)  # fmt: skip
def test_a_reader_that_leaves_is_no_failure(arguments: list[str], tmp_path: Path) -> None:
    environment = {**os.environ, "LLM_PLAN_CONFIG_DIR": str(tmp_path)}
    command = [sys.executable, "-c", "import sys; from planner.cli import main; sys.exit(main())", *arguments]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            command, stdout=writing, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        )
    finally:
        os.close(writing)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("note: ") for line in done.stderr.splitlines())


def test_an_output_without_unicode_gets_marks_in_its_place(tmp_path: Path) -> None:
    environment = {**os.environ, "LLM_PLAN_CONFIG_DIR": str(tmp_path), "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", "import sys; from planner.cli import main; sys.exit(main())"]
    command += ["--vram", "8G", "--format", "table"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "?????" in done.stdout


def test_a_configuration_folder_that_cannot_be_written_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLM_PLAN_CONFIG_DIR", str(tmp_path / "file"))
    with pytest.raises(CannotKeep) as told:
        user_devices.write(user_devices.Measurement("Some CPU", "cpu", "2026-01-01", "test"))
    translated = errors.translate(told.value)
    assert isinstance(translated, errors.EnvironmentFailed)
    assert "LLM_PLAN_CONFIG_DIR" in translated.hint
    with pytest.raises(errors.EnvironmentFailed, match="cannot write"):
        calibrations.write(calibrations.Calibration("id", "f", "0", "tool", "2026-01-01", "b", 0.1, 0.1, ()))
