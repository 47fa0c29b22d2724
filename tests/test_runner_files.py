"""Laws of damaged files: one clear line, whatever is wrong; and weights that are written are read back."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modeldb.errors import BrokenFile, ModelError
from runner import weights
from runner.engine import load
from runner.weights import Weight, Weights

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # last: benchmarks has a runner too
import fuzz_runner


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def sound(folder: Path) -> bytes:
    return fuzz_runner.sound_file(folder / "sound.gguf")[0]


def changed(folder: Path, name: str, **new: object) -> Weights:
    """The sound file's weights with one tensor replaced."""
    w = weights.open_file(folder / "sound.gguf")
    old = w.tensors[name]
    fields = {"format": old.format, "shape": old.shape, "data": old.data} | new
    return Weights(w.name, w.metadata, w.tensors | {name: Weight(name, **fields)})  # type: ignore[arg-type]


def test_a_sound_file_runs(folder: Path, sound: bytes) -> None:
    engine = load(folder / "sound.gguf", n_context=32, n_batch=8, n_threads=1)
    assert np.isfinite(engine.prefill([1, 2, 3])).all()
    engine.close()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(folder: Path, sound: bytes, share: float) -> None:
    path = folder / "cut.gguf"
    path.write_bytes(sound[: int(share * len(sound))])
    with pytest.raises(BrokenFile):
        load(path)


def test_scales_that_are_no_numbers_are_refused_by_tensor(folder: Path, sound: bytes) -> None:
    w = weights.open_file(folder / "sound.gguf")
    data = w.tensors["blk.0.ffn_up.weight"].data.copy()
    data[:2] = np.array([np.nan], np.float16).view(np.uint8)
    with pytest.raises(BrokenFile, match=r"`blk.0.ffn_up.weight` holds numbers that are not finite"):
        weights.check(changed(folder, "blk.0.ffn_up.weight", data=data))


def test_wrong_shapes_are_refused_with_both_shapes(folder: Path, sound: bytes) -> None:
    with pytest.raises(
        BrokenFile, match=r"`blk.0.attn_k.weight` has shape \(64, 16\), its model needs \(32, 32\)"
    ):
        load(changed(folder, "blk.0.attn_k.weight", shape=(64, 16)))
    with pytest.raises(BrokenFile, match=r"`output_norm.weight` holds 8 numbers, its model 32"):
        load(changed(folder, "output_norm.weight", data=np.ones(8, np.float32).view(np.uint8)))


def test_a_tensor_that_lies_about_its_type_is_refused(folder: Path, sound: bytes) -> None:
    at = sound.index(b"blk.0.attn_v.weight") + len("blk.0.attn_v.weight") + 4 + 16
    assert sound[at] == 2  # Q4_0
    for other in (8, 0, 12):  # Q8_0, F32, Q4_K
        path = folder / "lie.gguf"
        path.write_bytes(sound[:at] + bytes([other]) + sound[at + 1 :])
        with pytest.raises(ModelError):
            load(path)


def test_a_missing_tensor_is_named(folder: Path, sound: bytes) -> None:
    w = weights.open_file(folder / "sound.gguf")
    without = {n: t for n, t in w.tensors.items() if n != "blk.0.ffn_down.weight"}
    with pytest.raises(BrokenFile, match=r"`blk.0.ffn_down.weight` is missing"):
        load(Weights(w.name, w.metadata, without))


@pytest.mark.parametrize("architecture", fuzz_runner.KINDS)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1))
def test_damage_ends_in_one_line_or_in_numbers(folder: Path, architecture: str, seed: int) -> None:
    whole = folder / f"{architecture}.gguf"
    sound, header = fuzz_runner.sound_file(whole, architecture)
    path = folder / f"fuzz-{seed % 16}.gguf"
    path.unlink(missing_ok=True)
    path.write_bytes(fuzz_runner.damaged(sound, header, np.random.default_rng(seed)))
    assert fuzz_runner.outcome(path, run=True)
