"""README cannot drift: its outputs are those of its commands. `python tests/test_readme.py` rewrites them."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"<!-- output: (plan [^\n]*) -->\n(.*?)<!-- end -->", re.DOTALL)
IN_TABLE = re.compile(r"^\| `(plan[^`]*)` \|", re.MULTILINE)
#: Rows that need a file of the reader's own.
OWN_FILES = ("./model.gguf", "rows.csv")


def output(command: str) -> str:
    """What the command prints on stdout, 80 columns wide, without colour."""
    from planner import cli

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        assert cli.main(shlex.split(command)[1:]) == 0, command
    return printed.getvalue()


def block(command: str) -> str:
    return f"<!-- output: {command} -->\n```console\n$ {command}\n{output(command)}```\n<!-- end -->"


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")


def test_there_are_outputs_to_hold() -> None:
    assert len(BLOCK.findall(README.read_text(encoding="utf-8"))) >= 3


@pytest.mark.parametrize("command", [m[0] for m in BLOCK.findall(README.read_text(encoding="utf-8"))])
def test_an_output_in_the_readme_is_what_its_command_prints(command: str) -> None:
    assert block(command) in README.read_text(encoding="utf-8"), "run: python tests/test_readme.py"


@pytest.mark.parametrize("command", IN_TABLE.findall(README.read_text(encoding="utf-8")))
def test_a_command_in_the_readme_runs(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if any(name in command for name in OWN_FILES):
        from planner.cli import COMMANDS

        assert shlex.split(command)[1] in (*COMMANDS, "-m")
        return
    monkeypatch.chdir(README.parent)
    assert output(command)


def test_the_two_commands_are_complete_on_a_fresh_machine() -> None:
    text = README.read_text(encoding="utf-8")
    first, second = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)[:2]
    for command in (first, second):
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install")
    assert "plan --vram 8G --task chat" in first
    assert "pytest" in second


if __name__ == "__main__":
    os.environ |= {"COLUMNS": "80", "NO_COLOR": "1"}
    fresh = BLOCK.sub(lambda match: block(match[1]), README.read_text(encoding="utf-8"))
    README.write_text(fresh, encoding="utf-8")
