"""Attention of a prompt: rows of work are (token, head) pairs that share one key-value head; keys and values are
unpacked once for blocks of them. Softmax is computed online over tiles of positions."""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def,var-annotated"

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from runner.ir import as_float, exp, f32_at, i64_at, u8_at
from runner.kernel_multiply import block_tokens, multiply_floats
from runner.kernel_ops import ZERO
from runner.kernel_tile import PAD_BYTES, transpose_floats, unpack_row
from runner.kernel_tools import POSITION, PREFIX, TOKENS, helper, next_piece, reducer
from runner.kernel_visible import cap_score, first_visible, lower, slope_of
from runner.target import target

BLOCK_TOKENS = block_tokens()
COLUMNS = 2 * target().lanes  # positions (or value columns) per product tile
ROW_BLOCKS = 8  # blocks of rows that share an unpacked tile of keys
NEVER = np.float32(-1e30)  # the score of a masked position; its weight underflows to zero


def scratch_bytes(head_dim: int, value_dim: int) -> int:
    """Scratch memory per thread."""
    rows = ROW_BLOCKS * BLOCK_TOKENS
    widest = max(head_dim, value_dim) + COLUMNS
    return (rows * widest * 2 + COLUMNS * widest * 4 + rows * COLUMNS * 2 + rows * 4 + 64) * 4


