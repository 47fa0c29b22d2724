"""Compressed rows of the cache (DeepSeek-V4): what they are, who sees them, and that it does not matter how a sequence
was cut; experts that a table chooses."""

# mypy: disable-error-code=no-untyped-def
from __future__ import annotations

from dataclasses import replace

import gguf
import numpy as np
import pytest
import runner_tiny
import tiny_compressed as tiny

pytest.importorskip("numba")

from modeldb.errors import BrokenFile, UnsupportedModel
from runner import kernel_compress
from runner.engine import load
from runner.program import Crew, Program
from runner.weights import Weights, open_file

TOKENS = 300  # two rows of 128 and 75 of 4
CONTEXT = 320


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return runner_tiny.write(tmp_path_factory.mktemp("compressed") / "x.gguf", "deepseek4", "F16")


@pytest.fixture
def engine_of(path):
    engines = []

    def make(weights=None, **options):
        engines.append(load(weights or path, n_context=CONTEXT, n_threads=2, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def tokens(n: int = TOKENS) -> list[int]:
    return np.random.default_rng(3).integers(3, runner_tiny.VOCAB, n).tolist()


@pytest.fixture(scope="module")
def everything(path):
    """The model, whose indexers choose all rows."""
    held = open_file(path)
    return Weights("x", {**held.metadata, "deepseek4.attention.indexer.top_k": CONTEXT}, held.tensors)


@pytest.mark.parametrize("chosen", [tiny.TOP_K, CONTEXT])
def test_one_piece_equals_odd_chunks_equals_token_by_token(engine_of, everything, chosen: int) -> None:
    ids, weights = tokens(), everything if chosen == CONTEXT else None
    whole = engine_of(weights, n_batch=CONTEXT).prefill(ids, all_logits=True)
    for size in (1, 7, 131):
        engine = engine_of(weights, n_batch=131)
        parts = [engine.prefill(ids[i : i + size], all_logits=True) for i in range(0, TOKENS, size)]
        apart = np.abs(np.concatenate(parts) - whole).max(1) > 1e-3 * whole.std()
        # of two rows with all but equal scores, the order of a sum decides which is seen
        assert apart.sum() <= (0 if weights else 3)


def test_a_sequence_taken_back_goes_on_as_one_that_never_was_longer(engine_of, everything) -> None:
    ids = tokens()
    engine, other = engine_of(everything, n_batch=64), engine_of(everything, n_batch=64)
    engine.prefill(ids[:140])
    engine.prefill(ids[140:290])
    engine.rewind(258)
    other.prefill(ids[:258])
    a, b = (e.prefill(ids[5:40]).copy() for e in (engine, other))
    assert np.abs(a - b).max() <= 3e-3 * b.std()


def test_the_choice_of_rows_matters_once_there_are_more_than_are_chosen(engine_of, everything) -> None:
    dense, sparse, ids = engine_of(everything), engine_of(), tokens()
    few = 4 * tiny.TOP_K + 3
    assert np.abs(sparse.prefill(ids[:few]) - dense.prefill(ids[:few])).max() < 1e-4
    a, b = sparse.prefill(ids[few:]), dense.prefill(ids[few:])
    assert np.abs(a - b).max() > 0.01 * b.std()


def test_a_cache_holds_the_window_complete_rows_their_keys_and_what_waits_for_more(engine_of) -> None:
    cache = engine_of(n_batch=64).cache
    ring, key, index = tiny.WINDOW + 64, 2 * tiny.WIDTH, 2 * tiny.INDEX_WIDTH
    waiting = 2 * 4 * (2 * 4 * 4 * (tiny.WIDTH + tiny.INDEX_WIDTH) + 128 * tiny.WIDTH)
    assert cache.state_bytes == waiting

    def rows(n: int) -> int:
        return 2 * (n // 4) * (key + index) + n // 128 * key

    assert cache.allocated_bytes == 4 * ring * key + rows(CONTEXT) + waiting
    for n in (3, 4, 79, 127, 128, 300):
        assert cache.bytes_at(n) == 4 * min(n, ring) * key + rows(n) + waiting


@pytest.mark.parametrize(("kind", "bound"), [("q8_0", 0.05), ("q4_0", 0.6)])
def test_rows_are_cached_in_the_caches_format(engine_of, everything, kind: str, bound: float) -> None:
    exact, coarse = engine_of(everything), engine_of(everything, cache_type=kind)
    a, b = (e.prefill(tokens(200)) for e in (exact, coarse))
    assert 0 < np.abs(a - b).max() < bound * a.std()


@pytest.mark.parametrize("reach", [1, 2])
def test_a_row_is_its_tokens_sum_by_the_softmax_of_their_scores(reach: int) -> None:
    width, rate, pairs, eps, end = 64, 4, 16, 1e-6, 27
    rng = np.random.default_rng(reach)
    values, scores = rng.standard_normal((2, end, reach, width)).astype(np.float32)
    added = rng.standard_normal((rate, reach, width)).astype(np.float32)
    norm = rng.standard_normal(width).astype(np.float32)
    frequency = (100.0 ** (-np.arange(pairs) / pairs)).astype(np.float32)
    kept = np.zeros((2, reach * rate, reach, width), np.float32)
    out, scratch = np.zeros((end // rate, width), np.float16), np.zeros((2, 3 * width), np.float32)
    crew, first = Crew(2), 0
    for n in (1, 2, 9, 1, 14):
        part = slice(first, first + n)
        shared = (values[part].copy(), scores[part].copy(), width, reach, rate, added, kept[0], kept[1])
        program = Program()
        program.add("compress", kernel_compress.compress("F16"), *shared, out, 2 * width, norm, eps, frequency, pairs,
                    0, scratch, 3 * width * 4)  # fmt: skip
        program.add("keep", kernel_compress.keep, *shared)
        crew.run(program.finish(), n, first)
        first += n
    crew.close()
    for row in range(end // rate):
        at = [
            (t, reach - 1 - (row - t // rate))
            for t in range(max(0, (row + 1 - reach) * rate), (row + 1) * rate)
        ]
        s = np.stack([scores[t, k] + added[t % rate, k] for t, k in at]).astype(float)
        weights = np.exp(s - s.max(0)) / np.exp(s - s.max(0)).sum(0)
        x = (weights * np.stack([values[t, k] for t, k in at])).sum(0)
        x = x / np.sqrt((x * x).mean() + eps) * norm
        turned = (x[width - 2 * pairs :: 2] + 1j * x[width - 2 * pairs + 1 :: 2]) * np.exp(
            1j * row * rate * frequency
        )
        x[width - 2 * pairs :: 2], x[width - 2 * pairs + 1 :: 2] = turned.real, turned.imag
        assert np.allclose(out[row], x, atol=5e-3)


def changed(path, name: str, table: np.ndarray) -> Weights:
    held = open_file(path)
    own = replace(held.tensors[name], data=table.reshape(-1).view(np.uint8))
    return Weights("x", held.metadata, {**held.tensors, name: own})


def test_a_table_says_the_experts_of_the_first_layers(path, engine_of) -> None:
    name = "blk.0.ffn_gate_tid2eid.weight"
    table = open_file(path).tensors[name].data.view(np.int32).reshape(-1, tiny.CHOSEN).copy()
    ids, usual = [5, 6, 7], engine_of().prefill([5, 6, 7]).copy()
    table[8] = (table[8] + 1) % tiny.EXPERTS
    assert np.array_equal(engine_of(changed(path, name, table)).prefill(ids), usual)
    table[6] = (table[6] + 1) % tiny.EXPERTS
    assert np.abs(engine_of(changed(path, name, table)).prefill(ids) - usual).max() > 0.01 * usual.std()
    for wrong in (-1, tiny.EXPERTS):
        table[100, 1] = wrong
        with pytest.raises(BrokenFile, match=f"`{name}` names experts beyond the {tiny.EXPERTS}"):
            engine_of(changed(path, name, table))


@pytest.mark.parametrize(
    ("name", "is_now"), [("output_norm.weight", "I32"), ("blk.0.ffn_gate_tid2eid.weight", "F32")]
)
def test_only_a_table_is_of_integers(path, tmp_path, name: str, is_now: str) -> None:
    data = bytearray(path.read_bytes())
    at = data.index(name.encode()) + len(name)
    at += 4 + 8 * int.from_bytes(data[at : at + 4], "little")  # behind the sides
    data[at : at + 4] = int(gguf.GGMLQuantizationType[is_now]).to_bytes(4, "little")
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(data)
    with pytest.raises(UnsupportedModel, match=f"`{name}` is {is_now}, which the runner has no kernel for"):
        open_file(wrong)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("attention.compress_ratios", [0, 8, 128, 4], "rows of"),
        ("attention.output_group_count", 3, "in 3 groups"),
        ("attention.indexer.key_length", 96, "width 96"),
        ("hyper_connection.count", 2, "2 streams"),
    ],
)
def test_what_the_graph_does_not_have_is_refused(path, engine_of, key: str, value, message: str) -> None:
    held = open_file(path)
    with pytest.raises((BrokenFile, UnsupportedModel), match=message):
        engine_of(Weights("x", {**held.metadata, f"deepseek4.{key}": value}, held.tensors))
