"""The interval of a class: between its members' and 90% of their mixture."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner import mixture

WIDTH = st.floats(0.01, 2.0)
MEMBERS = st.lists(
    st.tuples(st.floats(-5, 5), WIDTH, WIDTH).map(
        lambda x: tuple(map(math.exp, (x[0] - x[1], x[0], x[0] + x[2])))
    ),
    min_size=1,
    max_size=8,
)


def test_one_member_keeps_its_interval() -> None:
    assert mixture.interval([(1.0, 2.0, 5.0)]) == (1.0, 5.0)


def test_equal_members_keep_their_interval() -> None:
    assert mixture.interval([(1.0, 2.0, 5.0)] * 3) == pytest.approx((1.0, 5.0), rel=1e-3)


@given(MEMBERS)
def test_the_mixture_lies_within_its_members(members: list[tuple[float, float, float]]) -> None:
    low, high = mixture.interval(members)
    assert min(m[0] for m in members) * 0.999 <= low <= high <= max(m[2] for m in members) * 1.001


def test_a_lone_extreme_counts_by_its_vote() -> None:
    many = [(9.0, 10.0, 11.0)] * 30 + [(0.9, 1.0, 1.1)]
    low, high = mixture.interval(many)
    assert 8.0 < low < 9.5
    assert 10.5 < high < 11.5


@given(MEMBERS, st.floats(0.1, 10.0))
def test_the_unit_does_not_matter(members: list[tuple[float, float, float]], factor: float) -> None:
    scaled = [(a * factor, b * factor, c * factor) for a, b, c in members]
    assert mixture.interval(scaled) == pytest.approx(
        [x * factor for x in mixture.interval(members)], rel=1e-6
    )
