"""Lightning attention: its scan equals its definition in float64, and its decays are those that were published."""

# mypy: disable-error-code=no-untyped-def
from __future__ import annotations

import numpy as np
import pytest
import runner_tiny

from modeldb.errors import BrokenFile

pytest.importorskip("numba")

from runner import hyper, kernel_recurrent
from runner.engine import load
from runner.program import Crew, Program
from runner.recurrent import lightning_decays


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize(("heads", "dim", "tokens"), [(4, 64, 1), (3, 128, 21)])
def test_the_scan_of_heads_side_by_side_is_linear_attention_with_decay(
    n_threads: int, heads: int, dim: int, tokens: int
) -> None:
    rng = np.random.default_rng(heads + tokens)
    mixed = rng.standard_normal((tokens, heads, 3, dim)).astype(np.float32)
    kept = rng.standard_normal((heads, dim, dim))
    decay, step, skip = lightning_decays(heads, 1, 4), np.ones(heads, np.float32), np.zeros(heads, np.float32)
    own, out, flat = kept.astype(np.float32), np.zeros((tokens, heads, dim), np.float32), mixed.reshape(-1)
    program, crew = Program(), Crew(n_threads)
    program.add("scan", kernel_recurrent.scan, flat[2 * dim :], flat[dim:], flat, 3 * heads * dim, heads, dim, dim,
                heads, step, decay, skip, own, out, 3 * dim, 3 * dim, 0)  # fmt: skip
    crew.run(program.finish(), tokens, 0)
    crew.close()
    for t in range(tokens):
        q, k, v = mixed[t].astype(np.float64).transpose(1, 0, 2)
        kept = decay[:, None, None] * kept + v[:, :, None] * k[:, None]
        np.testing.assert_allclose(out[t], np.einsum("hvk,hk->hv", kept, q), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(own, kept, rtol=1e-4, atol=1e-4)


def test_a_head_forgets_at_alibis_slope_and_less_the_deeper_it_is() -> None:
    n, layers = 64, 80
    slopes = 2.0 ** (-8.0 * np.arange(1, n + 1) / n)
    for layer in (0, 40, 78):
        depth = 1 - layer / (layers - 1) + 1e-5
        assert lightning_decays(n, layer, layers) == pytest.approx(np.exp(-slopes * depth), rel=1e-6)
    assert (np.diff([lightning_decays(n, i, layers)[0] for i in range(layers)]) > 0).all()


def test_states_are_kept_where_there_is_no_cache(tmp_path) -> None:
    engine = load(runner_tiny.write(tmp_path / "m.gguf", "minimax-01", "F16"), n_context=64, n_threads=1)
    heads, dim = runner_tiny.HEADS, runner_tiny.HEAD_DIM
    assert [s.n_bytes if s else 0 for s in engine.cache.states] == [
        n * 4 * heads * dim * dim for n in (1, 1, 0, 1)
    ]
    assert engine.cache.allocated_bytes == 3 * 4 * heads * dim * dim + 64 * 2 * 2 * runner_tiny.KV_HEADS * dim
    engine.close()


def test_values_of_another_width_than_keys_are_refused() -> None:
    metadata = {
        "general.architecture": "minimax-01", "minimax-01.block_count": 4, "minimax-01.embedding_length": 256,
        "minimax-01.attention.head_count": 4, "minimax-01.attention.key_length": 64,
        "minimax-01.attention.value_length": 32, "minimax-01.attention.layer_norm_rms_epsilon": 1e-5,
    }  # fmt: skip
    with pytest.raises(BrokenFile, match="keys of 64 and other values"):
        hyper.read(metadata, "m.gguf")
