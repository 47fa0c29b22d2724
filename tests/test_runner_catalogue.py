"""Every model of the catalogue: the runner counts what the walk predicts, to the byte, or refuses it by name.

Weights are hollow (large tensors are one byte, many times over), so that programs of whole models are built in
milliseconds; nothing is executed.
"""

# mypy: disable-error-code=no-untyped-def
from __future__ import annotations

from math import prod

import numpy as np
import pytest

from modeldb import catalogue, gguf_layout, schemes
from modeldb.errors import UnsupportedModel

pytest.importorskip("numba")

from estimators import reference
from estimators.deployment import Deployment, Settings, Workload
from hwdb.device import Machine
from planner import verify, verify_counts
from runner import engine, pool, sampled, synthetic
from runner.styles import STYLES
from runner.weights import Weight, row_bytes

HOLLOW_BYTES = 1 << 16
SCHEME, CHECKPOINT, CONTEXT, SEEN = "Q4_K_M", "bf16", 544, 513


def architecture_of(model) -> str:
    try:
        return gguf_layout.graph(model)
    except UnsupportedModel:
        return ""


BY_ARCHITECTURE: dict[str, list] = {}
for _model in catalogue.load().models:
    BY_ARCHITECTURE.setdefault(architecture_of(_model), []).append(_model)


@pytest.fixture(autouse=True)
def hollow(monkeypatch):
    def tensor(self, name, fmt, shape):
        size = row_bytes(fmt, shape[0]) * prod(shape[1:])
        if not synthetic.is_matrix(name, shape) or size < HOLLOW_BYTES:
            return synthetic.tensor(name, fmt, shape, self._rng)
        return Weight(name, fmt, shape, np.broadcast_to(np.zeros(1, np.uint8), (size,)))

    monkeypatch.setattr(pool.Pool, "tensor", tensor)


def lines_of(model, seen: int = SEEN, scheme_id: str = ""):
    """The exact lines of `plan verify --quick`, of the step that has `seen` tokens cached."""
    context = max(CONTEXT, seen)
    scheme = schemes.get(scheme_id or (SCHEME if model.architecture else CHECKPOINT))
    part = sampled.part_of(model, scheme, seen)
    held = engine.load(sampled.stack(model, scheme, part), n_context=context, n_threads=1)
    try:
        found = verify_counts.sampled(sampled.Sample(part, held), seen)
    finally:
        held.close()
    machine = Machine("any")
    work, settings = Workload(seen - 1, 1), Settings(context_tokens=context, kv_type_k="f16", kv_type_v="f16")
    asked = Deployment(model, scheme, machine, reference.ENGINE, "cpu", workload=work, settings=settings)
    return verify.exact_lines(reference.counts(asked, seen), found, seen)


@pytest.mark.parametrize("architecture", sorted(set(BY_ARCHITECTURE) & set(STYLES)))
def test_the_runner_counts_what_the_walk_predicts(architecture: str) -> None:
    for model in BY_ARCHITECTURE[architecture]:
        lines = lines_of(model)
        assert len(lines) >= 9
        assert [(line.name, line.predicted.best, line.measured) for line in lines if not line.holds] == [], (
            model.id
        )


@pytest.mark.parametrize("architecture", sorted(set(BY_ARCHITECTURE) - set(STYLES)))
def test_what_the_runner_does_not_execute_is_refused_by_name(architecture: str) -> None:
    for model in BY_ARCHITECTURE[architecture]:
        with pytest.raises(UnsupportedModel, match=architecture or "llama.cpp has no architecture"):
            lines_of(model)


def test_most_of_the_catalogue_runs() -> None:
    ran = [m for a, models in BY_ARCHITECTURE.items() if a in STYLES for m in models]
    assert len(ran) == 352  # as docs/running.md and the changelog say


