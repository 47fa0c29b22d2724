"""Laws of waiting: more users never answer sooner, one user waits for nobody."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimators.serving import burst_first_token_s, closed_loop_first_token_s


def test_one_user_waits_for_its_own_prefill_only() -> None:
    assert closed_loop_first_token_s(0.2, 1, 10) == pytest.approx(0.2)
    assert burst_first_token_s(0.2, 5.0, 1, 256) == pytest.approx(0.2)


def test_users_who_send_one_prompt_are_a_burst() -> None:
    assert closed_loop_first_token_s(0.2, 9, 1) == pytest.approx(0.2 * 5)
    assert burst_first_token_s(0.2, 3.0, 9, 9) == pytest.approx(0.2 * 5)


def test_requests_beyond_those_that_run_wait_for_answers() -> None:
    # 300 requests, 100 at once: three waves, the mean request waits one answer of 10 s
    assert burst_first_token_s(0.0, 10.0, 300, 100) == pytest.approx(10.0)


@given(st.floats(0.001, 10), st.integers(1, 5000), st.integers(1, 100))
def test_more_users_never_answer_sooner_and_patience_spreads_the_burst(
    prefill_s: float, users: int, prompts: int
) -> None:
    here = closed_loop_first_token_s(prefill_s, users, prompts)
    assert here >= prefill_s
    assert closed_loop_first_token_s(prefill_s, users + 1, prompts) >= here
    assert closed_loop_first_token_s(prefill_s, users, prompts + 1) <= here
