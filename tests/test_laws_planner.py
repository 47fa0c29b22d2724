"""Laws of an answer, whatever the numbers are."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimators import memory
from estimators.estimate import estimate
from planner import answer, candidates, machines, report_json, request, stock
from planner.flags import Flags

CARD = "rtx 4060"


def ask(**flags: object) -> request.Request:
    return request.build(Flags(**flags))  # type: ignore[arg-type]


def answering(**flags: object) -> set[tuple[str, str, str]]:
    """(model, scheme, cache type) of every candidate on one device that fits and is fast enough."""
    asked = ask(**flags)
    target = machines.resolve(asked)
    pairs = stock.build(asked)
    from planner import choice

    groups = candidates.price_all(asked, pairs, target.machine)
    found = choice.board(asked, pairs, groups)
    return {
        (
            pairs.models[found.model[i]].id,
            pairs.schemes[found.scheme[i]].id,
            groups[found.group[i]].kv_types[groups[found.group[i]].kv[found.row[i]]],
        )
        for i in np.flatnonzero(found.answers).tolist()
    }


@pytest.mark.parametrize("task", ["chat", "code", "summarize"])
def test_more_memory_never_removes_a_plan(task: str) -> None:
    sizes = ["2G", "4G", "6G", "8G", "12G", "16G", "24G", "48G"]
    plans = [answering(gpu=["rtx 4090"], vram=size, task=task) for size in sizes]
    for smaller, larger in pairwise(plans):
        assert smaller <= larger
    assert len(plans[0]) < len(plans[-1])


@pytest.mark.parametrize("ram", ["16G", "32G", "64G"])
def test_host_memory_never_removes_a_plan(ram: str) -> None:
    assert answering(gpu=[CARD]) <= answering(gpu=[CARD], ram=ram)


def test_a_longer_context_never_shrinks_a_bill_nor_adds_a_plan() -> None:
    contexts = ["2k", "4k", "8k", "16k", "32k"]
    flags = {"gpu": [CARD], "prompt": "512", "output": "300"}
    plans = [answering(context=c, **flags) for c in contexts]
    for shorter, longer in pairwise(plans):
        assert longer <= shorter
    pairs = stock.build(ask(context="2k", **flags))
    machine = machines.resolve(ask(**flags)).machine
    bytes_by_context = []
    for context in contexts:
        (group,) = candidates.price_all(ask(context=context, **flags), pairs, machine)
        bytes_by_context.append(np.asarray(group.price.device_bytes))
    for shorter, longer in pairwise(bytes_by_context):
        assert np.all(longer >= shorter - 1)


def test_ttft_never_falls_with_the_prompt() -> None:
    pairs = stock.build(ask(gpu=[CARD]))
    machine = machines.resolve(ask(gpu=[CARD])).machine
    before = None
    for prompt in (16, 64, 256, 512, 1024, 2048, 4096):
        asked = replace(ask(gpu=[CARD]), prompt=prompt, cached=0)
        (group,) = candidates.price_all(asked, pairs, machine)
        now = np.asarray(group.price.ttft_s)
        if before is not None:
            assert np.all(now >= before * (1 - 1e-9))
        before = now


def test_no_rate_beats_the_memory_it_reads() -> None:
    """Decoding reads every active weight once per token: tokens/s x bytes never exceeds the bandwidth."""
    asked = ask(gpu=[CARD])
    pairs = stock.build(asked)
    machine = machines.resolve(asked).machine
    (group,) = candidates.price_all(asked, pairs, machine)
    walk = pairs.walk.take(group.pair)
    share = walk.experts_per_token / np.maximum(walk.n_experts, 1)
    read = (
        walk.mixer_bytes + walk.dense_bytes + walk.shared_bytes + walk.head_bytes + walk.expert_bytes * share
    )
    rate = 1 / np.asarray(group.price.tpot_s)
    assert np.all(rate * read <= (machine.devices[0].bandwidth_bytes_per_s or 0) * (1 + 1e-9))


def test_lines_sum_to_totals_and_the_table_agrees_with_the_bill() -> None:
    found = answer.answer(ask(gpu=[CARD]))
    assert found.rows
    for row in found.rows:
        bill = memory.bill(answer.deployment(found.request, row, found.target.machine))
        device = bill.devices[0]
        assert sum(line.size.best for line in device.lines) == pytest.approx(device.total().best)
        # The table approximates llama.cpp's compute buffer, which the bill replays.
        assert row.device_bytes == pytest.approx(device.total().best, rel=0.03)
        assert row.capacity_bytes == pytest.approx(device.capacity_bytes, rel=1e-6)


def test_the_table_agrees_with_the_estimate_of_each_row() -> None:
    found = answer.answer(ask(gpu=["rtx 3090"], task="code"))
    for row in found.rows[:6]:
        one = estimate(answer.deployment(found.request, row, found.target.machine))
        assert row.tpot_s.best == pytest.approx(one.tpot_s.best, rel=1e-6)
        assert row.ttft_s.best == pytest.approx(one.ttft_s.best, rel=1e-6)


def test_permuting_devices_changes_nothing_for_equal_ones_and_keeps_the_models_otherwise() -> None:
    one = answer.answer(ask(gpu=["rtx 3090", "rtx 4090"], model=["qwen3-32b"]))
    other = answer.answer(ask(gpu=["rtx 4090", "rtx 3090"], model=["qwen3-32b"]))
    assert [r.model.id for r in one.rows] == [r.model.id for r in other.rows]
    pair = answer.answer(ask(gpu=["rtx 3090", "rtx 3090"], model=["qwen3-32b"]))
    same = answer.answer(ask(gpu=["2xrtx 3090"], model=["qwen3-32b"]))
    assert report_json.document(pair, 9, False)["answer"] == report_json.document(same, 9, False)["answer"]


def test_rows_hold_the_limits_they_were_asked_for() -> None:
    found = answer.answer(ask(gpu=[CARD], min_tps="25", max_ttft="400ms"))
    assert found.rows
    for row in found.rows:
        assert row.tokens_per_s.best >= 25
        assert row.ttft_s.best <= 0.4
        assert row.device_bytes <= row.capacity_bytes


def test_intervals_are_ordered() -> None:
    for row in answer.answer(ask(vram="8G")).rows:
        for quantity in (row.ttft_s, row.tpot_s, row.tokens_per_s, row.quality):
            assert quantity.low <= quantity.best <= quantity.high


def test_the_same_request_gives_the_same_bytes() -> None:
    texts = {report_json.text(answer.answer(ask(vram="12G", task="code")), 20, True) for _ in range(2)}
    assert len(texts) == 1
    json.loads(texts.pop())


def test_every_price_column_survives_taking_and_joining() -> None:
    asked = ask(gpu=[CARD], model=["qwen3-8b"])
    (group,) = candidates.price_all(asked, stock.build(asked), machines.resolve(asked).machine)
    rows = np.arange(len(group))
    joined = candidates.join_price(
        [candidates.take_price(group.price, rows[:3]), candidates.take_price(group.price, rows[3:])]
    )
    for f in fields(joined):
        assert np.array_equal(getattr(joined, f.name), getattr(group.price, f.name))


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["chat", "code", "reasoning", "offline", "rag"]),
    st.integers(min_value=256, max_value=65536),
    st.integers(min_value=1, max_value=64),
    st.sampled_from(["rtx 4060", "rtx 4090", "rx 7900 xtx", "2xrtx 3090"]),
)
def test_any_question_is_answered_or_refused(task: str, context: int, users: int, gpu: str) -> None:
    found = answer.answer(ask(task=task, context=str(context), users=users, gpu=[gpu], max_size="20B"))
    assert found.rows or found.n_candidates >= 0
    for row in found.rows:
        assert row.device_bytes <= row.capacity_bytes
