"""Decode in steps of fixed shape gives the logits of the plain path, reads nothing back, and keeps rings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import runner_tiny
from test_runner_torch import NAMES

from modeldb.errors import UnsupportedModel
from runner import torch_cache, weights
from runner.errors import ContextFull, RunnerError
from runner.torch_backend import TorchEngine
from runner.torch_forward import ARCHITECTURES

torch = pytest.importorskip("torch")
dispatch = pytest.importorskip("torch.utils._python_dispatch")

PROMPT = np.random.default_rng(3).integers(3, runner_tiny.VOCAB, 21).tolist()
# operations whose result's size or value the host must know: a graph cannot hold them
READS = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "bincount", "repeat_interleave.Tensor")


class NoReads(dispatch.TorchDispatchMode):
    """Fails where a number would have to travel to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        assert not any(name in str(func) for name in READS), func
        return func(*args, **(kwargs or {}))


def _engines(tmp_path: Path, name: str, kind: str = "F16", **more):
    opened = weights.open_file(runner_tiny.write(tmp_path / "m.gguf", name, kind))
    given = {"n_context": 64, "n_batch": 8, "device": "cpu", **more}
    return TorchEngine(opened, **given, static=False), TorchEngine(opened, **given, static=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_fixed_shape_gives_the_logits_of_the_plain_step(name: str, tmp_path: Path) -> None:
    plain, static = _engines(tmp_path, name)
    np.testing.assert_array_equal(plain.prefill(PROMPT), static.prefill(PROMPT))
    for token in range(40, 72):  # beyond the windows (16) and once around their rings (24 slots)
        wanted, found = plain.decode(token), static.decode(token)
        np.testing.assert_allclose(found, wanted, atol=2e-4 * float(np.std(wanted)), rtol=2e-4)
    assert plain.n_tokens == static.n_tokens == len(PROMPT) + 32


@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_fixed_shape_reads_nothing_back(name: str, tmp_path: Path) -> None:
    _, static = _engines(tmp_path, name)
    static.prefill(PROMPT)
    with torch.inference_mode(), NoReads() as watched:
        static._decode.put(7, static.n_tokens)
        static._decode.step(32)
    assert len(watched.seen) > 50
    reading = torch.tensor([3])
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoReads():
        reading.item()


def test_a_step_feeds_itself_as_greedy_decoding_does(tmp_path: Path) -> None:
    plain, static = _engines(tmp_path, "qwen3moe")
    token = int(np.argmax(plain.prefill(PROMPT)))
    static.prefill(PROMPT)
    wanted, last = [], token
    for _ in range(12):
        last = int(np.argmax(plain.decode(last)))
        wanted.append(last)
    assert static.greedy(token, 12) == wanted
    assert static.n_tokens == plain.n_tokens
    with pytest.raises(ContextFull):
        static.greedy(1, 60)
    with pytest.raises(RunnerError, match="fixed shape"):
        plain.greedy(1, 2)


def test_crossing_into_a_longer_bucket_changes_nothing(tmp_path: Path) -> None:
    plain, static = _engines(tmp_path, "gemma3", n_context=300, n_batch=64)
    long = (PROMPT * 13)[:253]
    plain.prefill(long)
    static.prefill(long)
    for token in range(6):
        np.testing.assert_allclose(static.decode(token), plain.decode(token), atol=1e-3, rtol=1e-3)


def test_buckets_hold_what_is_asked_and_few_serve_all() -> None:
    context = 40_000
    found = [torch_cache.bucket(n, context) for n in range(1, context + 1)]
    assert all(b >= n for n, b in enumerate(found, 1))
    assert all(b - n < max(256, n / 8) for n, b in enumerate(found, 1))
    assert found == sorted(found)
    assert max(found) == context
    assert len(set(found)) < 50


def test_tokens_after_a_rewind_are_those_of_a_fresh_run(tmp_path: Path) -> None:
    plain, static = _engines(tmp_path, "gemma2")
    wanted = [plain.prefill(PROMPT), plain.decode(9)]
    static.prefill(PROMPT[::-1])
    static.decode(3)
    static.rewind(0)
    np.testing.assert_array_equal(static.prefill(PROMPT), wanted[0])
    np.testing.assert_allclose(static.decode(9), wanted[1], atol=1e-3, rtol=1e-3)


def test_windowed_layers_hold_a_ring_and_the_rest_the_context(tmp_path: Path) -> None:
    from runner import hyper
    from runner.cache import allocate

    plain, _ = _engines(tmp_path, "gemma2", cache_type="f16")
    read = hyper.read(plain.weights.metadata, "m")
    assert plain.cache.allocated_bytes == allocate(read, 64, 8, "f16").allocated_bytes
    assert [c.n_slots for c in plain.cache.layers] == [24 if w else 64 for w in read.windows]


def test_what_this_backend_lacks_is_refused_by_name(tmp_path: Path) -> None:
    opened = weights.open_file(runner_tiny.write(tmp_path / "m.gguf", "llama", "F16"))
    with pytest.raises(UnsupportedModel, match="cache of type `q8_0`"):
        TorchEngine(opened, device="cpu", cache_type="q8_0")
    with pytest.raises(RunnerError, match=r"no device `cuda`|no device `nowhere`"):
        TorchEngine(opened, device="nowhere" if torch.cuda.is_available() else "cuda")
    others = {a: name for name, (a, _) in runner_tiny.MODELS.items() if a not in ARCHITECTURES}
    for architecture, name in sorted(others.items()):
        strange = weights.open_file(runner_tiny.write(tmp_path / f"{name}.gguf", name, "F16"))
        with pytest.raises(UnsupportedModel, match=f"no `{architecture}` architecture"):
            TorchEngine(strange, device="cpu")
