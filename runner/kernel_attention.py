"""Attention over a cache kept in float16, Q8_0 or Q4_0, with windows, chunks, soft caps, sinks and ALiBi.

Softmax is computed online over tiles of positions, so memory does not grow with the context.

Arguments: a[1] queries [token][stride], a[2] query stride, a[3] heads, a[4] key-value heads, a[5] head dim,
a[6] value
dim, a[7] keys, a[8] key row bytes, a[9] key head bytes, a[10] values, a[11] value row bytes, a[12] value
head bytes,
a[13] ring length, a[14] window (0: none), a[15] chunked, a[16] score factor, a[17] soft cap, a[18] sinks
(or 0),
a[19] out [token][heads * value dim], a[20] scratch, a[21] scratch bytes per thread, a[22] of many tokens, which
positions each sees: bytes [token][a[23]] (or 0: all; see a[27]), a[24] what a score
loses per token of distance, by head (or 0), a[25] of one token, how many rows of the cache it sees, from the first on
(the address of an int64, or 0: as positions tell), a[26] a further cache of such rows, of which each stands for a[27]
tokens (or 0): a token sees those that were complete with it; with these, a[22] and a[25] are of that cache;
without them a[27] are positions of a byte of a[22], of which, if these are more than one, each key-value head has its
part.
"""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def,var-annotated"

from __future__ import annotations

from functools import cache
from typing import Any

from runner import kernel_attention_prompt, kernel_attention_step
from runner.ir import i64_at
from runner.kernel_cache import store_cache
from runner.kernel_tools import TOKENS, operation


def scratch_bytes(head_dim: int, value_dim: int, group: int) -> int:
    """Scratch memory per thread."""
    return max(
        kernel_attention_prompt.scratch_bytes(head_dim, value_dim), kernel_attention_step.scratch_bytes(group)
    )


@cache
def attention(key_fmt: str, value_fmt: str) -> Any:
    one = kernel_attention_step.step_attention(key_fmt, value_fmt)
    many = kernel_attention_prompt.prompt_attention(key_fmt, value_fmt)

    @operation
    def attention_op(args: int, state: int, thread: int) -> None:
        if i64_at(state)[TOKENS] == 1:
            one(args, state, thread)
        else:
            many(args, state, thread)

    return attention_op


__all__ = ["attention", "scratch_bytes", "store_cache"]
