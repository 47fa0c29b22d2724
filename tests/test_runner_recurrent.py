"""Recurrent layers: kernels equal their definitions in float64, and states behave as caches do."""

# mypy: disable-error-code=no-untyped-def
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import runner_tiny

from modeldb.errors import BrokenFile, UnsupportedModel

pytest.importorskip("numba")

from runner import kernel_recurrent
from runner.engine import load
from runner.program import Crew, Program

HYBRIDS = (
    "falcon-h1",
    "granite-h",
    "nemotron-h",
    "lfm2",
    "qwen35",
    "jamba",
    "kimi-linear",
    "ling3",
    "minimax-01",
    "glm5-next",
)


@pytest.fixture(scope="module")
def crew():
    crew = Crew(2)
    yield crew
    crew.close()


@pytest.fixture(scope="module")
def engine_of(tmp_path_factory):
    folder, engines = tmp_path_factory.mktemp("hybrid"), {}

    def make(name: str):
        if name not in engines:
            path = runner_tiny.write(folder / f"{name}.gguf", name, "F16")
            engines[name] = load(path, n_context=128, n_batch=32, n_threads=2)
        engines[name].rewind(0)
        return engines[name]

    yield make
    for engine in engines.values():
        engine.close()


def run(crew: Crew, n_tokens: int, operation, *arguments) -> None:
    program = Program()
    program.add("one", operation, *arguments)
    crew.run(program.finish(), n_tokens, 0)


@pytest.mark.parametrize(("channels", "taps", "n"), [(8, 2, 1), (200, 4, 2), (130, 4, 9), (128, 3, 40)])
@pytest.mark.parametrize("silu", [0, 1])
def test_convolution_sees_the_tokens_before_it(crew, channels: int, taps: int, n: int, silu: int) -> None:
    rng = np.random.default_rng(channels + n)
    f32 = lambda *shape: np.asarray(rng.standard_normal(shape), np.float32)  # noqa: E731
    x, weights, bias, tail = f32(n, channels + 3), f32(taps, channels), f32(channels), f32(taps - 1, channels)
    rows = np.concatenate([tail, x[:, :channels]]).astype(np.float64)
    want = np.stack([np.sum(rows[t : t + taps] * weights, 0) + bias for t in range(n)])
    want = want / (1.0 + np.exp(-want)) if silu else want
    out = np.zeros((n, channels), np.float32)
    run(
        crew,
        n,
        kernel_recurrent.convolve,
        x,
        channels + 3,
        channels,
        taps,
        weights,
        bias,
        tail,
        out,
        channels,
        silu,
    )
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(tail, rows[n:].astype(np.float32))


