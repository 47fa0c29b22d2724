"""Statistics of errors: weights, quantiles, coverage, families, and the three ways to print them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner import rows, scores, validate
from planner.asks import Refusal
from planner.errors import UsageError
from planner.predict import Priced
from planner.scores import Score

DATA = Path(__file__).parent / "data" / "rows"
ONE = Score(
    line=2, id="a", source="s", trust="high", hardware="gpu", engine="vllm", backend="cuda", model="m",
    quant="q", metric="decode_tps", family="single-stream decode", flags=(), measured=100.0,
    predicted=110.0, low=90.0,
    high=130.0,
)  # fmt: skip


def made(error: float, source: str = "s", **changes: object) -> Score:
    predicted = 100.0 * (1 + error)
    return replace(
        ONE, predicted=predicted, low=predicted * 0.9, high=predicted * 1.1, source=source, **changes
    )  # type: ignore[arg-type]


def test_errors_are_relative_to_what_was_measured_and_signed() -> None:
    assert made(0.1).error == pytest.approx(0.1)
    assert made(-0.5).error == pytest.approx(-0.5)
    assert replace(ONE, predicted=None).error is None


def test_statistics_of_a_known_group() -> None:
    group = [made(e) for e in (-0.3, -0.1, 0.0, 0.05, 0.2)] + [
        replace(ONE, predicted=None, low=None, high=None)
    ]
    found = scores.statistics(group)
    assert (found.n, found.predicted) == (6, 5)
    assert found.share == pytest.approx(5 / 6)
    assert found.median == pytest.approx(0.1)
    assert found.p90 == pytest.approx(0.3)
    assert found.bias == pytest.approx(0.0)
    assert found.coverage == pytest.approx(2 / 5)  # 0.9 of 1.2 is above 1, 1.1 of 0.9 below


def test_nothing_predicted_is_no_error_rather_than_zero() -> None:
    found = scores.statistics([replace(ONE, predicted=None, low=None, high=None)])
    assert found.share == 0
    assert found.median is None
    assert found.coverage is None


def test_a_large_source_does_not_drown_a_small_one() -> None:
    group = [made(0.5, "large") for _ in range(100)] + [made(0.0, "small") for _ in range(4)]
    weight = dict(zip((s.source for s in group), scores.weights(group), strict=True))
    assert weight["large"] * 100 / (weight["small"] * 4) == pytest.approx(10 / 2)


def test_a_printed_number_is_known_to_half_its_last_digit() -> None:
    exact = replace(ONE, measured=4.58, predicted=4.5752, low=4.5752, high=4.5752)
    assert not exact.covered
    assert replace(exact, rounding=scores.half_digit("4.58")).covered
    assert scores.half_digit("12") == 0


@given(st.lists(st.floats(0, 10), min_size=1, max_size=30), st.floats(0.01, 1))
def test_a_quantile_is_a_value_with_that_share_at_or_below_it(values: list[float], share: float) -> None:
    found = scores.quantile(values, share)
    assert found in values
    assert sum(v <= found for v in values) >= share * len(values) - 1e-9
    assert sum(v < found for v in values) <= share * len(values) + 1e-9


@pytest.mark.parametrize(
    ("kind", "metric", "client", "users", "family"),
    [
        ("speed", "decode_tps", "static", 1, "single-stream decode"),
        ("speed", "tpot_ms", "static", 1, "single-stream decode"),
        ("speed", "decode_tps", "static", 16, "static batch and saturated throughput"),
        ("speed", "prefill_tps", "static", 1, "prefill"),
        ("speed", "ttft_ms", "static", 1, "prefill"),
        ("speed", "ttft_ms", "closed", 4, "serving TTFT"),
        ("speed", "tpot_ms", "burst", 1000, "serving TPOT"),
        ("speed", "output_throughput_tps", "burst", 1000, "static batch and saturated throughput"),
        ("serving", "ttft_ms", "closed", 8, "serving TTFT"),
        ("memory", "kv_gib", "static", 1, "memory in use"),
    ],
)
def test_families_are_those_of_the_targets(
    kind: rows.Layout, metric: str, client: str, users: int, family: str
) -> None:
    assert scores.family(kind, metric, client, users) == family
    assert family in scores.TARGETS


def test_scores_are_of_measured_figures_only() -> None:
    file = rows.read(DATA / "serving.csv")
    priced = [Priced(Refusal("not today"), {}, reason="not today") for _ in file.records]
    found = scores.score(file, priced)
    assert len(found) == 2 * len(file.records)
    assert {s.metric for s in found} == {"ttft_ms", "tpot_ms"}
    assert all(s.predicted is None and s.reason == "not today" for s in found)


def report() -> validate.Report:
    file = rows.read(DATA / "speed.csv")
    found = [
        made(e, source, engine=engine)
        for e, source, engine in [(0.1, "a", "vllm"), (-0.2, "b", "x"), (3.0, "b", "x")]
    ]
    return validate.report("rows.csv", file, [*found, made(9.0, trust="low")], ("engine", "source"), worst=2)


def test_worst_rows_come_first_whichever_way_they_err() -> None:
    assert [s.error for s in report().worst] == pytest.approx([9.0, 3.0])


def test_families_leave_out_low_trust_and_speculation() -> None:
    (family,) = report().targeted
    assert family.name == "single-stream decode"
    assert family.statistics.n == 3


def test_text_markdown_and_json_say_the_same() -> None:
    found = report()
    document = json.loads(validate.to_json(found))
    assert document["overall"]["n"] == 4
    engines = {g["name"]: g["n"] for g in document["groups"] if g["by"] == "engine"}
    assert engines == {"vllm": 2, "x": 2}
    for printed in (validate.text(found), validate.markdown(found)):
        assert "by engine" in printed
        assert "by source" in printed
        assert "8% / 25% / 97%" in printed
        assert "+900.0%" in printed
    assert validate.to_json(found) == validate.to_json(report())


def test_markdown_tables_are_rectangular() -> None:
    for block in validate.markdown(report()).split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1


def test_an_unknown_dimension_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="cannot group by `colour`"):
        validate.check_dimensions(["engine", "colour"])


def test_a_file_without_measurements_has_nothing_to_validate() -> None:
    with pytest.raises(UsageError, match="no measured figure"):
        validate.report("x.csv", rows.read(DATA / "speed.csv"), [], ("engine",))
