"""The accuracy pages: what errors are made of, memory constants fitted anew, one vote per device, what is said of the
unmeasured."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hwdb import catalogue as devices
from hwdb.device import Machine
from planner import measured
from planner.machines import Target
from planner.scores import Score

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # last: benchmarks has a runner too

import accuracy_crossed as crossed
import accuracy_pages as pages
import accuracy_parts as parts

SCORE = Score(
    1, "a", "s", "high", "gpu", "llama.cpp", "CUDA", "m", "q", "gpu_mem_gb", "memory in use", (), 10.0, 10.0, 9.0, 11.0
)  # fmt: skip


def rows_with(offsets: dict[str, float], per_group: int = 40, noise: float = 0.05) -> list[parts.Row]:
    """Errors that are the device's offset and noise; models and sources are dealt at random."""
    rng = np.random.default_rng(0)
    return [
        parts.Row(
            SCORE, offset + float(rng.normal(0, noise)), 1.0, device, f"m{rng.integers(5)}",
            f"{device}|{rng.integers(3)}", f"s{rng.integers(3)}", f"{device}{i}",
        )
        for device, offset in offsets.items()
        for i in range(per_group)
    ]  # fmt: skip


def test_an_error_that_goes_with_the_device_is_found_there() -> None:
    _, found = parts.shares(rows_with({"a": 0.5, "b": -0.4, "c": 0.1}))
    assert found["device"] > 0.9
    assert found["model"] + found["source"] < 0.03
    assert sum(found.values()) == pytest.approx(1.0)


def test_chance_goes_with_nothing() -> None:
    _, found = parts.shares(rows_with({f"device {i}": 0.0 for i in range(30)}, per_group=4))
    assert found["not explained by these"] > 0.9


def test_repeats_measure_the_noise_between_them() -> None:
    rng = np.random.default_rng(1)
    members = [
        replace(
            row, configuration=f"c{i // 4}", score=replace(SCORE, measured=float(np.exp(rng.normal(0, 0.2))))
        )
        for i, row in enumerate(rows_with({"a": 0.0}, per_group=400))
    ]
    n, variance, ours = parts.repeats(members, lambda row: row.configuration)
    assert n == 400
    assert np.sqrt(variance) == pytest.approx(0.2, rel=0.1)
    assert np.sqrt(ours) == pytest.approx(0.05, rel=0.2)
    assert parts.repeats(members[:1], lambda row: row.configuration)[0] == 0


def test_memory_constants_are_fitted_without_the_row_s_own_model() -> None:
    others = [replace(SCORE, line=i, model=f"m{i}", measured=12.0) for i in range(2, 12)]
    own = replace(SCORE, measured=50.0)
    found = {s.line: s for s in crossed.memory([own, *others])}
    assert found[1].predicted == pytest.approx(12.0)  # what the others took more, not what it took itself
    assert found[1].low < 12.0 < found[1].high < 50.0


def test_sums_over_tensors_have_no_constant_to_fit() -> None:
    shipped = [replace(SCORE, line=i, model=f"m{i}", metric="weights_gib", measured=12.0) for i in range(12)]
    assert {s.predicted for s in crossed.memory(shipped)} == {10.0}


def test_each_device_has_one_vote() -> None:
    many = [replace(SCORE, hardware="often", predicted=20.0) for _ in range(100)]
    few = [replace(SCORE, hardware=f"gpu {i}", predicted=10.1) for i in range(9)]
    table = pages.votes({"hardware": many + few})
    assert "| memory in use | 10 of hardware | 1.0% |" in table


def test_groups_are_dealt_whole_and_evenly() -> None:
    fold_of = crossed.dealt(["a"] * 10 + ["b"] * 6 + ["c"] * 5, 2)
    assert fold_of["b"] == fold_of["c"] != fold_of["a"]


class Group:
    """What `planner.measured` reads of a group of candidates."""

    def __init__(self, machine: Machine, engine: str, backend: str) -> None:
        self.machine, self.engine, self.backend = machine, engine, backend


def told(*names: str) -> tuple[str, ...]:
    machines = tuple(Machine(n, (devices.load().resolve(n),)) for n in names)
    target = Target(machines, 0, "here")
    return measured.sentences(target, [Group(machines[0], "llama.cpp", "cuda")])  # type: ignore[list-item]


def test_a_device_never_measured_says_so_once_per_engine() -> None:
    assert told("rtx 4090") == ()
    (words,) = told("rtx 4060")
    assert "RTX 4060 was never measured" in words
    assert "relatives" in words


def test_a_class_says_how_many_of_its_devices_were_measured() -> None:
    (words,) = told("rtx 4090", "rtx 4060")
    assert words.startswith("1 of 2 such devices")