@pytest.mark.parametrize(("heads", "rows", "state", "groups", "n"), [(4, 20, 32, 2, 5), (3, 64, 128, 1, 17)])
def test_scan_is_mamba_2s_recurrence(crew, heads: int, rows: int, state: int, groups: int, n: int) -> None:
    rng = np.random.default_rng(state)
    inner, channels = heads * rows, heads * rows + 2 * groups * state
    mixed = rng.standard_normal((n, channels)).astype(np.float32)
    step, decay = (rng.uniform(0.1, 0.9, (n, heads)).astype(np.float32) for _ in range(2))
    skip, kept = rng.standard_normal(heads).astype(np.float32), rng.standard_normal((heads, rows, state))
    own, out = kept.astype(np.float32), np.zeros((n, heads, rows), np.float32)
    flat = mixed.reshape(-1)
    b_part, c_part = flat[inner:], flat[inner + groups * state :]
    run(crew, n, kernel_recurrent.scan, flat, b_part, c_part, channels, heads, rows, state, groups, step, decay,
        skip, own, out, rows, state, heads)  # fmt: skip
    for t in range(n):
        x, b, c = np.split(mixed[t].astype(np.float64), [inner, inner + groups * state])
        x, b, c = (
            x.reshape(heads, rows),
            *(np.repeat(v.reshape(groups, state), heads // groups, 0) for v in (b, c)),
        )
        kept = decay[t][:, None, None] * kept + (step[t][:, None] * x)[:, :, None] * b[:, None]
        want = (kept * c[:, None]).sum(-1) + skip[:, None] * x
        np.testing.assert_allclose(out[t], want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(own, kept, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shared", [0, 1])
def test_delta_is_the_gated_delta_rule(crew, shared: int) -> None:
    heads, rows, state, groups, n = 6, 36, 64, 2, 11
    rng = np.random.default_rng(shared)
    keys = groups * state
    channels = 2 * keys + heads * rows
    mixed = rng.standard_normal((n, channels)).astype(np.float32)
    run(crew, n, kernel_recurrent.unit_length, mixed, channels, 2 * groups, state, 0.0)
    beta, decay = (rng.uniform(0.1, 0.9, (n, heads)).astype(np.float32) for _ in range(2))
    kept = rng.standard_normal((heads, rows, state))
    own, out, flat = kept.astype(np.float32), np.zeros((n, heads, rows), np.float32), mixed.reshape(-1)
    run(crew, n, kernel_recurrent.delta, flat[2 * keys :], flat[keys:], flat, channels, heads, rows, state, groups,
        beta, decay, shared, own, out)  # fmt: skip
    of = [h // (heads // groups) if shared else h % groups for h in range(heads)]
    for t in range(n):
        q, k, v = np.split(mixed[t].astype(np.float64), [keys, 2 * keys])
        q, k = (x.reshape(groups, state)[of] for x in (q, k))
        np.testing.assert_allclose(np.linalg.norm(k, axis=1), 1.0, rtol=1e-5)
        kept = kept * decay[t][:, None, None]
        error = v.reshape(heads, rows) - np.einsum("hrs,hs->hr", kept, k)
        kept = kept + beta[t][:, None, None] * error[:, :, None] * k[:, None]
        want = np.einsum("hrs,hs->hr", kept, q) / np.sqrt(state)
        np.testing.assert_allclose(out[t], want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(own, kept, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", HYBRIDS)
def test_rewinding_forgets_what_came_after(engine_of, name: str) -> None:
    engine, tokens = engine_of(name), runner_tiny.prompt()
    want = engine.prefill(tokens).copy()
    after = engine.decode(7).copy()
    engine.prefill([3, 1, 4, 1, 5])
    engine.rewind(len(tokens))  # before that prompt: from the first token
    np.testing.assert_allclose(engine.decode(7), after, rtol=1e-4, atol=1e-4)
    engine.prefill([3, 1, 4, 1, 5])
    short = engine.decode(9).copy()
    engine.rewind(len(tokens) + 4)  # within it: from its beginning
    engine.prefill([1, 5])
    np.testing.assert_allclose(engine.decode(9), short, rtol=1e-3, atol=1e-3)
    engine.rewind(0)
    np.testing.assert_array_equal(engine.prefill(tokens), want)


@pytest.mark.parametrize("name", ["falcon-h1", "lfm2"])
def test_beams_keep_their_own_states(engine_of, name: str) -> None:
    from runner import generate
    from runner.sampling import Sampling

    engine = engine_of(name)
    greedy = [s.token for s in generate.stream(engine, [5, 6, 7], Sampling(), 8)]
    engine.rewind(0)
    assert generate.beams(engine, [5, 6, 7], 1, 8)[0][0] == greedy
    engine.rewind(0)
    for tokens, score in generate.beams(engine, [5, 6, 7], 3, 6):
        engine.rewind(0)
        rows = engine.prefill([5, 6, 7, *tokens], all_logits=True)[2:]
        found = sum(float(np.log(np.exp(r - r.max()) / np.exp(r - r.max()).sum())[t])
                    for r, t in zip(rows, tokens, strict=False))  # fmt: skip
        assert score == pytest.approx(found / len(tokens), abs=0.02)


def test_a_draft_may_be_wrong_about_a_model_with_states(engine_of, tmp_path) -> None:
    from runner import generate
    from runner.sampling import Sampling

    engine = engine_of("nemotron-h")
    greedy = [s.token for s in generate.stream(engine, [9, 8, 7], Sampling(), 16)]
    other = load(runner_tiny.write(tmp_path / "d.gguf", "lfm2", "F16", seed=3), n_context=128, n_threads=1)
    engine.rewind(0)
    made = [s.token for s in generate.speculate(engine, other, [9, 8, 7], Sampling(), 16)]
    other.close()
    assert made == greedy


def test_state_bytes_do_not_grow_with_tokens(engine_of) -> None:
    cache = engine_of("falcon-h1").cache
    channels, taps, inner, state = 512 + 2 * 2 * 64, 4, 512, 64
    assert cache.state_bytes == runner_tiny.LAYERS * 4 * ((taps - 1) * channels + inner * state)
    rows = runner_tiny.LAYERS * 2 * runner_tiny.KV_HEADS * runner_tiny.HEAD_DIM * 2
    assert [cache.bytes_at(n) - cache.state_bytes for n in (0, 1, 9)] == [0, rows, 9 * rows]
    assert cache.allocated_bytes == cache.bytes_at(128)
    lfm2 = engine_of("lfm2").cache
    assert [s is None for s in lfm2.states] == [False, True, False]
    assert [c.key_row_bytes > 0 for c in lfm2.layers] == [False, True, False]


@pytest.mark.parametrize("model", ["falcon-h1-0.5b-instruct", "lfm2-350m", "qwen3.5-0.8b"])
def test_synthetic_states_neither_grow_nor_vanish(model: str) -> None:
    from modeldb import catalogue, schemes
    from runner import sampled

    sample = sampled.load(catalogue.load().resolve(model), schemes.get("Q4_0"), 256, n_threads=2)
    engine = sample.engine
    logits = engine.prefill(np.arange(256) * 37 % 1000)
    assert np.all(np.isfinite(logits))
    assert 0.1 < logits.std() < 100
    arrays = engine.cache.copy_states()
    assert arrays
    assert all(1e-4 < np.abs(a).max() < 1e4 for a in arrays if a.size)
    sample.close()


@pytest.mark.parametrize(
    ("key", "value", "error", "said"),
    [
        ("ssm.state_size", 40, UnsupportedModel, "states of 64 x 40 are not supported"),
        ("ssm.time_step_rank", 0, BrokenFile, "in 0 heads"),
        ("ssm.group_count", 3, BrokenFile, "3 groups"),
        ("ssm.conv_kernel", 1, BrokenFile, "convolution of 1 taps"),
        ("ssm.inner_size", 1024, BrokenFile, "its model needs"),
    ],
)
def test_sizes_that_make_no_state_are_refused_in_a_line(engine_of, key, value, error, said) -> None:
    weights = engine_of("falcon-h1").weights
    with pytest.raises(error, match=said):
        load(replace(weights, metadata=weights.metadata | {f"falcon-h1.{key}": value}))


def test_a_layer_of_neither_kind_is_refused(engine_of) -> None:
    weights = engine_of("lfm2").weights
    left = {n: t for n, t in weights.tensors.items() if not n.startswith("blk.1.")}
    with pytest.raises(BrokenFile, match="layer 1 holds nothing"):
        load(replace(weights, tensors=left))


def test_layers_that_predict_further_tokens_are_left_out(engine_of, tmp_path) -> None:
    from runner import synthetic, weights

    engine, tokens = engine_of("qwen35"), runner_tiny.prompt()
    held, want = engine.weights, engine.prefill(tokens).copy()
    drafts = {n.replace("blk.2.", "blk.3."): t for n, t in held.tensors.items() if n.startswith("blk.2.")}
    more = {"qwen35.block_count": runner_tiny.LAYERS + 1, "qwen35.nextn_predict_layers": 1}
    tensors = held.tensors | {n: replace(t, name=n) for n, t in drafts.items()}
    synthetic.write_gguf(replace(held, metadata=held.metadata | more, tensors=tensors), tmp_path / "m.gguf")
    opened = weights.open_file(tmp_path / "m.gguf")
    assert opened.weight_bytes == held.weight_bytes
    own = load(opened, n_context=128, n_batch=32, n_threads=2)
    np.testing.assert_array_equal(own.prefill(tokens), want)
    own.close()
