"""Sampled execution: which layers run, and how their figures add up to the model's."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from modeldb import catalogue, schemes
from modeldb.errors import UnsupportedModel
from planner import verify_counts
from runner import pool, sampled, sampled_prompt, synthetic
from runner.pool import Pool
from runner.program import LINE, Mark, Program
from runner.sampled import Kind, Part, Sample

pytest.importorskip("numba")


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("llama-3.1-8b-instruct", "Q4_K_M"),
        ("gemma-3-1b-it", "Q8_0"),
        ("qwen3-0.6b", "F16"),
        ("deepseek-v2-lite", "Q4_0"),
        ("minimax-text-01", "Q4_K_M"),
    ],
)
def test_the_kinds_share_out_every_layer_and_every_byte(name: str, scheme: str) -> None:
    model, held = catalogue.load().resolve(name), schemes.get(scheme)
    part = sampled.part_of(model, held)
    layers = sorted(i for kind in part.kinds for i in kind.layers)
    assert layers == list(range(model.n_layers)) == list(range(part.n_layers))
    stored = sum(f.n_bytes(t.shape) for t, f in schemes.assign(held, model) if t.role != "draft")
    assert part.head_bytes + sum(len(k.layers) * k.n_bytes for k in part.kinds) == stored
    chosen = part.chosen()
    assert len(set(chosen)) == len(chosen) == part.n_run
    assert chosen[-1] == model.n_layers - 1
    assert all(0 <= k.n_run_prefill <= k.n_run <= len(k.layers) for k in part.kinds)
    assert all(k.n_run for k in part.kinds if k.layers != (model.n_layers - 1,))


@pytest.mark.parametrize(
    "name", ["deepseek-v3", "qwen3-235b-a22b", "llama-3.1-405b-instruct", "gemma-3-27b-it"]
)
def test_what_stands_for_a_model_beyond_memory_is_small(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, held = catalogue.load().resolve(name), schemes.get("Q4_K_M")
    part = sampled.part_of(model, held)
    # memory that nobody touches is free
    monkeypatch.setattr(synthetic, "_repeated", lambda pattern, out: out)
    monkeypatch.setattr(pool.Pool, "__init__", remembered := Remembered(pool.Pool.__init__))
    weights = sampled.stack(model, held, part)
    made = remembered.made[0].made
    assert made
    assert sum(made.values()) <= 1.8e9
    assert weights.weight_bytes > 1.3 * sum(made.values())
    assert part.n_experts in (0, 16, 32, 64)
    assert part.n_run > len(part.kinds)


class Remembered:
    """A constructor that keeps what it made."""

    def __init__(self, own: Any) -> None:
        self.own, self.made = own, []

    def __get__(self, instance: Any, owner: Any) -> Any:
        def init(*arguments: Any) -> None:
            self.own(instance, *arguments)
            self.made.append(instance)

        return init


def test_tensors_share_bytes_once_a_pool_is_full_and_large_ones_are_one_piece_over_and_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool, "POOL_BYTES", 20 << 20)
    monkeypatch.setattr(pool, "PIECE_BYTES", 8 << 20)
    made = Pool(tied=False)
    q, k, v = (made.tensor(f"blk.0.attn_{n}.weight", "Q8_0", (1024, 6144)) for n in "qkv")
    others = [made.tensor(f"blk.1.attn_{n}.weight", "Q8_0", (1024, 6144)) for n in "qkv"]
    assert len({t.address for t in (q, k, v)}) == 3
    assert [t.address for t in others] == [q.address, k.address, v.address]
    head = made.tensor("output.weight", "Q8_0", (1024, 12288))
    assert head.data.nbytes == 12288 * 1024 * 34 // 32  # counted whole, though its pieces share bytes
    assert [(p.rows, p.address) for p in head.pieces()] == [(6144, head.address)] * 2
    assert head.address in (q.address, k.address, v.address)
    assert q.pieces() == [q]


def test_experts_of_a_layer_share_nothing_and_are_never_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "EXPERT_BYTES", 1 << 20)
    monkeypatch.setattr(pool, "PIECE_BYTES", 1 << 20)
    made = Pool(tied=False)
    layers = [[made.tensor(f"blk.{i}.ffn_{n}_exps.weight", "Q8_0", (256, 512, 16)) for n in ("gate", "up", "down")]
              for i in range(2)]  # fmt: skip
    assert len({t.address for t in layers[0]}) == 3
    assert [t.address for t in layers[1]] == [t.address for t in layers[0]]
    assert all(t.data.ndim == 1 for t in layers[0])


def test_a_matrix_in_pieces_multiplies_as_one() -> None:
    """The same rows, once flat and once as pieces, through the programs of one token and of many."""
    from runner import engine as engines
    from runner.weights import Weights

    model = catalogue.load().resolve("smollm2-135m-instruct")
    whole = synthetic.weights(model, schemes.get("Q8_0"))
    metadata = {**whole.metadata, "llama.block_count": 2}
    tensors = {n: t for n, t in whole.tensors.items() if not n.startswith("blk.") or n.split(".")[1] in "01"}
    pieces = {n: replace(t, data=t.data.reshape(3, -1)) if t.rows % 3 == 0 and len(t.shape) == 2 else t
              for n, t in tensors.items()}  # fmt: skip
    assert any(len(t.pieces()) == 3 for t in pieces.values())
    logits = []
    for held in (tensors, pieces):
        engine = engines.load(Weights("test", metadata, held), n_context=64, n_threads=2)
        logits += [engine.prefill(np.arange(20)).copy(), engine.decode(7).copy()]
        engine.close()
    assert np.array_equal(logits[0], logits[2])
    assert np.array_equal(logits[1], logits[3])


def test_a_step_touches_several_times_what_a_cache_holds_or_the_whole_model() -> None:
    for name in ("llama-3.2-1b-instruct", "qwen3-30b-a3b", "gemma-3-1b-it"):
        model, held = catalogue.load().resolve(name), schemes.get("Q4_K_M")
        part = sampled.part_of(model, held)
        per_token, of_experts = sampled._experts(model)
        touched = 0
        for tensor, fmt, shape in sampled.tensors_of(model, held):
            if tensor.startswith("blk.") and int(tensor.split(".")[1]) in part.chosen():
                touched += sampled._bytes(fmt, shape) * (per_token / of_experts if "_exps." in tensor else 1)
        assert touched > 6 * (32 << 20) or part.n_run == part.n_layers, name


def test_figures_add_up_by_the_number_of_layers() -> None:
    kinds = (Kind(tuple(range(10)), 100, 3, 1), Kind((10,), 50, 1, 1), Kind((11, 12, 13), 70, 2, 2))
    part = Part(kinds, 14, 0, 0, 7)
    assert part.chosen() == [0, 1, 2, 10, 11, 12, 13]
    sample = Sample(part, None)  # type: ignore[arg-type]
    of_layer = [10.0, 10.0, 10.0, 20.0, 30.0, 30.0, 30.0]
    assert sample.whole(lambda i: of_layer[i], 5.0) == 5 + 10 * 10 + 20 + 3 * 30
    program = Program(
        marks=[Mark(3 + 2 * i, 0, 0.0) for i in range(8)], rows=[(0, (), 1)] * 20, names=["x"] * 20
    )
    found = sample.stretches(program, lambda k: k.n_run)
    assert [(s.rows, s.times) for s in found] == [
        ((0, 3), 1.0), ((3, 9), 10 / 3), ((9, 11), 1.0), ((11, 15), 2 / 2), ((15, 20), 1.0)
    ]  # fmt: skip
    short = sample.stretches(program, lambda k: k.n_run_prefill)
    assert [(s.rows, s.times) for s in short][1] == ((3, 5), 10.0)


def test_only_the_last_layer_is_of_its_kind() -> None:
    kinds = (Kind((0, 1, 2), 100, 2, 2), Kind((3,), 120, 0, 0))
    sample = Sample(Part(kinds, 4, 0, 0, 7), None)  # type: ignore[arg-type]
    assert sample.part.chosen() == [0, 1, 3]
    assert sample.whole(lambda i: [1.0, 1.0, 9.0][i]) == 3 + 9
    program = Program(marks=[Mark(i, 0, 0.0) for i in range(4)], rows=[(0, (), 1)] * 5, names=["x"] * 5)
    found = sample.stretches(program, lambda k: k.n_run)
    assert [(s.rows, s.times) for s in found] == [((0, 0), 1.0), ((0, 2), 1.5), ((2, 5), 1.0)]


def test_experts_are_timed_with_the_tokens_that_each_would_get() -> None:
    program = Program(
        names=["norm", "matmul", "route", "pack", "experts", "gate", "experts", "matmul", "combine"]
    )
    found = sampled._split(program, (0, 9), 4.0, True)
    assert [(s.rows, s.experts) for s in found] == [((0, 3), False), ((3, 7), True), ((7, 9), False)]
    assert sampled._split(program, (0, 9), 4.0, False) == [sampled.Stretch((0, 9), 4.0)]
    assert Part((), 1, 16, 256, 0).share_of_experts == 1 / 16


def test_a_sample_counts_what_the_whole_model_has_and_times_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampled, "TARGET_BYTES", 20 << 20)
    model, held = catalogue.load().resolve("smollm2-135m-instruct"), schemes.get("Q8_0")
    sample = sampled.load(model, held, 128, n_batch=32, n_threads=1)
    try:
        assert sample.engine.hyper.n_layers == sample.part.n_run < sample.part.n_layers
        stored = sum(f.n_bytes(t.shape) for t, f in schemes.assign(held, model))
        counts = verify_counts.sampled(sample, 100)
        assert counts["weights"] == stored == sum(counts["classes"].values())
        assert counts["params"] == sum(t.n_elements for t in model.tensors())
        assert np.any(sample.engine.cache.layers[0].keys)
        step = sampled.decode(sample, 100, seconds=0.1, least=3, most=3)
        prompt = sampled_prompt.prefill(sample, 96, seconds=5.0, most=2)
        assert (step.n_rounds, prompt.n_rounds) == (3, 2)
        assert 0 < step.seconds < prompt.seconds
        sample.engine.close()
        clock = Clock()
        monkeypatch.setattr(sampled, "time", clock)
        sample.engine.crew = Slow(clock)
        sample.apart_s = 0.0
        others = sum(s.times for s in sample.stretches(sample.engine._one, lambda k: k.n_run))
        assert sampled.decode_once(sample, 100) == pytest.approx(others * 0.01)
    finally:
        sample.close()


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s


class Slow:
    """A crew whose every run takes ten milliseconds."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def run(self, *_: object) -> None:
        self.clock.now_s += 0.01

    def close(self) -> None:
        pass


