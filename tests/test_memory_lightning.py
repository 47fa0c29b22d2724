"""Lightning attention under llama.cpp: states to the byte, and compute buffers that grow with the square of the
micro-batch, as llama.cpp 0c1e57098 allocated them for files of few layers and experts of these widths."""

# mypy: disable-error-code=no-untyped-def
from __future__ import annotations

import pytest

from estimators import llamacpp_memory as llamacpp
from estimators.walk import walk
from modeldb import catalogue, schemes
from modeldb.model import Model
from modeldb.shape import Shape, build

MIB = 2**20
WIDE = {"n_heads": 64, "n_kv_heads": 8, "hidden_size": 6144, "vocab_size": 1024}
NARROW = {"n_heads": 16, "n_kv_heads": 4, "hidden_size": 2048, "vocab_size": 4096}
# layers, widths, inner width of an expert, tokens of context and micro-batch, sequences, flash attention; MiB
ROWS = [
    (9, {**WIDE, "vocab_size": 200064}, 9216, 4096, 512, 1, True, 414.75),
    (9, {**WIDE, "vocab_size": 200064}, 9216, 4096, 512, 4, True, 450.77),
    (9, {**WIDE, "vocab_size": 200064}, 9216, 8192, 1024, 1, False, 2464.55),
    (16, WIDE, 9216, 4096, 512, 1, True, 320.28),
    (16, WIDE, 9216, 4096, 128, 1, True, 48.07),
    (16, WIDE, 9216, 4096, 512, 4, True, 317.28),
    (9, NARROW, 1024, 4096, 512, 1, True, 84.09),
    (9, NARROW, 1024, 8192, 1024, 1, False, 652.18),
    (9, {**WIDE, "hidden_size": 1024}, 1024, 4096, 128, 1, True, 39.57),
]


def model(n_layers: int, widths: dict[str, int], inner: int) -> Model:
    heads = widths["n_heads"]
    return build(
        Shape(
            "minimax_text_01", n_layers, layer_pattern=f"LLLLLLLF*{n_layers // 8}" + "+L" * (n_layers % 8),
            ffn_pattern=f"E*{n_layers}", head_dim=128, n_experts=4, experts_per_token=2, moe_intermediate_size=inner,
            linear_kind="lightning", lin_k_heads=heads, lin_v_heads=heads, lin_k_dim=128, lin_v_dim=128, **widths,
        )
    )  # fmt: skip


@pytest.mark.parametrize(("n_layers", "widths", "inner", "context", "micro", "n", "flash", "mib"), ROWS)
def test_compute_buffers_are_llama_cpps(n_layers, widths, inner, context, micro, n, flash, mib) -> None:
    held = llamacpp.cells(context // n, 0, n, n == 1, micro)
    cut = model(n_layers, widths, inner)
    found = llamacpp.compute_bytes(cut, held, n, micro, flash_attention=flash)
    assert round(found / MIB, 2) == mib
    sums = llamacpp.as_cached(walk(cut, schemes.get("F16")), cut)
    near = float(llamacpp.approximate_compute_bytes(sums, held, micro, None, flash))
    assert near == pytest.approx(found, rel=0.15)


def test_a_layer_of_minimax_01_keeps_4_mib_whatever_the_context() -> None:
    sums = walk(catalogue.load().get("minimax-text-01"), schemes.get("F16"))
    assert llamacpp.state_bytes(sums) == 70 * 4 * MIB
    assert sums.kv_k_full + sums.kv_v_full == 10 * 2 * 8 * 128
