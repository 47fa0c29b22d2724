"""How threads share the rows of a product of one token, so that those that end another one can ask for what they begin
with here.
"""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def,var-annotated"

from __future__ import annotations

from runner.ir import i64_at
from runner.kernel_tools import helper

# argument slots of matrix products
(
    COUNTER,
    WEIGHT,
    ROW_BYTES,
    ROWS,
    WIDTH,
    OUT,
    OUT_STRIDE,
    ADD,
    BIAS,
    X,
    XQ,
    XD,
    XS32,
    XS16,
    SCRATCH,
    FACTOR,
) = range(16)
FOLLOWING = 28  # slot of any operation: the arguments of the next product of one token (0: none)


@helper
def own_rows(rows, n_threads):
    """How many rows each thread takes before it looks for more: most of its share. (Where two threads share their path
    to memory, many small pieces of each other's neighbourhood read up to 5% slower: Zen 5, 2026.)"""
    return rows * 3 // (4 * n_threads)


@helper
def begins(args, thread, n_threads):
    """Where a thread begins to read in the product with these arguments; 0 without one."""
    if args == 0:
        return 0
    a = i64_at(args)
    return a[WEIGHT] + thread * own_rows(a[ROWS], n_threads) * a[ROW_BYTES]
