"""The laws of a user's own calibration: shrinkage, physics, undoing, never widening."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimators import efficiency, formats
from estimators.deployment import Deployment, Placement, Settings, Workload
from estimators.estimate import estimate, price, table_of
from estimators.personal import Corrections, Residual, Target, correction
from hwdb import catalogue as devices
from hwdb.device import Machine
from modeldb import catalogue as models
from modeldb import schemes

CARD = devices.load().resolve("rtx 3060")
GROUP = (CARD.id, 1, "llama.cpp", "cuda")
ratios = st.floats(-1.5, 1.5)
noises = st.floats(0, 0.5)
ends = st.tuples(st.floats(1.02, 4), st.floats(0.25, 0.98))


def deployment(model: str = "qwen3-8b", users: int = 1, **placed: int) -> Deployment:
    return Deployment(
        models.load().resolve(model), schemes.get("Q4_K_M"), Machine("test", (CARD,), None, 64 << 30),
        "llama.cpp", "cuda", Placement(**placed), Workload(512, 128, 0, users), Settings(year=2026.0),
    )  # fmt: skip


def row(ratio: float, phase: str = "decode", **other: object) -> Residual:
    return replace(Residual(*GROUP, phase, ratio, date="2026-01-02"), **other)  # type: ignore[arg-type]


def mine(*rows: Residual) -> Corrections:
    return Corrections(rows)


@given(ratios, ends)
def test_one_row_moves_part_of_the_way_and_five_that_agree_nearly_all_of_it(
    ratio: float, interval: tuple[float, float]
) -> None:
    slow, fast = interval
    one = math.log(correction([row(ratio)], slow, fast).factor)
    five = math.log(correction([row(ratio, configuration=str(i)) for i in range(5)], slow, fast).factor)
    assert abs(one) <= abs(five) + 1e-12 <= abs(ratio) + 1e-9
    if slow / fast > 1.2 and abs(ratio) > 0.01:
        assert 0.3 < one / ratio < 0.7
        assert five / ratio > 0.75


@given(st.lists(st.tuples(ratios, noises, st.sampled_from("abc")), min_size=1, max_size=8), ends)
def test_more_rows_never_widen(rows: list[tuple[float, float, str]], interval: tuple[float, float]) -> None:
    slow, fast = interval
    residuals = [row(r, noise=n, configuration=c) for r, n, c in rows]
    width = math.log(slow / fast)
    for count in range(1, len(residuals) + 1):
        found = correction(residuals[:count], slow, fast)
        assert math.log(found.slow / found.fast) <= width + 1e-9
        width = math.log(found.slow / found.fast)
        assert found.fast <= found.factor <= found.slow


@given(noises, noises)
def test_noisy_rows_move_less(a: float, b: float) -> None:
    quiet, loud = sorted((a, b))
    factors = [correction([row(0.4, noise=n)], 1.3, 0.8).factor for n in (quiet, loud)]
    assert factors[0] >= factors[1] - 1e-12


def test_repeats_of_one_configuration_say_less_than_as_many_configurations() -> None:
    same = correction([row(0.3, configuration="a")] * 5, 1.3, 0.8)
    apart = correction([row(0.3, configuration=str(i)) for i in range(5)], 1.3, 0.8)
    assert same.factor < apart.factor
    assert same.slow / same.fast > apart.slow / apart.fast


def test_what_was_measured_itself_is_learnt_nearly_whole_and_its_kin_in_part() -> None:
    seen = row(0.4, "prefill", format="k4", n_params=8e9, size=512.0)
    targets = [
        Target("k4", 8e9, 512.0), Target("k4", 8e9, 8192.0), Target("k4", 3e9, 512.0), Target("q8", 8e9, 512.0),
    ]  # fmt: skip
    found = [correction([seen], 1.5, 0.6, target) for target in targets]
    moved = [math.log(f.factor) / 0.4 for f in found]
    assert moved == sorted(moved, reverse=True)
    assert len(set(moved)) == 4
    assert moved[0] > 0.94
    assert moved[3] == pytest.approx(math.log(correction([row(0.4, "prefill")], 1.5, 0.6).factor) / 0.4)
    widths = [f.slow / f.fast for f in found]
    assert widths == sorted(widths)


def test_rows_of_another_format_do_not_undo_a_formats_own() -> None:
    slow = row(0.5, "prefill", format="k4", n_params=8e9, size=512.0, configuration="a")
    fast = [
        row(-0.5, "prefill", format=f, n_params=8e9, size=512.0, configuration=f) for f in ("q8", "f16", "k6")
    ]
    found = correction([slow, *fast], 2.0, 0.5, slow.target).factor
    assert math.log(found) > 0.4


def test_a_table_is_corrected_row_by_row_for_what_it_holds() -> None:
    cards = [replace(deployment(), scheme=schemes.get(q)) for q in ("Q4_K_M", "Q8_0")]
    walked = table_of(cards[0])
    kind = formats.CLASSES[formats.class_index(cards[0].scheme)]
    seen = row(0.4, "decode", format=kind, n_params=float(np.squeeze(walked.walk.total_params)), size=1.0)
    factors = [estimate(d, mine(seen)).tpot_s.best / estimate(d).tpot_s.best for d in cards]
    assert factors[0] > factors[1] > 1.0
    for d, factor in zip(cards, factors, strict=True):
        t = table_of(d)
        assert float(np.squeeze(price(t, mine(seen)).tpot_s / price(t).tpot_s)) == pytest.approx(factor)


def test_measuring_the_prediction_changes_nothing_but_narrows() -> None:
    before = estimate(deployment())
    rows = [row(0.0, phase, configuration=str(i)) for i in range(3) for phase in ("decode", "prefill")]
    after = estimate(deployment(), mine(*rows))
    for name in ("ttft_s", "tpot_s", "decode_tokens_per_s", "prefill_tokens_per_s"):
        old, new = getattr(before, name), getattr(after, name)
        assert new.best == pytest.approx(old.best, rel=1e-12)
        assert old.low <= new.low <= new.best <= new.high <= old.high
        assert new.high / new.low < old.high / old.low


def test_the_estimate_says_where_it_comes_from() -> None:
    found = estimate(deployment(), mine(row(0.2), row(0.1, configuration="b")))
    assert found.tpot_s.note == "calibrated on your measurements of 2026-01-02 (2 rows)"
    assert any("each token calibrated on your measurements" in note for note in found.notes)
    assert not any("first token" in note for note in found.notes)
    total = sum(term.seconds for term in found.decode_terms)
    assert total == pytest.approx(found.tpot_s.best, rel=1e-9)


@settings(deadline=None, max_examples=25)
@given(st.floats(-3, 3), st.integers(1, 30))
def test_no_correction_beats_the_floor(ratio: float, count: int) -> None:
    rows = [row(ratio, phase, configuration=str(i)) for i in range(count) for phase in ("decode", "prefill")]
    found = estimate(deployment(), mine(*rows))
    assert found.floor_tpot_s > 0
    for q, floor in ((found.tpot_s, found.floor_tpot_s), (found.ttft_s, found.floor_ttft_s)):
        assert floor <= q.low * (1 + 1e-9)
        assert q.low <= q.best <= q.high


@pytest.mark.parametrize("users", [1, 4])
def test_one_deployment_and_a_table_are_corrected_alike(users: int) -> None:
    rows = mine(row(0.3, "decode"), row(-0.2, "prefill"), row(0.5, "batch"))
    one = estimate(deployment(users=users), rows)
    many = price(table_of(deployment(users=users)), rows)
    for name, q in (("ttft", one.ttft_s), ("tpot", one.tpot_s)):
        got = [float(np.squeeze(getattr(many, f"{name}{end}_s"))) for end in ("_low", "", "_high")]
        assert got == pytest.approx([q.low, q.best, q.high], rel=1e-9)
    assert float(np.squeeze(many.decode_tokens_per_s)) == pytest.approx(users / one.tpot_s.best)


def test_only_what_was_measured_is_corrected() -> None:
    other = [
        row(0.5, device="geforce-rtx-3070"), row(0.5, n_devices=2), row(0.5, engine="ollama"),
        row(0.5, backend="vulkan"), row(0.5, "batch"),
    ]  # fmt: skip
    assert estimate(deployment(), mine(*other)) == estimate(deployment())
    first = estimate(deployment(), mine(row(0.5, "prefill")))
    assert first.tpot_s == estimate(deployment()).tpot_s
    assert first.ttft_s.best > estimate(deployment()).ttft_s.best


def test_what_runs_partly_on_the_host_is_left_alone() -> None:
    split = deployment(n_gpu_layers=20).with_(
        machine=Machine("test", (CARD,), devices.load().resolve("amd-ryzen-5-7600"), 64 << 30)
    )
    assert estimate(split, mine(row(0.5), row(0.5, "prefill"))) == estimate(split)


def test_the_interval_shrunk_is_that_of_the_prediction() -> None:
    before, after = estimate(deployment()), estimate(deployment(), mine(row(0.3)))
    q = before.tpot_s
    found = correction([row(0.3)], q.high / q.best, q.low / q.best)
    assert after.tpot_s.best == pytest.approx(q.best * found.factor)
    assert after.tpot_s.high == pytest.approx(q.best * found.slow)
    assert efficiency.load().intervals  # the ends come from the package's calibration