@pytest.mark.parametrize("name", ["deepseek-v2-lite", "llama-3.1-8b-instruct", "gemma-3-4b-it"])
def test_checkpoints_of_16_bits_are_counted_as_files_are(name: str) -> None:
    lines = lines_of(catalogue.load().resolve(name), scheme_id=CHECKPOINT)
    assert len(lines) >= 9
    assert all(line.holds for line in lines)


def test_a_token_reads_as_many_of_longcats_experts_as_have_weights_on_average() -> None:
    model = catalogue.load().get("longcat-flash-chat")
    lines = {line.name: line for line in lines_of(model)}
    assert all(line.holds for line in lines.values())
    one = 3 * 6144 * 2048 * 2  # bytes of an expert; 12 of 512 with weights and 256 without are chosen
    held = {k: lines[f"{k} weights"].measured for k in ("mixer", "dense", "head", "shared", "other")}
    cache, row = lines["cache of 513 tokens"].measured, 6144 * 2
    assert lines["a step touches"].measured == sum(held.values()) + 28 * 8 * one + cache + row


@pytest.mark.parametrize("seen", [8192, 8193, 20001])
def test_a_chunk_begins_anew_where_the_last_one_ends(seen: int) -> None:
    model = catalogue.load().get("llama-4-scout-17b-16e-instruct")
    lines = {line.name: line for line in lines_of(model, seen)}
    assert all(line.holds for line in lines.values())
    cache, per_token = lines[f"cache of {seen} tokens"].measured, 2 * 8 * 128 * 2
    assert cache == (12 * seen + 36 * ((seen - 1) % 8192 + 1)) * per_token


@pytest.mark.parametrize("seen", [2048, 2049, 20001])
@pytest.mark.parametrize(("name", "layers"), [("deepseek-v3.2", 61), ("glm-5.2", 78)])
def test_a_step_reads_the_tokens_that_an_indexer_chose_and_its_keys_of_all(
    name: str, layers: int, seen: int
) -> None:
    model = catalogue.load().get(name)
    lines = {line.name: line for line in lines_of(model, seen)}
    assert all(line.holds for line in lines.values())
    index = sum(c.index_elements for c in model.caches()) * 2
    held = lines[f"cache of {seen} tokens"].measured
    assert held == (layers * 576 * 2 + index) * seen
    few = {line.name: line for line in lines_of(model, 1)}["a step touches"].measured
    read = lines["a step touches"].measured - few
    assert read == layers * 576 * 2 * (min(seen, 2048) - 1) + index * (seen - 1)


@pytest.mark.parametrize("seen", [15, 2048, 2064, 20001])
def test_an_index_key_of_sixteen_tokens_is_kept_and_read_once(seen: int) -> None:
    model = catalogue.load().get("glm-5.3-flash")
    lines = {line.name: line for line in lines_of(model, seen)}
    assert all(line.holds for line in lines.values())
    few = {line.name: line for line in lines_of(model, 1)}
    kept = lines[f"cache of {seen} tokens"].measured - few["cache of 1 tokens"].measured
    assert kept == 11 * 2 * (512 * (seen - 1) + 128 * (seen // 16))
    read = lines["a step touches"].measured - few["a step touches"].measured
    attended = min(seen // 16, 2048 // 16) * 16 + seen % 16
    assert read == 11 * 2 * (512 * (attended - 1) + 128 * (seen // 16))


@pytest.mark.parametrize("seen", [1, 127, 128, 2047, 2052, 20001])
def test_a_step_reads_a_window_compressed_rows_and_their_keys(seen: int) -> None:
    model = catalogue.load().get("deepseek-v4-flash")
    lines = {line.name: line for line in lines_of(model, seen)}
    assert all(line.holds for line in lines.values())
    waiting = 4 * 2 * (21 * 4 * 4 * (512 + 128) + 20 * 128 * 512)
    rows = 21 * (seen // 4) * (512 + 128) + 20 * (seen // 128) * 512
    assert lines[f"cache of {seen} tokens"].measured == 2 * (43 * 512 * min(seen, 128) + rows) + waiting
