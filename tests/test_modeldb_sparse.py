"""Files of models with sparse attention and of hybrids, to the byte: a few of their layers cut down, written by this
package as F16, loaded and quantized by llama.cpp 0c1e57098."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from modeldb import catalogue, gguf_layout, schemes
from modeldb.layers import Attention, Dense, Experts, LatentAttention, LinearAttention
from modeldb.model import Model

HIDDEN, VOCAB, HEADS = 256, 512, 4
SIZES = {
    ("deepseek-v3.2", 5): {"F16": 17305344, "Q4_K_M": 5109376, "Q8_0": 9220224, "IQ4_XS": 4688832, "Q2_K": 3223360},
    ("glm-5.2", 9): {"F16": 28152704, "Q4_K_M": 8472256, "Q8_0": 14999744, "IQ4_XS": 7625248, "Q2_K": 5254240},
    ("glm-5", 5): {"F16": 16780800, "Q4_K_M": 4961664, "Q8_0": 8941440, "IQ4_XS": 4549312, "Q2_K": 3137088},
    ("glm-5.3-flash", 8): {"F16": 29184288, "Q4_K_M": 13809952, "Q8_0": 18678048, "IQ4_XS": 13061408, "Q2_K": 11317024},
    ("minimax-text-01", 9): {
        "F16": 25900704, "Q4_K_M": 8127392, "Q8_0": 13797024, "IQ4_XS": 7513760, "Q2_K": 5484704,
    },
    ("minimax-m3", 5): {
        "F16": 16023520, "Q4_K_M": 5691872, "Q8_0": 9142240, "IQ4_XS": 5280736, "Q2_K": 4122592, "MXFP4_MOE": 8306656,
    },
    ("ling-3.0-flash", 12): {
        "F16": 42965728, "Q4_K_M": 13036064, "Q8_0": 23000608, "IQ4_XS": 11751552, "Q2_K": 8150976,
        "MXFP4_MOE": 18404896,
    },
}  # fmt: skip


def cut(part: Any) -> Any:
    match part:
        case Experts():
            return replace(part, n_experts=4, per_token=2, inner=256, shared_inner=part.shared_inner and 256)
        case Attention() if part.n_kv_heads == HEADS:
            return replace(part, n_heads=2 * HEADS)
        case Attention():
            return replace(part, n_heads=HEADS, n_kv_heads=1)
        case Dense():
            return replace(part, inner=512)
        case LatentAttention():
            return replace(
                part,
                n_heads=HEADS,
                q_rank=256,
                kv_rank=256,
                nope_dim=64,
                value_dim=64,
                n_index_heads=part.n_index_heads and HEADS,
            )
        case LinearAttention():
            return replace(part, n_k_heads=HEADS, n_v_heads=HEADS)
    return part


def small(model: Model, n_layers: int) -> Model:
    blocks = []
    for b in model.blocks[:n_layers]:
        streams = tuple(
            (name, tuple(n // model.hidden_size * HIDDEN if n >= model.hidden_size else n for n in shape))
            for name, shape in b.extra_params
            if isinstance(shape, tuple)
        )
        mixers, ffns = (tuple(map(cut, parts)) for parts in (b.mixers, b.feed_forwards))
        blocks.append(replace(b, mixers=mixers, feed_forwards=ffns, extra_params=streams))
    return replace(model, blocks=tuple(blocks), hidden_size=HIDDEN, vocab_size=VOCAB)


@pytest.mark.parametrize(("name", "n_layers"), SIZES)
def test_a_file_is_as_long_as_llama_cpp_writes_it(name: str, n_layers: int) -> None:
    model = small(catalogue.load().get(name), n_layers)
    found = {mix: gguf_layout.file_bytes(model, schemes.get(mix)) for mix in SIZES[name, n_layers]}
    assert found == SIZES[name, n_layers]
