"""The walk: its sums are those of the tensors and caches, and the compiled table holds the same numbers."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from estimators import compile as compiling
from estimators.walk import Walk, load_table, walk
from modeldb import catalogue, schemes
from modeldb.layers import Attention, CrossAttention, Experts

MODELS = ("llama-3.1-8b-instruct", "qwen3-30b-a3b", "gemma-3-27b-it", "deepseek-v3", "qwen3-0.6b")


def _model(name: str):  # type: ignore[no-untyped-def]
    return catalogue.load().resolve(name)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("scheme", ["Q4_K_M", "bf16"])
def test_groups_of_tensors_sum_to_the_whole(name: str, scheme: str) -> None:
    model, stored = _model(name), schemes.get(scheme)
    w = walk(model, stored)
    tensors = schemes.assign(stored, model)
    stored_bytes = sum(f.n_bytes(t.shape) for t, f in tensors)
    names = ("embedding", "mixer", "dense", "expert", "shared", "other")
    groups = sum(getattr(w, f"{name}_bytes") for name in names)
    assert groups + (0 if w.tied else w.head_bytes) == stored_bytes
    assert w.total_bytes - w.tower_bytes == stored_bytes


@pytest.mark.parametrize("name", MODELS)
def test_parameters_equal_those_of_the_tensors(name: str) -> None:
    model = _model(name)
    w = walk(model, schemes.get("bf16"))
    assert w.total_params == sum(t.n_elements for t in model.tensors())
    assert w.active_params <= w.total_params + w.tied * w.head_params


def test_cache_elements_equal_those_of_the_caches() -> None:
    model = _model("gemma-3-27b-it")
    w = walk(model, schemes.get("bf16"))
    kept = model.caches()
    assert w.kv_k_full + w.kv_k_window == sum(c.k_elements for c in kept)
    assert w.kv_v_full + w.kv_v_window == sum(c.v_elements for c in kept)
    assert w.window_tokens == next(c.window_tokens for c in kept if c.window_tokens)


def test_attention_flops_are_two_products_per_head() -> None:
    model = _model("llama-3.1-8b-instruct")
    w = walk(model, schemes.get("bf16"))
    mixer = model.blocks[0].mixers[0]
    assert isinstance(mixer, Attention)
    per_layer = 2 * 2 * mixer.n_heads * mixer.head_dim  # q.k and p.v, a multiply and an add each
    assert w.attention_flops_full == per_layer * len(model.blocks)
    assert w.decode_attention_flops == w.attention_flops_full


def test_latent_decode_multiplies_the_compressed_cache() -> None:
    w = walk(_model("deepseek-v3"), schemes.get("bf16"))
    assert w.latent == 1
    assert w.kv_v_full == 0
    assert w.decode_attention_flops > w.attention_flops_full  # 2 x 512 + 64 against 192 + 128 per head


def test_experts_are_counted_once_each() -> None:
    model = _model("qwen3-30b-a3b")
    w = walk(model, schemes.get("bf16"))
    ffn = model.blocks[0].feed_forwards[0]
    assert isinstance(ffn, Experts)
    assert w.n_moe_layers == len(model.blocks)
    one = ffn.n_matrices * ffn.inner * model.hidden_size
    assert w.expert_params == len(model.blocks) * ffn.n_experts * one
    assert w.expert_bytes == 2 * w.expert_params


def test_experts_without_weights_are_chosen_and_not_read() -> None:
    w = walk(_model("longcat-flash-chat"), schemes.get("bf16"))
    assert (w.n_experts, w.experts_per_token) == (512, 8)  # 12 of 512 + 256
    # "18.6B to 31.3B, 27B on average" are activated (arXiv 2509.01322)
    assert w.active_params == pytest.approx(27e9, rel=0.02)


def test_layers_that_attend_to_an_image_are_held_and_neither_read_nor_cached_for_text() -> None:
    model = _model("llama-3.2-11b-vision-instruct")
    w = walk(model, schemes.get("bf16"))
    crossing = [i for i, b in enumerate(model.blocks) if isinstance(b.mixers[0], CrossAttention)]
    assert len(crossing) == 8
    held = [t for t in model.tensors() if t.layer in crossing]
    assert w.idle_bytes == 2 * sum(t.n_elements for t in held)
    assert w.total_params == sum(t.n_elements for t in model.tensors())
    assert w.mixer_params == sum(
        t.n_elements for t in model.tensors() if t.role == "attention" and t not in held
    )
    assert w.kv_k_full == w.kv_v_full == 32 * 8 * 128


def test_more_bits_are_never_fewer_bytes() -> None:
    model = _model("llama-3.1-8b-instruct")
    mixes = ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16")
    sizes = [walk(model, schemes.get(s)).total_bytes for s in mixes]
    assert sizes == sorted(sizes)


def test_the_compiled_table_equals_the_walk() -> None:
    table = load_table()
    models = tuple(catalogue.load().models)
    assert {m.id for m in models} == {model for model, _ in table.position}
    for model, scheme in sorted(table.position)[::251]:
        fresh = walk(catalogue.load().get(model), schemes.get(scheme))
        assert table.walk.row(table.index(model, scheme)) == fresh, (model, scheme)


def test_the_table_holds_every_usual_scheme_of_a_gguf_model() -> None:
    table = load_table()
    assert all(("qwen3-8b", schemes.get(s).id) in table.position for s in compiling.USUAL)


def test_taking_rows_keeps_every_field() -> None:
    table = load_table()
    rows = table.take(np.array([3, 1]))
    for f in fields(Walk):
        assert getattr(rows, f.name).tolist() == getattr(table.walk, f.name)[[3, 1]].tolist()