def test_a_mixture_with_a_part_of_its_experts_runs_steps_and_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    from modeldb.layers import Attention, Block, Experts
    from modeldb.model import Model
    from runner import engine as engines
    from runner import meter

    block = Block((Attention(4, 2, 32, 32, qk_norm="head"),), (Experts(32, 2, 64),))
    model = Model(
        id="moe", name="moe", hf_id="", family="qwen3", base="", architecture="qwen3moe", model_type="qwen3_moe",
        modality="text", hidden_size=128, vocab_size=256, tied_embeddings=False, max_context=512,
        blocks=(block,) * 6, rotary_dim=32,
    )  # fmt: skip
    held = schemes.get("Q8_0")
    monkeypatch.setattr(sampled, "EXPERT_BYTES", 1 << 19)
    sample = sampled.load(model, held, 256, n_batch=64, n_threads=2)
    try:
        assert sample.part.n_experts == 16 < 32
        assert sample.engine.hyper.n_experts == 16
        assert sampled.decode_once(sample, 10, 3) > 0
        assert sampled_prompt.prefill_once(sample, 64) > 0
        counts = verify_counts.sampled(sample, 10)
        assert counts["params"] == sum(t.n_elements for t in model.tensors())
        assert counts["weights"] == sum(f.n_bytes(t.shape) for t, f in schemes.assign(held, model))
        whole = engines.load(synthetic.weights(model, held), n_context=256, n_batch=64, n_threads=2)
        whole._program("last")
        assert counts["step"] == meter.step_counts(whole, 10)
        assert sample.activation_bytes == pytest.approx(whole.room.n_bytes, abs=8 * 64 * 32)
        whole.close()
        stretches = sample.stretches(sample.engine._program("last")[0], lambda k: k.n_run_prefill, apart=True)
        assert any(s.experts for s in stretches)
    finally:
        sample.close()


