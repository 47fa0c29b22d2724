"""Laws of the walk: parameters equal the published ones, caches the known ones, windows never cost more."""

import csv
from pathlib import Path

import pytest

from modeldb import catalogue
from modeldb.errors import UnsupportedModel
from modeldb.shape import Shape, build, expand

DATA = Path(__file__).parent / "data" / "modeldb"
PUBLISHED = list(csv.DictReader((DATA / "published_parameters.csv").read_text(encoding="utf-8").splitlines()))


@pytest.fixture(scope="module")
def known() -> catalogue.Catalogue:
    return catalogue.load()


def test_every_published_parameter_count_is_reproduced_exactly(known):
    assert len(PUBLISHED) > 340
    for row in PUBLISHED:
        model = known.resolve(row["hf_id"])
        counted = sum(t.n_elements for t in model.tensors()) + model.non_text_params
        assert counted == int(row["parameters"]), row["hf_id"]


def test_every_model_counts_to_what_its_family_file_declares(known):
    for entry, model in zip(known.entries, known.models, strict=True):
        counted = sum(t.n_elements for t in model.tensors()) + model.non_text_params
        assert counted == entry["parameters"], model.id


def test_caches_hold_the_known_elements(known):
    for row in PUBLISHED:
        caches = known.resolve(row["hf_id"]).caches()
        per_token = dict.fromkeys(("full", "latent", "window", "chunk", "state", "cross"), 0)
        for c in caches:
            per_token[c.kind] += c.k_elements + c.v_elements
        assert per_token["full"] + per_token["latent"] == int(row["kv_full"]), row["hf_id"]
        assert per_token["window"] + per_token["chunk"] == int(row["kv_windowed"]), row["hf_id"]
        # the table leaves out what tokens of DeepSeek-V4 leave for compressed rows to come
        states = [c.state_elements for c in caches if c.kind == "state"]
        assert sum(states) == int(row["state"]), row["hf_id"]
        assert sum(c.index_elements for c in caches) == int(row["index"]), row["hf_id"]


def test_a_windowed_cache_never_holds_more_than_a_full_one(known):
    for model in known.models:
        for c in model.caches():
            for tokens in (1, 4096, 131072):
                full = (c.k_elements + c.v_elements) * tokens
                held = (c.k_elements + c.v_elements) * min(tokens, c.window_tokens or tokens)
                assert held <= full


def test_tensor_names_are_unique_and_sizes_positive(known):
    for model in known.models:
        tensors = model.tensors()
        assert len({t.name for t in tensors}) == len(tensors), model.id
        assert all(t.n_elements > 0 for t in tensors), model.id


def test_a_pattern_expands_period_times_repetitions_plus_tail():
    assert expand("LLLF*2+S") == "LLLFLLLFS"
    assert expand("KKF") == "KKF"


def test_patterns_that_miss_the_number_of_layers_are_refused():
    with pytest.raises(UnsupportedModel, match="n_layers is 3"):
        build(Shape("llama", 3, 64, 100, "F*2", "D*3", n_heads=2, n_kv_heads=2, head_dim=32))


def test_an_unknown_layer_kind_is_refused():
    with pytest.raises(UnsupportedModel, match="unknown layer kind `Z`"):
        build(Shape("llama", 1, 64, 100, "Z", "D"))