@cache
def prompt_attention(key_fmt: str, value_fmt: str) -> Any:
    columns, tokens, lanes = COLUMNS, BLOCK_TOKENS, target().lanes
    rows_max = ROW_BLOCKS * BLOCK_TOKENS

    @helper
    def prefill_attention(args, state, thread):
        a = i64_at(args)
        n_kv, head_dim, value_dim, ring = a[4], a[5], a[6], a[13]
        group = a[3] // n_kv
        n_rows = i64_at(state)[TOKENS] * group
        tiles = (n_rows + rows_max - 1) // rows_max
        position, prefix = i64_at(state)[POSITION], i64_at(state)[PREFIX]
        factor, cap = np.float32(as_float(a[16])), np.float32(as_float(a[17]))
        value_tiles = (value_dim + columns - 1) // columns
        queries = a[20] + thread * a[21]  # [block][head_dim][tokens]
        outputs = queries + rows_max * head_dim * 4  # [block][value tile][tokens][columns]
        keys = outputs + rows_max * value_tiles * columns * 4  # [head_dim][columns]
        values = keys + head_dim * columns * 4  # [value tile][position][columns]
        line = values + value_tiles * columns * columns * 4  # one unpacked row of values
        scores = line + (value_dim + columns) * 4  # [tokens][columns]
        weights = scores + tokens * columns * 4  # [position][tokens]
        running = weights + tokens * columns * 4  # [row] maximum, sum
        lines = running + rows_max * 8  # [position] one unpacked row of keys
        apart = head_dim * 4 + PAD_BYTES
        while True:
            piece = next_piece(args)
            if piece >= n_kv * tiles:
                break
            # later rows cost more: hand them out first
            kv, first = piece % n_kv, (tiles - 1 - piece // n_kv) * rows_max
            n = min(rows_max, n_rows - first)
            blocks = (n + tokens - 1) // tokens
            for r in range(blocks * tokens):
                q = f32_at(queries + r // tokens * head_dim * tokens * 4)
                row = first + min(r, n - 1)
                head = kv * group + row % group
                x = f32_at(a[1] + (row // group * a[2] + head * head_dim) * 4)
                for i in range(head_dim):
                    q[i * tokens + r % tokens] = x[i] * factor
                state_of = f32_at(running + r * 8)
                state_of[0] = f32_at(a[18])[head] if a[18] != 0 else -1e30
                state_of[1] = 1.0 if a[18] != 0 else 0.0
            o = f32_at(outputs)
            for i in range(blocks * tokens * value_tiles * columns):
                o[i] = 0.0
            for further in range(2 if a[26] != 0 else 1):
                all_keys, all_values, each, mask = a[7] + kv * a[9], a[10] + kv * a[12], 1, a[22]
                window, length = a[14], ring
                mask_tokens = a[27] if a[26] == 0 else 1
                if mask_tokens > 1:
                    mask += kv * (a[23] // n_kv)
                if further != 0:
                    all_keys, all_values, each, window, length = a[26], a[26], a[27], 0, 1 << 40
                elif a[26] != 0:
                    mask = 0
                # tiles begin at fixed positions, so that results do not depend on how a prompt is cut
                start = first_visible(position + first // group, window, a[15]) // columns * columns
                end = max(position + (first + n - 1) // group + 1, prefix) // each
                while start < end:
                    m = min(columns, end - start)
                    for p in range(columns):
                        slot = (start + min(p, m - 1)) % length
                        unpack_row(key_fmt, all_keys + slot * a[8], head_dim, lines + p * apart)
                        if p < m:
                            unpack_row(value_fmt, all_values + slot * a[11], value_dim, line)
                            spread_values(line, values, p, value_tiles, columns)
                    for p in range(0, columns, lanes):
                        transpose_floats("F32", lines + p * apart, apart, head_dim, keys + p * 4, columns * 4)
                    for b in range(blocks):
                        multiply_floats(tokens, keys, head_dim, queries + b * head_dim * tokens * 4, scores)
                        weigh_block(scores, weights, running + b * tokens * 8,
                                    outputs + b * tokens * value_tiles * columns * 4,
                                    first + b * tokens, group, position, prefix, start, m, cap, window, a[15],
                                    value_tiles, mask, a[23], mask_tokens, n_rows, a[24], kv * group,
                                    each)  # fmt: skip
                        for v in range(value_tiles):
                            multiply_floats(tokens, values + v * columns * columns * 4, m, weights, scores)
                            add_block(outputs + (b * value_tiles + v) * tokens * columns * 4, scores)
                    start += m
            for r in range(n):
                row = first + r
                head = kv * group + row % group
                out = f32_at(a[19] + (row // group * a[3] + head) * value_dim * 4)
                total = f32_at(running + r * 8)[1]
                for i in range(value_dim):
                    at = (
                        (r // tokens * value_tiles + i // columns) * tokens + r % tokens
                    ) * columns + i % columns
                    out[i] = o[at] / total

    return prefill_attention


@helper
def spread_values(line, values, p, value_tiles, columns):
    for v in range(value_tiles):
        source, out = f32_at(line + v * columns * 4), f32_at(values + (v * columns + p) * columns * 4)
        for i in range(columns):
            out[i] = source[i]


@helper
def add_block(out, block):
    o, x = f32_at(out), f32_at(block)
    for i in range(BLOCK_TOKENS * COLUMNS):
        o[i] += x[i]


@reducer
def weigh_block(
    scores, weights, running, out, row, group, position, prefix, start, m, cap, window, chunked, value_tiles, mask,
    mask_bytes, mask_tokens, n_rows, slopes, head, each
):  # fmt: skip
    """One block of rows: mask, soft cap, ALiBi and online softmax of `m` scores per row; outputs so far are rescaled.
    `head`: the first that shares these keys; `each`: tokens that a key stands for."""
    w = f32_at(weights)
    for t in range(BLOCK_TOKENS):
        s, r = f32_at(scores + t * COLUMNS * 4), f32_at(running + t * 8)
        at = position + (row + t) // group
        low, high = (
            min(max(first_visible(at, window, chunked) - start, 0), m),
            min(max(at + 1, prefix) // each - start, m),
        )
        top = r[0]
        if cap > ZERO:
            for p in range(m):
                s[p] = cap_score(s[p], cap)
        slope = slope_of(slopes, head + (row + t) % group)
        if slope != ZERO:
            lower(scores + t * COLUMNS * 4, m, slope, at - start)
        for p in range(low):
            s[p] = NEVER
        for p in range(max(high, 0), m):
            s[p] = NEVER
        if mask != 0:
            chosen = u8_at(mask + min(row + t, n_rows - 1) // group * mask_bytes)
            if mask_tokens == 1:
                for p in range(low, high):
                    if chosen[start + p] == 0:
                        s[p] = NEVER
            else:
                for p in range(low, high):
                    if chosen[(start + p) // mask_tokens] == 0:
                        s[p] = NEVER
        for p in range(low, high):
            top = max(top, s[p])
        total = ZERO
        for p in range(m):
            v = exp(s[p] - top)
            s[p] = v
            total += v
        for p in range(m):
            w[p * BLOCK_TOKENS + t] = s[p]
        if top != r[0]:
            rescale = exp(r[0] - top)
            r[1] *= rescale
            for v in range(value_tiles):
                o = f32_at(out + (v * BLOCK_TOKENS + t) * COLUMNS * 4)
                for i in range(COLUMNS):
                    o[i] *= rescale
            r[0] = top
        r[1] += total