def test_formats_without_a_kernel_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match="no kernel for"):
        sampled.part_of(catalogue.load().resolve("qwen3-0.6b"), schemes.get("IQ2_XXS"))


def test_matrices_by_a_share_of_their_rows_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every matrix of many rows counts as often as it has rows, and operations that count alike run together."""
    model = catalogue.load().resolve("smollm2-135m-instruct")
    monkeypatch.setattr(sampled, "TARGET_BYTES", 10 << 20)
    monkeypatch.setattr(sampled_prompt, "LEAST_ROWS", 64)
    sample = sampled.load(model, schemes.get("Q8_0"), 128, n_batch=32, n_threads=1)
    try:
        whole, thin = sampled_prompt.thinned(sample, 1.0), sampled_prompt.thinned(sample, 1 / 8)
        assert set(whole.times) == {1.0}
        many = thin.program.names.index("last")
        for i, name in enumerate(thin.program.names):
            rows = whole.program.tape[i, sampled_prompt.ROWS_SLOT]
            if name == "matmul" and i < many:
                kept = thin.program.tape[i, sampled_prompt.ROWS_SLOT]
                assert kept * thin.times[i] == pytest.approx(rows)
                assert kept == max(64, -(-rows // 8 // 64) * 64)
            else:
                assert thin.times[i] == 1.0
        stretch = sampled.Stretch((0, len(thin.times)), 2.0)
        parts = sampled_prompt._by_times(stretch, thin.times)
        assert [r for p in parts for r in range(*p.rows)] == list(range(len(thin.times)))
        assert all(p.times == 2.0 * thin.times[r] for p in parts for r in range(*p.rows))
        assert sampled_prompt.prefill_once(sample, 32, thin=thin) > 0
        pieces = []  # taken of a matrix with fewer rows: fewer
        largest = int(np.argmax(thin.times))
        for program in (whole.program, thin.program):
            sample.engine.crew.run(program, 32, 0, (largest, largest + 1))
            pieces.append(int(program.counters[largest * LINE]))
        assert 0 < pieces[1] < pieces[0]
    finally:
        sample.close()


@pytest.mark.parametrize("window", [0, 3, 40, 100])
def test_pairs_of_tokens_are_counted_as_attention_sees_them(window: int) -> None:
    seen = sum(1 for i in range(50, 70) for j in range(i + 1) if not window or i - j < window)
    assert sampled_prompt._seen(window, 50, 20) == seen


def test_a_prompt_of_many_batches_adds_what_later_ones_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """With attention of a fixed time per pair, a prompt's batches cost what their pairs do."""
    clock = Clock()
    monkeypatch.setattr(sampled_prompt, "time", clock)

    class Fixed:
        def run(self, program: Program, n_tokens: int, position: int, rows: tuple[int, int]) -> None:
            clock.now_s += 1e-6 * sampled_prompt._seen(0, position, n_tokens)

    hyper = SimpleNamespace(windows=(0, 0), turns_near=bool, n_heads=96)
    engine = SimpleNamespace(_program=lambda _: (program, None), hyper=hyper, n_batch=64, crew=Fixed())
    program = Program(names=["norm", "attention", "norm", "attention", "head"], marks=[Mark(0, 0, 0.0), Mark(2, 0, 0.0),
                      Mark(4, 0, 0.0)])  # fmt: skip
    kinds = (Kind((0, 1, 2), 1, 1, 1), Kind((3,), 1, 0, 0))
    sample = Sample(Part(kinds, 4, 0, 0, 0), engine)  # type: ignore[arg-type]
    later = sum(range(1, 4001)) - 62 * sum(range(1, 65)) - sum(range(1, 33))
    assert sampled_prompt._behind_s(sample, 4000, 64) == pytest.approx(4 * later * 1e-6)
