"""The spec of `plan check`: what is refused, and where the sentence points."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import spec, yaml_lines
from planner.cli import main
from planner.errors import PlanError, UsageError

ROOT = Path(__file__).parent.parent
GOOD = """\
version: 1
machine: {gpu: rtx 4060}
deployments:
  - name: one
    model: qwen3-8b
    quant: Q4_K_M
    settings: {context: 8k}
    require:
      max_ttft: 2s
"""


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_good_spec_is_read_in_base_units(tmp_path: Path) -> None:
    item = spec.read(_write(tmp_path, GOOD)).deployments[0]
    assert item.item.settings.context == 8192
    assert item.require.max_ttft_s == 2.0


def test_a_finding_points_at_the_line_of_its_requirement(tmp_path: Path) -> None:
    item = spec.read(_write(tmp_path, GOOD)).deployments[0]
    assert (item.finding("max_ttft", "holds", "").line, item.finding("max_ttft", "holds", "").column) == (
        9,
        7,
    )
    assert item.finding("fits", "holds", "").line == 4


@pytest.mark.parametrize(
    ("old", "new", "place", "word"),
    [
        ("name: one", "nmae: one", "4:5", "nmae"),
        ("max_ttft: 2s", "max_ttft: quickly", "9:7", "quickly"),
        ("max_ttft: 2s", "min_tps: -3", "9:7", "greater than 0"),
        ("context: 8k", "context: [1]", "7:16", "quantity"),
        ("model: qwen3-8b", "licence: mit", "5:5", "licence"),
        ("    model: qwen3-8b\n", "", "4:5", "either"),
        ("machine: {gpu: rtx 4060}\n", "", "3:5", "machine"),
        ("version: 1", "version: 2", "1:1", "version"),
    ],
)
def test_what_is_wrong_is_named_with_line_and_column(
    tmp_path: Path, old: str, new: str, place: str, word: str
) -> None:
    path = _write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(UsageError) as caught:
        spec.read(path)
    assert caught.value.message.startswith(f"{path}:{place}: ")
    assert word in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]",
        "a: &a {b: *a}",
        "a: &a [x,x]\nb: &b [*a,*a]\n"
        + "".join(f"c{i}: &c{i} [*{'b' if i == 0 else f'c{i - 1}'},*b,*a]\n" for i in range(40)),
        "[" * 500,
        "- 1\n- 2",
        "",
        "\x00",
        "deployments: []",
        "a: 1\na: 2",
        "x: " + "9" * 5000,
    ],
)
def test_hostile_yaml_is_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        spec.read(_write(tmp_path, text))
    assert "\n" not in caught.value.message


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_a_spec_or_a_sentence(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "plan.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    sentence = ""
    try:
        spec.read(path)
    except PlanError as error:
        sentence = error.message
    assert "\n" not in sentence


def test_a_missing_file_is_the_environment(tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        yaml_lines.load(tmp_path / "none.yaml")
    assert caught.value.exit_code == 5


def test_the_command_that_a_broken_spec_names_prints_the_schema(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from planner.cli import main

    (tmp_path / "spec.yaml").write_text("deployments: [{modell: qwen3-8b}]\n")
    assert main(["check", str(tmp_path / "spec.yaml")]) == 2
    hint = re.search(r"`plan ([^`]*)`", capsys.readouterr().err.partition("hint: ")[2])
    assert hint is not None
    assert main(hint[1].split()) == 0
    assert json.loads(capsys.readouterr().out) == spec.schema()


def test_the_committed_schema_is_the_generated_one() -> None:
    committed = json.loads((ROOT / "docs/plan-check.schema.json").read_text(encoding="utf-8"))
    assert committed == json.loads(json.dumps(spec.schema()))


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.stem)
def test_examples_follow_the_schema(path: Path) -> None:
    import jsonschema
    import yaml

    jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), spec.schema())
    assert spec.read(path).deployments


def test_a_host_whose_memory_is_not_said_is_undecided_and_says_what_to_add(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(_write(tmp_path, GOOD))]) == 3
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " host: " in line]
    assert line.split()[0] == "open"
    assert "host: needs 350 MiB (" in line
    assert line.endswith(", memory unknown; add `ram` to the machine")
    known = GOOD.replace("{gpu: rtx 4060}", "{gpu: rtx 4060, ram: 16G}")
    assert main(["check", str(_write(tmp_path, known))]) == 0


def test_a_model_that_nobody_knows_is_pointed_at_beside_a_quantization(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _write(tmp_path, GOOD.replace("qwen3-8b", "qwen99"))
    assert main(["check", str(path)]) == 2
    assert f"{path}:5:5: no model is called `qwen99`" in capsys.readouterr().err
