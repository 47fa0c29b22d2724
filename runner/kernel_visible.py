"""What attention of one token and of many share: which positions a token sees, and soft caps."""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def,var-annotated"

from __future__ import annotations

from runner.ir import exp
from runner.kernel_ops import ONE, TWO, ZERO
from runner.kernel_tools import helper


@helper
def cap_score(s, cap):
    return cap * (ONE - TWO / (ONE + exp(TWO * s / cap))) if cap > ZERO else s


@helper
def first_visible(position, window, chunked):
    """The first position that a token at `position` may attend to."""
    if window == 0:
        return 0
    return position // window * window if chunked != 0 else max(0, position - window + 1)
