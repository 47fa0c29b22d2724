"""Routers: which experts a token goes to, and their weights.

Arguments are int64 slots; `a[0]` is the work counter, addresses are of float32 unless said. Float parameters travel as
the bits of a float64.
"""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def,var-annotated"

from __future__ import annotations

import math

from runner.ir import as_float, f32_at, i32_at, i64_at
from runner.kernel_tools import TOKENS, helper, next_piece, operation

SOFTMAX, SOFTMAX_OF_CHOSEN, SIGMOID, SQRT_SOFTPLUS = range(4)
LEAST_SUM = 6.103515625e-5  # that weights are divided by: float16's least normal number, as in llama.cpp


@operation
def route(args: int, state: int, thread: int) -> None:
    """Choose experts: a[1] scores [token][n], a[2] n, a[3] k, a[4] pairs by expert (int64, row numbers
    token * k + slot),
    a[5] first pair of each expert (int64, n + 1), a[6] weights [token * k], a[7] how, a[8] normalize, a[9]
    factor,
    a[10] selection bias (or 0), a[11] scratch: chosen experts (int64) [token * k], a[12] groups of experts (or 0),
    a[13] how many of them experts are chosen from, a[14] a table of experts [token of the vocabulary][k] (int32) that
    are chosen instead (or 0), a[15] tokens (int64)."""
    if next_piece(args) != 0:
        return
    a = i64_at(args)
    n, k, tokens = a[2], a[3], i64_at(state)[TOKENS]
    first, pairs, chosen = i64_at(a[5]), i64_at(a[4]), i64_at(a[11])
    for e in range(n + 1):
        first[e] = 0
    for t in range(tokens):
        fixed = a[14] + i64_at(a[15])[t] * k * 4 if a[14] != 0 else 0
        choose(a[1] + t * n * 4, n, k, a[11] + t * k * 8, a[6] + t * k * 4, a[7], a[8], as_float(a[9]), a[10],
               a[12], a[13], fixed)  # fmt: skip
        for j in range(k):
            first[chosen[t * k + j] + 1] += 1
    for e in range(n):
        first[e + 1] += first[e]
    for row in range(tokens * k):
        e = chosen[row]
        pairs[first[e]] = row
        first[e] += 1
    for e in range(n, 0, -1):
        first[e] = first[e - 1]
    first[0] = 0


@helper
def best_groups(s, bias, n, groups, used):
    """The groups (a bit each) whose two best experts have the highest sums: DeepSeek-V3, arXiv 2412.19437."""
    size, found = n // groups, 0
    for _ in range(used):
        best, most = -1, 0.0
        for g in range(groups):
            first, second = -1e30, -1e30
            for e in range(g * size, (g + 1) * size):
                v = s[e] + f32_at(bias)[e] if bias != 0 else s[e]
                first, second = max(first, v), max(second, min(first, v))
            if (found >> g) & 1 == 0 and (best < 0 or first + second > most):
                best, most = g, first + second
        found |= 1 << best
    return found


@helper
def choose(scores, n, k, chosen, weights, how, normalize, factor, bias, groups, used, fixed):
    s, ids, w = f32_at(scores), i64_at(chosen), f32_at(weights)
    if how == SOFTMAX:
        top = s[0]
        for e in range(n):
            top = max(top, s[e])
        total = 0.0
        for e in range(n):
            s[e] = math.exp(s[e] - top)
            total += s[e]
        for e in range(n):
            s[e] /= total
    elif how == SIGMOID:
        for e in range(n):
            s[e] = 1.0 / (1.0 + math.exp(-s[e]))
    elif how == SQRT_SOFTPLUS:
        for e in range(n):
            s[e] = math.sqrt(max(s[e], 0.0) + math.log1p(math.exp(-abs(s[e]))))
    open_groups = best_groups(s, bias, n, groups, used) if groups != 0 else 0
    for j in range(k):
        if fixed != 0:
            ids[j] = i32_at(fixed)[j]
            w[j] = s[ids[j]]
            continue
        best, value = -1, 0.0
        for e in range(n):
            taken = groups != 0 and (open_groups >> (e * groups // n)) & 1 == 0
            for i in range(j):
                taken = taken or ids[i] == e
            v = s[e] + f32_at(bias)[e] if bias != 0 else s[e]
            if not taken and (best < 0 or v > value):
                best, value = e, v
        ids[j] = best
        w[j] = s[best]
    if how == SOFTMAX_OF_CHOSEN:
        top = w[0]
        for j in range(k):
            top = max(top, w[j])
        for j in range(k):
            w[j] = math.exp(w[j] - top)
    if normalize != 0 or how == SOFTMAX_OF_CHOSEN:
        total = 0.0
        for j in range(k):
            total += w[j]
        for j in range(k):
            w[j] /= max(total, LEAST_SUM) if how >= SIGMOID else total
    for j in range(k):
        w[j] *= factor
