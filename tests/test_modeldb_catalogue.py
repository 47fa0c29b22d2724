"""The catalogue: equal to its YAML, fast and light to load, names resolve by declaration only."""

import json
import subprocess
import sys

import pytest

from modeldb import catalogue, compile
from modeldb.errors import AmbiguousModel, ModelError, UnknownModel


def test_the_compiled_catalogue_equals_the_yaml():
    compiled = (compile.DATA / "catalogue.json").read_text(encoding="utf-8")
    assert compiled == compile.text(compile.compile_families())


def test_the_compiled_quality_measurements_equal_the_yaml():
    compiled = (compile.DATA / "quant_quality.json").read_text(encoding="utf-8")
    assert compiled == compile.text(compile.compile_quality())


def test_loading_imports_nothing_heavy():
    code = (
        "import sys, json; from modeldb import catalogue; catalogue.load().resolve('qwen3-8b').tensors();"
        "print(json.dumps([m for m in ('yaml','pydantic','pandas','numpy','torch') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("qwen3-8b", "qwen3-8b"),
        ("Qwen/Qwen3-8B", "qwen3-8b"),
        ("qwen3:8b", "qwen3-8b"),
        ("Qwen3-8B-Base", "qwen3-8b"),
        (" QWEN3-8B ", "qwen3-8b"),
        ("lmsys/vicuna-7b-v1.5", "llama-2-7b-hf"),
    ],
)
def test_declared_names_resolve(name, id):
    assert catalogue.load().resolve(name).id == id


def test_every_declared_name_of_every_model_resolves_to_it():
    known = catalogue.load()
    for model in known.models:
        for name in (model.id, model.hf_id, *model.aliases):
            assert known.resolve(name).id == model.id
        assert model.base in known.ids


def test_an_unknown_name_is_refused_with_suggestions_and_never_guessed():
    with pytest.raises(UnknownModel, match=r"did you mean .*qwen3-8b"):
        catalogue.load().resolve("qwen3-8bb")


def test_a_name_of_several_models_lists_them():
    entry = catalogue.load().entries[0]
    known = catalogue.Catalogue(
        ({**entry, "id": "a", "hf_id": "x/same"}, {**entry, "id": "b", "hf_id": "y/same"})
    )
    with pytest.raises(AmbiguousModel, match="choose one of a, b"):
        known.resolve("same")


def test_every_model_says_where_its_facts_come_from():
    for model in catalogue.load().models:
        assert model.source, model.id
        assert model.verified, model.id
        for evidence in model.evidence:
            assert evidence.source, (model.id, evidence)
            assert "artificialanalysis" not in evidence.source


def test_an_unknown_key_in_a_family_file_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_text("family: X\nlicense: mit\nmodels: []\n")
    with pytest.raises(ModelError, match=r"x\.yaml: unknown key `license`"):
        compile.compile_families(tmp_path)


def test_two_models_of_one_id_are_refused(tmp_path):
    model = "{id: a, hf_id: o/a, architecture: {model_type: llama}}"
    (tmp_path / "x.yaml").write_text(f"family: X\nmodels: [{model}, {model}]\n")
    with pytest.raises(ModelError, match="two models have the id `a`"):
        compile.compile_families(tmp_path)
