"""What is written cannot drift: commands and flags that pages and hints name exist, links lead somewhere, every flag
has its words."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from planner.cli import COMMANDS, app

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")])
CODE = [
    f for room in ("planner", "hwdb", "modeldb", "estimators", "runner") for f in (ROOT / room).rglob("*.py")
]
IN_PAGES = re.compile(r"`(plan(?: [^`\n]*)?)`")
IN_CODE = re.compile(r"""`(plan [^`\n]+)`|["'](plan (?:-|[a-z]+\b)[^"'\n]*)["']""")
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")
GROUP: Any = typer.main.get_command(app)


def _options(name: str | None) -> dict[str, Any]:
    command = GROUP if name is None else GROUP.get_command(None, name)
    return {spelling: p for p in command.params for spelling in (*p.opts, *p.secondary_opts)}


def _named(file: Path) -> list[str]:
    pattern = IN_CODE if file.suffix == ".py" else IN_PAGES
    found = [next(filter(None, m.groups())) for m in pattern.finditer(file.read_text(encoding="utf-8"))]
    return [re.split(r"[,;] ", text)[0] for text in found]  # what a hint says after its command


@pytest.mark.parametrize(
    "file", [*PAGES, *(f for f in CODE if _named(f))], ids=lambda f: str(f.relative_to(ROOT))
)
def test_every_command_and_flag_that_is_named_exists(file: Path) -> None:
    for text in _named(file):
        try:
            words = shlex.split(text, posix=True)[1:]
        except ValueError:  # prose with an apostrophe
            words = text.split()[1:]
        known = words[0] if words and words[0] in COMMANDS else None
        assert known or not words or not words[0].isalpha() or words[0].isupper(), text
        options = {"--help": None, **_options(known)}
        for word in words:
            flag = word.rstrip(".,;:").partition("=")[0]
            if re.fullmatch(r"--?[a-z][a-z-]*", flag):
                assert flag in options, f"{text}: {flag}"


def test_pages_and_hints_name_commands_that_can_be_checked() -> None:
    assert len(_named(ROOT / "README.md")) > 10
    assert sum(len(_named(file)) for file in CODE) > 40


@pytest.mark.parametrize("page", PAGES, ids=lambda f: str(f.relative_to(ROOT)))
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_every_flag_has_its_words(name: str | None) -> None:
    silent = [flag for flag, p in _options(name).items() if p.opts[0].startswith("-") and not p.help]
    assert not silent


@pytest.mark.parametrize("file", sorted((ROOT / "planner").rglob("*.py")), ids=lambda f: f.name)
def test_every_error_says_what_to_do_next(file: Path) -> None:
    kinds = ("UsageError", "NothingFits", "UnknownName", "EnvironmentFailed")
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in kinds:
            assert len(node.args) == 2 or node.keywords, f"line {node.lineno}: no hint"
