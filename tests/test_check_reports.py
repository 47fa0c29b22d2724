"""Findings: three verdicts, exit codes, intervals at another confidence, five reports."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimators.quantity import Quantity
from planner import check_reports
from planner.check import Finding, Outcome, at_least, at_most, narrowed

HOLDS = Finding("a", "fits", "holds", "fits", 3, 5)
FAILS = Finding("a|b", "max_ttft", "violated", "9 s, wanted at most 2 s", 7, 3, 9.0, 8.0, 10.0, 2.0)
OPEN = Finding("c,d", "min_tps", "undecided", "100%: a\nb", 9, 3, 10.0, 8.0, 12.0, 10.0)


@pytest.mark.parametrize(
    ("findings", "code"),
    [((HOLDS,), 0), ((HOLDS, OPEN), 3), ((HOLDS, OPEN, FAILS), 1), ((FAILS,), 1)],
)
def test_exit_code_is_the_worst_verdict(findings: tuple[Finding, ...], code: int) -> None:
    assert Outcome("plan.yaml", findings).exit_code == code


@given(st.floats(1e-3, 1e3), st.floats(1, 5), st.floats(1, 5), st.floats(0, 0.99), st.floats(1e-3, 1e3))
def test_more_confidence_never_decides_more(
    best: float, down: float, up: float, confidence: float, limit: float
) -> None:
    quantity = Quantity(best / down, best, best * up)
    wide, narrow = narrowed(quantity, 0.99), narrowed(quantity, confidence)
    assert wide.low <= narrow.low <= best <= narrow.high <= wide.high
    for judge in (at_least, at_most):
        if judge(wide, limit) != "undecided":
            assert judge(narrow, limit) == judge(wide, limit)


def test_the_stated_confidence_is_the_interval_itself_and_zero_is_the_best() -> None:
    quantity = Quantity(8.0, 10.0, 15.0)
    assert narrowed(quantity, 0.9).low == pytest.approx(8.0)
    assert narrowed(quantity, 0.9).high == pytest.approx(15.0)
    assert narrowed(quantity, 0.0).low == pytest.approx(10.0)


def test_reports_carry_every_finding() -> None:
    outcome = Outcome("dir/plan.yaml", (HOLDS, FAILS, OPEN))
    assert "FAIL" in check_reports.text(outcome)
    assert "1 hold, 1 violated, 1 undecided" in check_reports.text(outcome)
    document = json.loads(check_reports.as_json(outcome))
    assert [f["verdict"] for f in document["findings"]] == ["holds", "violated", "undecided"]
    assert document["exit_code"] == 1
    assert "a\\|b" in check_reports.markdown(outcome)
    assert "\na\nb" not in check_reports.markdown(outcome)


def test_junit_counts_failures_and_errors() -> None:
    suite = ElementTree.fromstring(
        check_reports.junit(Outcome("plan.yaml", (HOLDS, FAILS, OPEN))).split("\n", 1)[1]
    )
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    assert [len(case) for case in suite] == [0, 1, 1]


def test_github_annotations_escape_what_would_break_them() -> None:
    lines = check_reports.github(Outcome("plan.yaml", (HOLDS, FAILS, OPEN))).splitlines()
    assert (
        lines[0]
        == "::error file=plan.yaml,line=7,col=3,title=a|b%3A max_ttft violated::9 s, wanted at most 2 s"
    )
    assert "%0A" in lines[1]
    assert "100%25" in lines[1]
    assert "title=c%2Cd" in lines[1]
