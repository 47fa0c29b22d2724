"""llama.cpp's files, to the byte: sizes it computed itself, one model of each architecture,
schemes in rotation."""

import csv
from pathlib import Path

import pytest

from modeldb import catalogue, gguf_layout, schemes
from modeldb.errors import UnsupportedModel
from modeldb.gguf_mixes import more_bits

DATA = Path(__file__).parent / "data" / "modeldb"
FILES = list(csv.DictReader((DATA / "llamacpp_files.csv").read_text(encoding="utf-8").splitlines()))


@pytest.mark.parametrize("row", FILES, ids=lambda r: f"{r['arch']}-{r['scheme']}")
def test_bytes_equal_llama_cpps_own(row):
    model, scheme = catalogue.load().resolve(row["hf_id"]), schemes.get(row["scheme"])
    assert gguf_layout.architecture(model) == row["arch"]
    assert gguf_layout.tensor_bytes(model, scheme) == int(row["tensor_bytes"])
    assert gguf_layout.model_bytes(model, scheme) == int(row["model_bytes"])
    assert gguf_layout.file_bytes(model, scheme) == int(row["file_bytes"])


def test_a_model_that_llama_cpp_does_not_know_is_refused_in_one_line():
    model = catalogue.load().resolve("meituan-longcat/LongCat-Flash-Chat")
    with pytest.raises(UnsupportedModel, match=r"llama\.cpp has no architecture for LongCat") as error:
        schemes.assign(schemes.get("Q4_K_M"), model)
    assert "\n" not in str(error.value)


def test_a_draft_layer_is_in_the_file_and_not_in_memory():
    model, scheme = catalogue.load().resolve("zai-org/GLM-4.5-Air"), schemes.get("Q4_K_M")
    assert gguf_layout.model_bytes(model, scheme) < gguf_layout.tensor_bytes(model, scheme)


def test_more_bits_are_the_ends_and_every_third_between():
    assert [i for i in range(32) if more_bits(i, 32)] == [
        0,
        1,
        2,
        3,
        6,
        9,
        12,
        15,
        18,
        21,
        24,
        27,
        28,
        29,
        30,
        31,
    ]
