"""llama.cpp's own memory figures: caches and states to the byte, compute buffers by a replay."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from estimators import llamacpp_memory as llamacpp
from estimators.ggml_alloc import MONOMIALS, Graph, Node, peak_bytes, size_of
from estimators.walk import Walk, walk
from modeldb import catalogue, schemes
from modeldb.model import Model

ROWS = list(
    csv.DictReader((Path(__file__).parent / "data/memory/llamacpp_memory.csv").read_text().splitlines())
)


def held(row: dict[str, str], window: float) -> llamacpp.Cells:
    n = int(row["n_seq"])
    unified = row["kv_unified"] == "1" or n == 1
    return llamacpp.cells(
        int(row["ctx"]) // n, window, n, unified, int(row["n_ubatch"]), row["swa_full"] == "1"
    )


def model_and_walk(row: dict[str, str]) -> tuple[Model, Walk]:
    model = catalogue.load().resolve(row["model_canonical"])
    return model, llamacpp.as_cached(walk(model, schemes.get("F16")), model)


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r['arch']}-{r['setting']}")
def test_cache_and_state_equal_llamacpp_to_the_byte(row):
    _, sums = model_and_walk(row)
    full, ring = llamacpp.cache_bytes(
        sums,
        held(row, sums.window_tokens),
        llamacpp.kv_element_bytes(row["kv_type_k"]),
        llamacpp.kv_element_bytes(row["kv_type_v"]),
    )
    assert full + ring + llamacpp.state_bytes(sums, int(row["n_seq"])) == int(row["kv_bytes"])


def compute_errors(approximate: bool) -> np.ndarray:
    errors = []
    for row in ROWS:
        model, sums = model_and_walk(row)
        cells, outputs = held(row, sums.window_tokens), int(row["n_outputs_max"]) or None
        flash, micro = row["flash_attn"] == "on", int(row["n_ubatch"])
        if approximate:
            size = llamacpp.approximate_compute_bytes(sums, cells, micro, outputs, flash)
        else:
            size = llamacpp.compute_bytes(
                model, cells, int(row["n_seq"]), micro, outputs, row["kv_type_k"], row["kv_type_v"], flash
            )
        errors.append(abs(float(size) / int(row["compute_bytes"]) - 1))
    return np.array(errors)


def test_compute_buffer_equals_llamacpp_in_most_rows_and_stays_near_in_all():
    errors = compute_errors(approximate=False)
    assert (errors == 0).mean() > 0.7
    assert np.median(errors) <= 0.001
    assert np.quantile(errors, 0.9) <= 0.05
    assert errors.max() < 0.30


def test_closed_form_of_the_compute_buffer_is_near_for_every_architecture():
    errors = compute_errors(approximate=True)  # every architecture counts once here, common or rare
    assert np.median(errors) <= 0.05
    assert np.quantile(errors, 0.9) <= 0.25


def test_a_server_reserves_no_more_than_a_benchmark():
    model = catalogue.load().resolve("qwen3-8b")
    cells = llamacpp.cells(32768, 0)
    server, bench = (llamacpp.compute_bytes(model, cells, n_outputs=n) for n in (1, None))
    assert server < 0.7 * bench


def test_a_windowed_cache_is_never_larger_than_a_full_one():
    sums = walk(catalogue.load().resolve("gemma-3-27b-it"), schemes.get("Q4_K_M"))
    for context in (256, 1024, 1536, 4096, 131072):
        for n in (1, 4):
            ring = llamacpp.cells(context, sums.window_tokens, n)
            whole = llamacpp.cells(context, sums.window_tokens, n, full_window_cache=True)
            assert sum(llamacpp.cache_bytes(sums, ring)) <= sum(llamacpp.cache_bytes(sums, whole))


def test_unknown_cache_types_are_refused_by_name():
    with pytest.raises(ValueError, match="no cache type is called `q9_9`"):
        llamacpp.kv_element_bytes("q9_9")


def plain(size: int) -> tuple[float, ...]:
    return size_of(one=size / 4)


def in_place(graph: Graph) -> Node:
    return graph.op(plain(1024), graph.input(plain(1024)), reuse=(0,))


def beside(graph: Graph) -> Node:
    return graph.op(plain(1024), graph.input(plain(1024)))


def into_the_hole(graph: Graph) -> Node:
    return graph.op(plain(1024), graph.op(plain(512), graph.input(plain(1024))))


def over_a_view(graph: Graph) -> Node:
    return graph.op(plain(1024), graph.view(graph.input(plain(1024))), reuse=(0,))


def unaligned(graph: Graph) -> Node:
    return graph.op(plain(1), graph.input(plain(33)))


@pytest.mark.parametrize(
    ("build", "peak"),
    [(in_place, 1024), (beside, 2048), (into_the_hole, 1536), (over_a_view, 2048), (unaligned, 96)],
)
def test_the_allocator_places_frees_and_reuses_like_ggml(build, peak):
    graph = Graph()
    graph.expand(build(graph))
    assert peak_bytes(graph, [name == "1" for name in MONOMIALS]) == peak


@pytest.mark.parametrize(
    ("name", "per_token"),
    [
        ("deepseek-v3.2", 61 * (576 + 128)),
        ("glm-5.2", 78 * 576 + 21 * 128),
        ("glm-5.3-flash", 11 * (512 + 3 * 128)),
        ("ling-3.0-flash", 8 * 576),
        ("minimax-m3", 60 * 2 * 4 * 128 + 57 * 2 * 128),
    ],
)
def test_an_indexers_keys_lie_beside_the_latents_in_their_type(name: str, per_token: int) -> None:
    """llama.cpp's own buffers of the same layers cut down: 12.50 and 5.00 MiB, 22.50 and 4.00, 4.00 and 6.00. Ling
    3.0's 7.50 hold a layer that drafts beside two that attend; MiniMax-M3's 40.00 and 4.00."""
    sums = walk(catalogue.load().get(name), schemes.get("Q4_K_M"))
    for bytes_each in (2.0, 34 / 32):
        full, ring = llamacpp.cache_bytes(sums, llamacpp.cells(4096, 0), bytes_each, bytes_each)
        assert (full, ring) == (4096 * per_token * bytes_each, 0)
