"""What attention of one token and of many share: which positions a token sees, soft caps, and ALiBi."""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def,var-annotated"

from __future__ import annotations

import numpy as np

from runner.ir import exp, f32_at
from runner.kernel_ops import ONE, TWO, ZERO
from runner.kernel_tools import helper


@helper
def cap_score(s, cap):
    return cap * (ONE - TWO / (ONE + exp(TWO * s / cap))) if cap > ZERO else s


@helper
def slope_of(slopes, head):
    """What a score of this head loses per token of distance (ALiBi, arXiv 2108.12409)."""
    return f32_at(slopes)[head] if slopes != 0 else ZERO


@helper
def lower(scores, n, slope, distance):
    """`n` scores, the first of a position `distance` tokens back, less what their distances take."""
    s = f32_at(scores)
    for p in range(n):
        s[p] -= slope * np.float32(distance - p)


@helper
def first_visible(position, window, chunked):
    """The first position that a token at `position` may attend to."""
    if window == 0:
        return 0
    return position // window * window if chunked != 0 else max(0, position - window + 1)
