"""Hyper-connections: coefficients by Sinkhorn's rounds, and what the streams of the residual become."""

# mypy: disable-error-code=no-untyped-def
from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba")

from modeldb.errors import BrokenFile, UnsupportedModel
from runner import connections, kernel_connections
from runner.keys import Keys
from runner.program import Crew, Program

TOKENS, WIDTH, EPS, ROUNDS = 3, 700, 1e-6, 20


def ran(operation, *arguments) -> None:
    program = Program()
    program.add("it", operation, *arguments)
    crew = Crew(2)
    crew.run(program.finish(), TOKENS, 5)
    crew.close()


def expected(x, scale, base):
    """As section 4 of arXiv 2512.24880 and llama.cpp's src/models/deepseek4.cpp have it."""
    logistic = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
    before = logistic(x[:, :4] * scale[0] + base[:4]) + EPS
    behind = 2 * logistic(x[:, 4:8] * scale[1] + base[4:8])
    mixed = (x[:, 8:] * scale[2] + base[8:]).reshape(-1, 4, 4)
    mixed = np.exp(mixed - mixed.max(-1, keepdims=True))
    mixed = mixed / mixed.sum(-1, keepdims=True) + EPS
    mixed /= mixed.sum(-2, keepdims=True) + EPS
    for _ in range(1, ROUNDS):
        mixed /= mixed.sum(-1, keepdims=True) + EPS
        mixed /= mixed.sum(-2, keepdims=True) + EPS
    return before, behind, mixed


def test_coefficients_are_gates_and_a_doubly_stochastic_matrix() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((TOKENS, 24)).astype(np.float32)
    scale, base = rng.standard_normal(3).astype(np.float32), rng.standard_normal(24).astype(np.float32)
    before, behind, mixed = expected(x.astype(float), scale, base)
    found = x.copy()
    ran(kernel_connections.coefficients, found, 24, scale, base, ROUNDS, EPS)
    assert np.allclose(found[:, :4], before, atol=1e-6)
    assert np.allclose(found[:, 4:8], behind, atol=1e-6)
    assert np.allclose(found[:, 8:].reshape(-1, 4, 4), mixed, atol=1e-5)
    assert np.allclose(mixed.sum(-1), 1, atol=0.05)
    assert np.allclose(mixed.sum(-2), 1, atol=1e-4)
    found = x[:, :4].copy()
    ran(kernel_connections.coefficients, found, 4, scale, base, 0, EPS)
    assert np.allclose(found, before, atol=1e-6)


def test_streams_are_read_as_one_and_take_what_was_made_of_it() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((TOKENS, 4, WIDTH)).astype(np.float32)
    c = rng.standard_normal((TOKENS, 24)).astype(np.float32)
    out, empty = np.full((TOKENS, WIDTH), 7, np.float32), np.full((TOKENS, WIDTH), 7, np.float32)
    ran(kernel_connections.read, x, WIDTH, c, 24, out, empty)
    assert np.allclose(out, np.einsum("ts,tsi->ti", c[:, :4], x), atol=1e-5)
    assert not empty.any()
    made = rng.standard_normal((TOKENS, WIDTH)).astype(np.float32)
    mixed = np.einsum("trs,tri->tsi", c[:, 8:].reshape(-1, 4, 4), x) + c[:, 4:8, None] * made[:, None]
    ran(kernel_connections.write, x, WIDTH, c, 24, made)
    assert np.allclose(x, mixed, atol=1e-5)


def keys(**held) -> Keys:
    return Keys({"general.architecture": "x"} | {f"x.hyper_connection.{k}": v for k, v in held.items()}, "x")


def test_four_streams_run_and_others_are_refused() -> None:
    assert connections.read(keys()) is None
    assert connections.read(keys(count=4, sinkhorn_iterations=20, epsilon=1e-6)) == connections.Connections(
        20, 1e-6
    )
    with pytest.raises(UnsupportedModel, match="2 streams"):
        connections.read(keys(count=2, sinkhorn_iterations=20, epsilon=1e-6))
    for rounds, eps in ((0, 1e-6), (1 << 30, 1e-6), (20, -1.0)):
        with pytest.raises(BrokenFile, match="hyper-connections"):
            connections.read(keys(count=4, sinkhorn_iterations=rounds, epsilon=eps))
