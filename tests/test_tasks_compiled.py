"""Tasks are data: the compiled file equals the source, and every task makes sense."""

from __future__ import annotations

import pytest

from planner import request, tasks
from planner.errors import UnknownName
from planner.flags import Flags


def test_the_compiled_tasks_equal_their_source() -> None:
    assert (tasks.DATA / "tasks.json").read_text(encoding="utf-8") == tasks.compiled()


@pytest.mark.parametrize("name", list(tasks.load()))
def test_a_task_fits_its_own_context_and_weighs_to_one(name: str) -> None:
    task = tasks.get(name)
    assert task.cached + task.prompt + task.output <= task.context
    assert sum(weight for _, weight in task.quality) == pytest.approx(1)
    assert request.build(Flags(task=name)).context == task.context


def test_conversation_needs_reading_speed() -> None:
    assert tasks.get("chat").min_tps >= 10


def test_an_unknown_task_lists_the_known() -> None:
    with pytest.raises(UnknownName) as caught:
        tasks.get("knitting")
    assert "chat" in caught.value.hint


def test_flags_override_a_task() -> None:
    asked = request.build(
        Flags(task="chat", context="4k", prompt="1000", output="50", min_tps="3", max_ttft="9s", users=4)
    )
    assert (asked.context, asked.prompt, asked.output, asked.min_tps, asked.max_ttft_s, asked.users) == (
        4096, 1000, 50, 3.0, 9.0, 4,
    )  # fmt: skip


def test_a_short_context_shortens_the_conversation_first() -> None:
    asked = request.build(Flags(task="code", context="2048"))
    assert asked.cached < 5
    assert asked.cached + asked.prompt + asked.output <= 2048


def test_gpus_are_counted() -> None:
    assert request.build(Flags(gpu=["2x3090", "rtx 4090"])).gpus == ((2, "3090"), (1, "rtx 4090"))
    assert request.build(Flags(gpu=["7900xtx"])).gpus == ((1, "7900xtx"),)
