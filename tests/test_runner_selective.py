"""States that forget each number at its own rate: kernels equal their definitions in float64."""

# mypy: disable-error-code=no-untyped-def
from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba")

from runner import kernel_selective
from runner.program import Crew, Program


@pytest.fixture(scope="module")
def crew():
    crew = Crew(2)
    yield crew
    crew.close()


def run(crew: Crew, n_tokens: int, operation, *arguments) -> None:
    program = Program()
    program.add("one", operation, *arguments)
    crew.run(program.finish(), n_tokens, 0)


@pytest.mark.parametrize("with_rates", [False, True])
def test_softened_numbers_are_softplus_and_its_powers(crew, with_rates: bool) -> None:
    x = np.concatenate([np.linspace(-90, 90, 301), np.linspace(-2, 2, 99)]).astype(np.float32)
    own, rates = np.stack([x, x[::-1]]), -np.linspace(0.1, 3, x.size).astype(np.float32)
    want = np.logaddexp(0.0, own.astype(np.float64))
    want = np.exp(rates * want) if with_rates else want
    own = np.ascontiguousarray(own)
    run(crew, 2, kernel_selective.soften, own, x.size, rates if with_rates else None)
    np.testing.assert_allclose(own, want, rtol=1e-5 if with_rates else 5e-7, atol=1e-30)


@pytest.mark.parametrize("bound", [-5.0, -0.25])
def test_bounded_decays_lie_between_their_bound_and_one(crew, bound: float) -> None:
    x = np.linspace(-60, 60, 301).astype(np.float32)
    own, rates = np.stack([x, x[::-1]]), np.linspace(0.1, 3, x.size).astype(np.float32)
    want = np.exp(bound / (1 + np.exp(-rates * own.astype(np.float64))))
    run(crew, 2, kernel_selective.bounded, own, x.size, rates, bound)
    np.testing.assert_allclose(own, want, rtol=2e-6)
    assert own.min() == pytest.approx(np.exp(bound), rel=1e-6)
    assert own.max() == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize(("channels", "n", "tokens"), [(200, 16, 5), (64, 32, 9)])
def test_selective_scan_is_mambas_recurrence(crew, channels: int, n: int, tokens: int) -> None:
    rng = np.random.default_rng(channels)
    f32 = lambda *shape: np.asarray(rng.standard_normal(shape), np.float32)  # noqa: E731
    x, small, skip, kept = f32(tokens, channels), f32(tokens, 3 + 2 * n), f32(channels), f32(channels, n)
    step = rng.uniform(0.01, 0.9, (tokens, channels)).astype(np.float32)
    rates = -rng.uniform(0.1, 2.0, (channels, n)).astype(np.float32)
    own, out, flat = kept.copy(), np.zeros((tokens, channels), np.float32), small.reshape(-1)
    run(crew, tokens, kernel_selective.selective, x, step, flat[3:], flat[3 + n :], 3 + 2 * n, channels, n, rates, skip,
        own, out)  # fmt: skip
    s = kept.astype(np.float64)
    for t in range(tokens):
        b, c = small[t, 3 : 3 + n].astype(np.float64), small[t, 3 + n :]
        s = s * np.exp(step[t][:, None] * rates) + (step[t] * x[t])[:, None] * b
        np.testing.assert_allclose(out[t], s @ c + skip * x[t], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(own, s, rtol=1e-4, atol=1e-5)


def test_kimis_delta_rule_forgets_number_by_number(crew) -> None:
    heads, rows, n, tokens = 3, 36, 64, 7
    rng = np.random.default_rng(5)
    width = heads * n
    mixed = rng.standard_normal((tokens, 2 * width + heads * rows)).astype(np.float32)
    beta = rng.uniform(0.1, 0.9, (tokens, heads)).astype(np.float32)
    decay = rng.uniform(0.3, 1.0, (tokens, heads, n)).astype(np.float32)
    for at in (0, width):
        part = mixed[:, at : at + width].reshape(tokens, heads, n)
        mixed[:, at : at + width] = (part / np.linalg.norm(part, axis=2, keepdims=True)).reshape(
            tokens, width
        )
    kept, out, flat = (
        rng.standard_normal((heads, rows, n)),
        np.zeros((tokens, heads, rows), np.float32),
        mixed.reshape(-1),
    )
    own = kept.astype(np.float32)
    run(crew, tokens, kernel_selective.kimi, flat[2 * width :], flat[width:], flat, mixed.shape[1], heads, rows, n,
        beta, decay, own, out)  # fmt: skip
    for t in range(tokens):
        q, k, v = np.split(mixed[t].astype(np.float64), [width, 2 * width])
        q, k = q.reshape(heads, n), k.reshape(heads, n)
        kept = kept * decay[t][:, None]
        error = v.reshape(heads, rows) - np.einsum("hrs,hs->hr", kept, k)
        kept = kept + beta[t][:, None, None] * error[:, :, None] * k[:, None]
        np.testing.assert_allclose(out[t], np.einsum("hrs,hs->hr", kept, q) / 8, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(own, kept, rtol=1e-4, atol=1e-4)
