"""Laws of the forward pass: llama.cpp's logits on one tiny file per architecture, and no seams between ways
to run."""

# mypy: disable-error-code=no-untyped-def
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import runner_tiny

from modeldb.errors import UnsupportedModel
from runner import rotation
from runner.engine import load
from runner.errors import ContextFull
from runner.kernel_tools import SEVERAL

DATA = Path(__file__).parent / "data/runner"
GOLDEN = {key: values for name in runner_tiny.FILES for key, values in np.load(DATA / name).items()}
CASES = [case for cases, _ in runner_tiny.FILES.values() for case in cases]
# kind -> (largest error over the spread of logits, mean KL divergence in nats). F16 differs by llama.cpp's
# rounding of
# activations to float16; int8 activations of K-quants have one scale per 256 there and per 32 here.
CLOSE = {"F16": (6e-3, 1e-6), "BF16": (3e-2, 1e-4)}
QUANTIZED_CLOSE = (0.12, 1e-3)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64) - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def engine_of(tmp_path_factory):
    folder, engines = tmp_path_factory.mktemp("tiny"), []

    def make(name: str, kind: str, **options):
        path = folder / f"{name}-{kind}.gguf"
        if not path.exists():
            runner_tiny.write(path, name, kind)
        engines.append(load(path, n_threads=2, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_logits_and_greedy_continuations_are_llama_cpps(engine_of, name: str, kind: str) -> None:
    expected, greedy = GOLDEN[f"{name}/{kind}/logits"], GOLDEN[f"{name}/{kind}/greedy"].tolist()
    engine = engine_of(name, kind)
    logits = engine.prefill(runner_tiny.prompt(name), all_logits=True)[-len(expected) :]
    error, divergence = CLOSE.get(kind, QUANTIZED_CLOSE)
    assert np.abs(logits - expected).max() <= error * expected.std()
    p, q = log_softmax(expected), log_softmax(logits)
    assert (np.exp(p) * (p - q)).sum(-1).mean() <= divergence
    last, found = logits[-1], []
    for _ in greedy:
        found.append(int(last.argmax()))
        last = engine.decode(found[-1])
    if kind in ("F16", "Q8_0"):
        assert found == greedy
    else:
        assert np.mean(np.array(found) == greedy) > 0.9


@pytest.mark.parametrize(
    "name", [name for name in runner_tiny.MODELS if name not in runner_tiny.IN_ONE_PIECE]
)
def test_one_piece_equals_chunks_equals_token_by_token(engine_of, name: str) -> None:
    engine, tokens = engine_of(name, "F16", n_batch=64), runner_tiny.prompt() * 2
    whole = engine.prefill(tokens[:64], all_logits=True)
    for size in (32, 8):
        engine.rewind(0)
        parts = [engine.prefill(tokens[i : i + size], all_logits=True) for i in range(0, 64, size)]
        chunks = np.concatenate(parts)
        if size <= SEVERAL:  # another kernel, which sums in another order; the cache rounds that to float16
            assert np.abs(chunks - whole).max() <= 2e-3 * whole.std()
        elif engine.hyper.n_experts:  # experts of few tokens take another kernel
            assert np.abs(chunks - whole).max() <= 1e-4 * whole.std()
        else:
            assert np.array_equal(whole, chunks)
    engine.rewind(0)
    single = np.stack([engine.decode(t).copy() for t in tokens[:64]])
    assert np.abs(single - whole).max() <= 2e-3 * whole.std()
    engine.rewind(0)
    assert np.abs(engine.prefill(tokens[:64]) - whole[-1]).max() <= 2e-3 * whole.std()


@pytest.mark.parametrize(("cache", "bound"), [("q8_0", 2e-3), ("q4_0", 0.2)])
def test_a_quantized_cache_is_smaller_and_close(engine_of, cache: str, bound: float) -> None:
    exact, coarse = engine_of("llama", "F16"), engine_of("llama", "F16", cache_type=cache)
    tokens = runner_tiny.prompt()
    p, q = (log_softmax(e.prefill(tokens, all_logits=True)) for e in (exact, coarse))
    assert 0 < (np.exp(p) * (p - q)).sum(-1).mean() <= bound
    q = log_softmax(np.stack([exact.decode(5), coarse.decode(5)]))
    assert (np.exp(q[0]) * (q[0] - q[1])).sum() <= 2 * bound
    assert coarse.cache.allocated_bytes < 0.6 * exact.cache.allocated_bytes


@pytest.mark.parametrize("width", [80, 100])
def test_heads_between_blocks_take_no_more_cache_and_none_of_blocks(engine_of, width: int) -> None:
    engine = engine_of(f"width-{width}", "F16", n_context=64)
    layer = engine.hyper.n_kv_heads[0] * width * 2 * 2
    assert engine.cache.allocated_bytes == 64 * runner_tiny.LAYERS * layer
    with pytest.raises(UnsupportedModel, match=f"heads of width {width} .* f16"):
        engine_of(f"width-{width}", "F16", cache_type="q8_0")


@pytest.mark.parametrize("name", ["gemma3", "gpt-oss"])
def test_windowed_layers_keep_a_ring_and_lose_nothing(engine_of, name: str) -> None:
    ring, whole = engine_of(name, "F16", n_batch=16), engine_of(name, "F16", n_batch=512)
    assert min(c.n_slots for c in ring.cache.layers) == 32
    tokens = runner_tiny.prompt() * 4
    a, b = ring.prefill(tokens), whole.prefill(tokens)
    assert np.abs(a - b).max() <= 2e-3 * b.std()


def test_cache_bytes_grow_by_token_and_stop_at_the_ring(engine_of) -> None:
    engine = engine_of("gemma3", "F16", n_batch=16)
    per_layer = 2 * runner_tiny.KV_HEADS * runner_tiny.HEAD_DIM * 2
    assert engine.cache.bytes_at(10) == 10 * 3 * per_layer
    assert engine.cache.bytes_at(100) == (100 + 2 * 32) * per_layer
    assert engine.cache.bytes_at(512) == engine.cache.allocated_bytes


def test_the_context_has_an_end_and_tokens_a_vocabulary(engine_of) -> None:
    engine = engine_of("llama", "Q4_0", n_context=16)
    engine.prefill([1] * 16)
    with pytest.raises(ContextFull, match="17 tokens do not fit the context of 16"):
        engine.decode(1)
    engine.rewind(4)
    with pytest.raises(ValueError, match="token 288 is outside the vocabulary"):
        engine.decode(288)


def test_the_meter_counts_the_bytes_of_one_token(engine_of) -> None:
    engine = engine_of("llama", "Q8_0")
    sizes = {n: w.data.nbytes for n, w in engine.weights.tensors.items()}
    table = sizes.pop("token_embd.weight")
    assert engine.meter.token_weight_bytes == sum(sizes.values()) + table // runner_tiny.VOCAB
    assert engine.meter.weight_bytes == sum(sizes.values()) + table


@pytest.mark.parametrize("n", [4, 12, 112])
def test_slopes_between_powers_of_two_are_every_other_one_of_twice_as_many(n: int) -> None:
    power = 2 ** int(np.log2(n))
    of = lambda k: 2.0 ** (-8.0 * np.arange(1, k + 1) / k)  # noqa: E731
    published = [*of(power), *of(2 * power)[::2][: n - power]]  # appendix of arXiv 2108.12409
    assert rotation.slopes(n, 8.0) == pytest.approx(published)


def test_an_unknown_architecture_and_cache_are_refused_by_name(tmp_path, engine_of) -> None:
    import gguf

    writer = gguf.GGUFWriter(str(tmp_path / "x.gguf"), "rwkv7")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.ones((8, 32), np.float32))
    for step in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        step()
    with pytest.raises(UnsupportedModel, match="no `rwkv7` architecture"):
        load(tmp_path / "x.gguf")
    with pytest.raises(UnsupportedModel, match="cache of type `q2`"):
        engine_of("llama", "F16", cache_type="q2")
