"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1) as operations of a program: absorbed, over a
cache of the latents, or decompressed, over one of every head's keys and values."""

from __future__ import annotations

import numpy as np

from runner import kernel_ops, kernel_rows
from runner.attention import attend, finish, gate_by_input, rotate, store
from runner.builder import Builder, Groups
from runner.indexer import Choice, sight


def absorbed(b: Builder, i: int, x: np.ndarray, normed: np.ndarray, angles: np.ndarray | None) -> None:
    """One key-value head of width kv_rank + rotary, whose first kv_rank numbers are the value."""
    h, p, c = b.h, f"blk.{i}.", b.cache.layers[i]
    key_dim, rank = h.nope_dim + h.rotary, h.kv_rank
    choice = Choice(b, i) if h.indexes[i] else None
    q, kv = _queries(b, i, normed, angles, choice), _compressed(b, i, normed, angles, choice)
    store(b, c, False, kv, rank + h.rotary, wait=True)
    if choice is not None:
        choice.make(angles)
    # absorb the key up-projection into the queries, one head at a time: every (token, head) is a pair of that
    # head's matrix
    wide = b.floats("absorbed", h.n_heads * (rank + h.rotary))
    heads = _heads_as_pairs(b)
    nope = q
    if h.rotary:
        nope = b.floats("nope", h.n_heads * h.nope_dim)
        _slice(b, q, key_dim, nope, h.nope_dim, h.nope_dim)
        _slice(b, q[h.nope_dim :], key_dim, wide[rank:], rank + h.rotary, h.rotary)
    k_b = b.w.get(p + "attn_k_b.weight", (h.nope_dim, rank, h.n_heads))
    b.pack_experts(nope, h.nope_dim, [k_b], h.n_heads, heads)
    b.expert_project(k_b, None, nope, wide, rank + h.rotary, h.n_heads, heads)
    latent = b.floats("latent_out", h.n_heads * rank)
    attend(b, i, wide, h.n_heads * (rank + h.rotary), 1, sight(b, i), None, latent)
    v_b = b.w.get(p + "attn_v_b.weight", (rank, h.latent_value_dim, h.n_heads))
    mixed = b.floats("mixed", h.n_heads * h.latent_value_dim)
    b.pack_experts(latent, rank, [v_b], h.n_heads, heads)
    b.expert_project(v_b, None, latent, mixed, h.latent_value_dim, h.n_heads, heads)
    for weight in (k_b, v_b):
        b.touched += weight.data.nbytes
        b.flops += 2 * weight.rows * weight.width * h.n_heads
    gate_by_input(b, i, normed, mixed, h.latent_value_dim)
    finish(b, i, x, mixed, h.n_heads * h.latent_value_dim)


def decompressed(b: Builder, i: int, x: np.ndarray, normed: np.ndarray, angles: np.ndarray | None) -> None:
    """Every head has keys and values of its own, made of the latents before they are cached; the rotated part of the
    keys is the same for all."""
    h, p, c, own = b.h, f"blk.{i}.", b.cache.layers[i], b.h.heads[i]
    n, width, nope, rank = own.n, own.width, h.nope_dim, h.kv_rank
    q, kv = _queries(b, i, normed, angles), _compressed(b, i, normed, angles)
    both = nope + own.value_width
    made = b.floats("made", n * both)
    kv_b = b.w.get(p + "attn_kv_b.weight", (rank, n * both))
    b.project(kv, rank + h.rotary, [(kv_b, made, n * both, None)])
    keys, values = b.floats("keys", n * width), b.floats("values", own.n_mixed)
    _slice(b, made, both, keys, width, nope)
    _slice(b, made[nope:], both, values, own.value_width, own.value_width)
    b.program.add("slice", kernel_rows.repeat, kv[rank:], rank + h.rotary, h.rotary, n, keys[nope:], width)
    store(b, c, False, keys, n * width, wait=False)
    store(b, c, True, values, own.n_mixed, wait=True)
    mixed = b.floats("mixed", own.n_mixed)
    attend(b, i, q, n * width, n, sight(b, i), None, mixed)
    finish(b, i, x, mixed, own.n_mixed)


def _queries(
    b: Builder, i: int, normed: np.ndarray, angles: np.ndarray | None, choice: Choice | None = None
) -> np.ndarray:
    """[token][head][nope + rotary], rotated and tempered; compressed before, where the model does. An indexer's
    queries are made of the same."""
    h, p = b.h, f"blk.{i}."
    key_dim = h.nope_dim + h.rotary
    width = h.n_heads * key_dim
    q, low = b.floats("latent_q", width), b.w.find(p + "attn_q_a.weight")
    if low is not None:
        b.w.get(low.name, (h.hidden, low.rows))
        narrow = b.floats("q_low", low.rows)
        b.project(normed, h.hidden, [(low, narrow, low.rows, None)])
        b.norm(narrow, _scale(b, p + "attn_q_a_norm.weight", low.rows), narrow, low.rows)
        of_index = choice.of_queries(low.rows) if choice else []
        up = b.w.get(p + "attn_q_b.weight", (low.rows, width))
        b.project(narrow, low.rows, [(up, q, width, None), *of_index])
    else:
        b.project(normed, h.hidden, [(b.w.get(p + "attn_q.weight", (h.hidden, width)), q, width, None)])
    rotate(b, i, q[h.nope_dim :], h.n_heads, key_dim, width, angles)
    if h.temper:
        b.program.add("temper", kernel_rows.temper, q, width, width, *h.temper)
    return q


def _compressed(
    b: Builder, i: int, normed: np.ndarray, angles: np.ndarray | None, choice: Choice | None = None
) -> np.ndarray:
    """[token][kv_rank + rotary]: the latents normed, and what all keys share, rotated."""
    h, p, rank = b.h, f"blk.{i}.", b.h.kv_rank
    width = rank + h.rotary
    kv, kv_a = b.floats("latent_kv", width), b.w.get(p + "attn_kv_a_mqa.weight", (h.hidden, width))
    b.project(normed, h.hidden, [(kv_a, kv, width, None), *(choice.of_input() if choice else [])])
    b.norm(kv, _scale(b, p + "attn_kv_a_norm.weight", rank), kv, rank, stride=width)
    rotate(b, i, kv[rank:], 1, h.rotary, width, angles)
    return kv


def _scale(b: Builder, name: str, width: int) -> np.ndarray | None:
    """A norm of latents, with what the model multiplies them by."""
    weight = b.vector(name, width)
    if weight is None or not b.h.style.scaled_latents:
        return weight
    return (weight * np.sqrt(b.h.hidden / width)).astype(np.float32)


def _slice(b: Builder, x: np.ndarray, stride: int, out: np.ndarray, out_stride: int, width: int) -> None:
    """Part of each head."""
    b.program.add("slice", kernel_ops.slice_heads, x, stride, out, out_stride, width, b.h.n_heads)


def _heads_as_pairs(b: Builder) -> Groups:
    """(token, head) pairs by head, as `route` lays out (token, slot) pairs by expert."""
    n = b.h.n_heads
    pairs, first = b.room.integers("head_pairs", b.room.n_batch * n), b.room.integers("head_first", n + 1)
    b.program.add("pairs", kernel_ops.pairs_by_head, pairs, first, n)
    return Groups(pairs, first, n, n)
