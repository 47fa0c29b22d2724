"""The PyTorch backend computes what the compiled engine computes, on CPU tensors, for every architecture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import runner_tiny

from modeldb.errors import UnsupportedModel
from runner.errors import RunnerError
from runner.torch_forward import ARCHITECTURES

pytest.importorskip("torch")
pytest.importorskip("numba")

REFUSED = {"deepseek2-joined": "decompressed cache", "mistral-large": "grow with position"}
RUN = {n for n, (architecture, _) in runner_tiny.MODELS.items() if architecture in ARCHITECTURES}
NAMES = sorted(RUN - set(REFUSED))
TOKENS = [5, 9, 200, 13, 17, 250, 3, 77, 31, 8, 64, 128, 99, 1, 2, 40, 41, 42, 43, 44, 45, 46, 47, 48]


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_those_of_the_engine(name: str, tmp_path: Path) -> None:
    from runner import load, weights
    from runner.torch_backend import TorchEngine

    opened = weights.open_file(runner_tiny.write(tmp_path / "m.gguf", name, "F16"))
    engine = load(opened, n_context=64, n_threads=1, n_batch=16)
    other = TorchEngine(opened, n_context=64, n_batch=16, device="cpu")
    wanted, found = engine.prefill(TOKENS, all_logits=True), other.prefill(TOKENS, all_logits=True)
    np.testing.assert_allclose(found, wanted, atol=0.03 * float(np.std(wanted)), rtol=0.02)
    for token in (7, 250, 11):
        np.testing.assert_allclose(
            other.decode(token), engine.decode(token), atol=0.03 * float(np.std(wanted)), rtol=0.02
        )
    engine.close()


@pytest.mark.parametrize("name", REFUSED)
def test_what_an_architecture_has_and_this_backend_lacks_is_refused_by_name(
    name: str, tmp_path: Path
) -> None:
    from runner import weights
    from runner.torch_backend import TorchEngine

    opened = weights.open_file(runner_tiny.write(tmp_path / "m.gguf", name, "F16"))
    with pytest.raises(UnsupportedModel, match=REFUSED[name]):
        TorchEngine(opened, n_context=64, device="cpu")


def test_quantized_weights_are_expanded_and_said_to_be(tmp_path: Path) -> None:
    from runner import load, weights
    from runner.torch_backend import TorchEngine

    opened = weights.open_file(runner_tiny.write(tmp_path / "m.gguf", "llama", "Q8_0"))
    other = TorchEngine(opened, n_context=64, device="cpu", dtype="float32")
    assert other.note == "Q8_0 expanded to float32 when loaded"
    engine = load(opened, n_context=64, n_threads=1)
    found, wanted = other.prefill(TOKENS), engine.prefill(TOKENS)
    assert np.corrcoef(found, wanted)[0, 1] > 0.999
    assert other.meter.n_params == engine.meter.n_params
    engine.close()


def test_chunks_rewinding_and_generation_behave_as_the_engine_does(tmp_path: Path) -> None:
    from runner import generate, weights
    from runner.sampling import Sampling
    from runner.torch_backend import TorchEngine

    opened = weights.open_file(runner_tiny.write(tmp_path / "m.gguf", "gemma3", "F16"))
    whole, parts = (TorchEngine(opened, n_context=64, n_batch=n, device="cpu") for n in (64, 5))
    np.testing.assert_allclose(whole.prefill(TOKENS), parts.prefill(TOKENS), atol=1e-3)
    first = [s.token for s in generate.stream(_rewound(whole), TOKENS, Sampling(), 6)]
    assert first == [s.token for s in generate.stream(_rewound(whole), TOKENS, Sampling(), 6)]
    with pytest.raises(RunnerError, match="do not fit the context"):
        whole.prefill([1] * 60)
    with pytest.raises(RunnerError, match="no type"):
        TorchEngine(opened, dtype="int3")


def _rewound(engine):
    engine.rewind(0)
    return engine
