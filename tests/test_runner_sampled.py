"""Sampled execution: which layers run, and how their figures add up to the model's."""

from __future__ import annotations

import numpy as np
import pytest

from modeldb import catalogue, schemes
from modeldb.errors import UnsupportedModel
from runner import sampled
from runner.sampled import Kind, Part, Sample

pytest.importorskip("numba")


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("llama-3.1-8b-instruct", "Q4_K_M"),
        ("gemma-3-1b-it", "Q8_0"),
        ("qwen3-0.6b", "F16"),
        ("deepseek-v2-lite", "Q4_0"),
    ],
)
def test_the_kinds_share_out_every_layer_and_every_byte(name: str, scheme: str) -> None:
    model, held = catalogue.load().resolve(name), schemes.get(scheme)
    part = sampled.part_of(model, held)
    layers = sorted(i for kind in part.kinds for i in kind.layers)
    assert layers == list(range(model.n_layers)) == list(range(part.n_layers))
    stored = sum(f.n_bytes(t.shape) for t, f in schemes.assign(held, model) if t.role != "draft")
    assert part.head_bytes + sum(len(k.layers) * k.n_bytes for k in part.kinds) == stored
    assert all(0 <= k.n_more_prefill <= k.n_more < len(k.layers) for k in part.kinds)


def test_a_model_beyond_memory_keeps_a_part_of_its_experts_and_stays_within_the_budget() -> None:
    model, held = catalogue.load().resolve("deepseek-v3"), schemes.get("Q4_K_M")
    part = sampled.part_of(model, held)
    assert part.n_experts == sampled.EXPERTS_KEPT * 8
    run = part.head_bytes + sum((1 + k.n_more) * k.n_bytes for k in part.kinds)
    assert run < 2 * sampled.BUDGET_BYTES
    assert sampled.part_of(catalogue.load().resolve("llama-3.1-8b-instruct"), held).n_experts == 0


def test_figures_add_up_by_the_number_of_layers() -> None:
    part = Part(
        (Kind(tuple(range(10)), 100, 3, 1), Kind((10,), 50, 0, 0), Kind((11, 12, 13), 70, 2, 2)), 14, 0, 7
    )
    sample = Sample(part, [], [])
    # a layer of each kind costs 10, 20 and 30, the rest 5
    assert sample.add_up(65.0, [30.0, 0.0, 60.0]) == 5 + 10 * 10 + 20 + 3 * 30
    assert sample.add_up(65.0, [10.0, 0.0, 60.0], prefill=True) == 215
    assert sample.active == [0, 1, 3]


def test_a_sample_counts_what_the_whole_model_has_and_times_it() -> None:
    model, held = catalogue.load().resolve("smollm2-135m-instruct"), schemes.get("Q8_0")
    sample = sampled.load(model, held, 128, n_batch=32, n_threads=1, budget_bytes=60 << 20)
    try:
        assert len(sample.engines[0].hyper.windows) == len(sample.part.kinds)
        stored = sum(f.n_bytes(t.shape) for t, f in schemes.assign(held, model))
        assert sample.whole(lambda e: e.meter.weight_bytes) == pytest.approx(stored)
        assert sample.whole(lambda e: e.meter.n_params) == pytest.approx(
            sum(t.n_elements for t in model.tensors())
        )
        assert np.any(sample.engines[0].cache.layers[0].keys)
        step = sampled.decode(sample, 100, seconds=0.1, least=3, most=3)
        prompt = sampled.prefill(sample, 96, seconds=0.1, least=2, most=2)
        assert (step.n_rounds, prompt.n_rounds) == (3, 2)
        assert 0 < step.seconds < prompt.seconds
        assert sample.engines[0].n_tokens <= 101
    finally:
        sample.close()


def test_formats_without_a_kernel_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match="no kernel for"):
        sampled.part_of(catalogue.load().resolve("qwen3-0.6b"), schemes.get("IQ2_XXS"))
