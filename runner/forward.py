"""The forward pass of every supported architecture, as a program of operations.

One builder serves all: what a layer does follows from the tensors it has (biases, head norms, post norms,
experts,
sinks) and from `runner.hyper`. Programs exist for one token (`one`), for many with logits of the last
(`last`), and
for many with logits of each (`all`).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from modeldb.errors import UnsupportedModel
from runner import hyper as hypers
from runner import kernel_attention, kernel_ops, recurrent
from runner.builder import Builder, Groups
from runner.cache import KvCache, LayerCache
from runner.hyper import Hyper
from runner.program import Program
from runner.room import Room
from runner.weights import Weight, Weights

Mode = Literal["one", "last", "all"]
ACTIVATIONS = {
    "silu": kernel_ops.SILU,
    "gelu_tanh": kernel_ops.GELU_TANH,
    "swiglu_oai": kernel_ops.SWIGLU_OAI,
    "relu_squared": kernel_ops.RELU_SQUARED,
}
ROUTERS = {"softmax": 0, "softmax_of_chosen": 1, "sigmoid": 2}


def build(
    h: Hyper, w: Weights, cache: KvCache, room: Room, mode: Mode
) -> tuple[Program, np.ndarray, int, float]:
    """The program, its logits ([vocab], or [token][vocab] for `all`), the weight bytes and FLOPs of one
    run."""
    b = Builder(h, w, cache, room, Program(), many=mode != "one")
    table = w.get("token_embd.weight")
    vocab = table.rows
    if table.width != h.hidden:
        w.get("token_embd.weight", (h.hidden, vocab))
    x = b.floats("x", h.hidden)
    b.program.add(
        "embed",
        kernel_ops.embed(table.format),
        table.address,
        table.row_bytes,
        h.hidden,
        room.tokens,
        x,
        float(h.embedding_scale),
    )
    b.touched += table.row_bytes
    rotating = sorted({bool(v) for v in h.windows}) if h.rotary else []
    angles = {windowed: _angles(b, windowed) for windowed in rotating}
    for i in range(h.n_layers):
        b.mark()
        normed = b.floats("normed", h.hidden)
        if h.attends[i] or h.recurs[i]:
            b.norm(x, b.vector(f"blk.{i}.attn_norm.weight", h.hidden), normed, h.hidden)
        if h.attends[i]:
            mix = _latent_attention if h.is_latent else _attention
            mix(b, i, x, normed, angles.get(bool(h.windows[i])))
        if h.recurs[i]:
            recurrent.mix(b, i, x, normed)
        if mode == "last" and i == h.n_layers - 1:
            b.program.add("last", kernel_ops.copy_last, x, h.hidden, x)
            b.one_token_from_here()
        if not h.style.recurrent or any(n in w.tensors for n in recurrent.feed_forward_names(i)):
            _feed_forward(b, i, x, normed)
    b.mark()
    normed = b.floats("normed", h.hidden)
    last_norm = next((n for n in ("output_norm.weight", "token_embd_norm.weight") if n in w.tensors), "")
    b.norm(x, b.vector(last_norm, h.hidden), normed, h.hidden)
    head = w.find("output.weight", (h.hidden, vocab)) or table
    rows = room.n_batch if mode == "all" else 1
    logits = room.floats("all_logits" if mode == "all" else "logits", vocab * rows)
    b.project(normed, h.hidden, [(head, logits, vocab, None)])
    if h.logit_cap:
        b.program.add("cap", kernel_ops.soft_cap, logits, vocab * rows, float(h.logit_cap))
    if h.logit_scale != 1.0:
        b.program.add("scale", kernel_ops.add, None, logits, vocab, 0, vocab, 1.0 / h.logit_scale)
    return b.program.finish(), logits, b.touched, b.flops


def _angles(b: Builder, windowed: bool) -> np.ndarray:
    names = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
    tables = {n: v for n in names if (v := b.vector(n, b.h.rotary // 2)) is not None}
    frequency, magnitude = hypers.rope_frequencies(b.h, windowed, tables, b.cache.n_context)
    out = b.floats(f"angles_{windowed}", 2 * len(frequency))
    b.program.add("angles", kernel_ops.rope_angles, frequency, len(frequency), out, magnitude)
    return out


def _rotate(
    b: Builder, x: np.ndarray, heads: int, head_stride: int, stride: int, angles: np.ndarray | None
) -> None:
    if angles is None:
        return
    b.program.add(
        "rope", kernel_ops.rope, x, heads, head_stride, stride, angles, b.h.rotary // 2, int(b.h.style.halves)
    )


def _attend(b: Builder, i: int, q: np.ndarray, q_stride: int, n_kv: int, c: LayerCache, sinks: np.ndarray | None,
            out: np.ndarray) -> None:  # fmt: skip
    h = b.h
    per_head = lambda row, n: row // n  # noqa: E731
    operation = kernel_attention.attention(b.cache.key_format, b.cache.value_format)
    b.program.add("attention", operation, q, q_stride, h.n_heads, n_kv, h.head_dim, h.value_dim, c.keys,
                  c.key_row_bytes,
                  per_head(c.key_row_bytes, n_kv), c.values, c.value_row_bytes, per_head(c.value_row_bytes, n_kv),
                  c.n_slots, h.windows[i], 0, float(h.score_factor), float(h.score_cap), sinks, out, b.room.scratch,
                  b.room.scratch_bytes)  # fmt: skip


def _store(
    b: Builder,
    fmt: str,
    x: np.ndarray,
    width: int,
    stride: int,
    rows: np.ndarray,
    row: int,
    n: int,
    wait: bool,
) -> None:
    b.program.add("store", kernel_attention.store_cache(fmt), x, width, stride, rows, row, n, wait=wait)


def _finish_mixer(b: Builder, i: int, x: np.ndarray, mixed: np.ndarray, width: int) -> None:
    """Output projection, post norm where there is one, residual."""
    h, p = b.h, f"blk.{i}."
    weight = b.w.get(p + "attn_output.weight", (width, h.hidden))
    post = (
        b.vector(p + "post_attention_norm.weight", h.hidden) if p + "ffn_norm.weight" in b.w.tensors else None
    )
    b.join(x, mixed, weight, b.vector(p + "attn_output.bias", h.hidden), post)


def _attention(b: Builder, i: int, x: np.ndarray, normed: np.ndarray, angles: np.ndarray | None) -> None:
    h, p, c = b.h, f"blk.{i}.", b.cache.layers[i]
    n_kv, own = h.n_kv_heads[i], h.n_heads * h.head_dim
    gated = h.style.recurrent == "delta"  # queries come with a gate of their own width, head by head
    widths = [0 if gated else own, n_kv * h.head_dim, n_kv * h.value_dim]
    total = sum(widths)
    qkv = b.floats("qkv", total)
    starts = [0, widths[0], widths[0] + widths[1]]
    parts = [qkv[s:] for s in starts]
    outs, strides = list(parts), [total] * 3
    if gated:
        outs[0], strides[0], widths[0] = b.floats("q_and_gate", 2 * own), 2 * own, 2 * own
    fused = b.w.find(p + "attn_qkv.weight", (h.hidden, total))
    if fused is not None:
        b.project(normed, h.hidden, [(fused, qkv, total, b.vector(p + "attn_qkv.bias", total))])
    else:
        b.project(normed, h.hidden, [
            (b.w.get(f"{p}attn_{name}.weight", (h.hidden, width)), out, stride, b.vector(f"{p}attn_{name}.bias", width))
            for name, width, out, stride in zip("qkv", widths, outs, strides, strict=True)
        ])  # fmt: skip
    q, q_stride, gate = qkv, total, None
    if gated:
        q, q_stride, gate = b.floats("q", own), own, b.floats("q_gate", own)
        for source, out in ((outs[0], q), (outs[0][h.head_dim :], gate)):
            b.program.add(
                "slice",
                kernel_ops.slice_heads,
                source,
                2 * h.head_dim,
                out,
                h.head_dim,
                h.head_dim,
                h.n_heads,
            )
    for name, part, heads, stride in (("q", q, h.n_heads, q_stride), ("k", parts[1], n_kv, total)):
        if p + f"attn_{name}_norm.weight" in b.w.tensors:
            b.norm(
                part, b.vector(p + f"attn_{name}_norm.weight", h.head_dim), part, h.head_dim, heads, stride
            )
        _rotate(b, part, heads, h.head_dim, stride, angles)
    _store(b, b.cache.key_format, parts[1], widths[1], total, c.keys, c.key_row_bytes, c.n_slots, False)
    _store(b, b.cache.value_format, parts[2], widths[2], total, c.values, c.value_row_bytes, c.n_slots, True)
    mixed = b.floats("mixed", h.n_heads * h.value_dim)
    _attend(b, i, q, q_stride, n_kv, c, b.vector(p + "attn_sinks.weight", h.n_heads), mixed)
    if gate is not None:
        b.gate(kernel_ops.LOGISTIC, gate, mixed, mixed, own, (own, own, own))
    _finish_mixer(b, i, x, mixed, h.n_heads * h.value_dim)


def _latent_attention(
    b: Builder, i: int, x: np.ndarray, normed: np.ndarray, angles: np.ndarray | None
) -> None:
    """Multi-head latent attention in its absorbed form (arXiv 2405.04434, section 2.1): one key-value head
    of width
    kv_rank + rotary, whose first kv_rank numbers are the value."""
    h, p, c = b.h, f"blk.{i}.", b.cache.layers[i]
    key_dim, rank = h.nope_dim + h.rotary, h.kv_rank
    q = b.floats("latent_q", h.n_heads * key_dim)
    low = b.w.find(p + "attn_q_a.weight")
    if low is not None:
        b.w.get(low.name, (h.hidden, low.rows))
        compressed = b.floats("q_low", low.rows)
        b.project(normed, h.hidden, [(low, compressed, low.rows, None)])
        b.norm(compressed, b.vector(p + "attn_q_a_norm.weight", low.rows), compressed, low.rows)
        b.project(compressed, low.rows, [(b.w.get(p + "attn_q_b.weight", (low.rows, h.n_heads * key_dim)), q,
                                          h.n_heads * key_dim, None)])  # fmt: skip
    else:
        b.project(normed, h.hidden, [(b.w.get(p + "attn_q.weight", (h.hidden, h.n_heads * key_dim)), q,
                                      h.n_heads * key_dim, None)])  # fmt: skip
    kv = b.floats("latent_kv", rank + h.rotary)
    kv_a = b.w.get(p + "attn_kv_a_mqa.weight", (h.hidden, rank + h.rotary))
    b.project(normed, h.hidden, [(kv_a, kv, rank + h.rotary, None)])
    b.norm(kv, b.vector(p + "attn_kv_a_norm.weight", rank), kv, rank, stride=rank + h.rotary)
    _rotate(b, q[h.nope_dim :], h.n_heads, key_dim, h.n_heads * key_dim, angles)
    _rotate(b, kv[rank:], 1, h.rotary, rank + h.rotary, angles)
    _store(
        b, b.cache.key_format, kv, rank + h.rotary, rank + h.rotary, c.keys, c.key_row_bytes, c.n_slots, True
    )
    # absorb the key up-projection into the queries, one head at a time: every (token, head) is a pair of
    # head's matrix
    absorbed = b.floats("absorbed", h.n_heads * (rank + h.rotary))
    heads = _heads_as_pairs(b)
    nope = b.floats("nope", h.n_heads * h.nope_dim)
    b.program.add("slice", kernel_ops.slice_heads, q, key_dim, nope, h.nope_dim, h.nope_dim, h.n_heads)
    b.program.add(
        "slice",
        kernel_ops.slice_heads,
        q[h.nope_dim :],
        key_dim,
        absorbed[rank:],
        rank + h.rotary,
        h.rotary,
        h.n_heads,
    )
    k_b = b.w.get(p + "attn_k_b.weight", (h.nope_dim, rank, h.n_heads))
    b.pack_experts(nope, h.nope_dim, [k_b], h.n_heads, heads)
    b.expert_project(k_b, None, nope, absorbed, rank + h.rotary, h.n_heads, heads)
    latent = b.floats("latent_out", h.n_heads * rank)
    _attend(b, i, absorbed, h.n_heads * (rank + h.rotary), 1, c, None, latent)
    v_b = b.w.get(p + "attn_v_b.weight", (rank, h.latent_value_dim, h.n_heads))
    mixed = b.floats("mixed", h.n_heads * h.latent_value_dim)
    b.pack_experts(latent, rank, [v_b], h.n_heads, heads)
    b.expert_project(v_b, None, latent, mixed, h.latent_value_dim, h.n_heads, heads)
    for weight in (k_b, v_b):
        b.touched += weight.data.nbytes
        b.flops += 2 * weight.rows * weight.width * h.n_heads
    _finish_mixer(b, i, x, mixed, h.n_heads * h.latent_value_dim)


def _heads_as_pairs(b: Builder) -> Groups:
    """(token, head) pairs by head, as `route` lays out (token, slot) pairs by expert."""
    n = b.h.n_heads
    pairs, first = b.room.integers("head_pairs", b.room.n_batch * n), b.room.integers("head_first", n + 1)
    b.program.add("pairs", kernel_ops.pairs_by_head, pairs, first, n)
    return Groups(pairs, first, n, n)


def _feed_forward(b: Builder, i: int, x: np.ndarray, normed: np.ndarray) -> None:
    h, p = b.h, f"blk.{i}."
    # a layer that neither attends nor recurs is this alone, and its norm is the layer's
    alone = () if h.attends[i] or h.recurs[i] else ("attn_norm.weight",)
    names = [p + n for n in (*alone, "ffn_norm.weight", "ffn_norm", "post_attention_norm.weight")]
    name = next((n for n in names if n in b.w.tensors), names[-1])
    b.norm(x, b.vector(b.w.get(name).name, h.hidden), normed, h.hidden)
    post = b.vector(p + "post_ffw_norm.weight", h.hidden)
    plain = post is None and h.residual_scale == 1.0
    out = x if plain else b.floats("ffn_out", h.hidden)
    if p + "ffn_gate_inp.weight" in b.w.tensors:
        _experts(b, i, out, normed, add=plain)
    else:
        _dense(b, p, "", normed, out, add=plain)
    if not plain:
        b.merge(x, out, post)


def _dense(b: Builder, p: str, suffix: str, normed: np.ndarray, out: np.ndarray, add: bool) -> None:
    """Gated feed-forward; a fused `ffn_up` holds the gate first. Squared ReLU has no gate."""
    h = b.h
    up = b.w.get(f"{p}ffn_up{suffix}.weight")
    gate = b.w.find(f"{p}ffn_gate{suffix}.weight", up.shape)
    down = b.w.get(f"{p}ffn_down{suffix}.weight")
    inner, gated = down.width, h.style.activation != "relu_squared"
    wide = 2 * inner if gated else inner
    if up.shape != (h.hidden, inner if gate is not None else wide) or down.shape != (inner, h.hidden):
        raise UnsupportedModel(
            f"{b.w.name}: `{up.name}` {up.shape} is no {'gated ' * gated}feed-forward of width {inner}"
        )
    both, acted = b.floats("gate_up", wide), b.floats("acted", inner)
    if gate is None:
        b.project(normed, h.hidden, [(up, both, wide, b.vector(f"{p}ffn_up{suffix}.bias", wide))])
    else:
        b.project(normed, h.hidden, [
            (gate, both, wide, b.vector(f"{p}ffn_gate{suffix}.bias", inner)),
            (up, both[inner:], wide, b.vector(f"{p}ffn_up{suffix}.bias", inner)),
        ])  # fmt: skip
    b.gate(
        ACTIVATIONS[h.style.activation],
        both,
        both[inner:] if gated else None,
        acted,
        inner,
        (wide, wide, inner),
    )
    b.project(acted, inner, [(down, out, h.hidden, b.vector(f"{p}ffn_down{suffix}.bias", h.hidden))], add=add)


def _experts(b: Builder, i: int, x: np.ndarray, normed: np.ndarray, add: bool) -> None:
    """x (+)= the chosen experts' sum, and the shared expert's output. Squared ReLU has no gate; latent experts work
    in a width of their own."""
    h, p, k, n = b.h, f"blk.{i}.", b.h.per_token, b.h.n_experts
    groups, weights = _routed(b, p, normed)
    low, high = b.w.find(p + "ffn_latent_down.weight"), None
    source, hidden = normed, h.hidden
    if low is not None:
        hidden = low.rows
        high = b.w.get(p + "ffn_latent_up.weight", (hidden, h.hidden))
        source = b.floats("latent_in", hidden)
        b.project(normed, h.hidden, [(b.w.get(low.name, (h.hidden, hidden)), source, hidden, None)])
    inner, gated = b.w.get(p + "ffn_up_exps.weight").rows, h.style.activation != "relu_squared"
    names = ("gate", "up") if gated else ("up",)
    ups = [b.w.get(f"{p}ffn_{name}_exps.weight", (hidden, inner, n)) for name in names]
    down, wide = b.w.get(p + "ffn_down_exps.weight", (inner, hidden, n)), len(names) * inner
    bias = lambda name, width: b.vector(f"{p}ffn_{name}_exps.bias", width * n)  # noqa: E731
    both, acted = b.floats("expert_gate_up", wide * k), b.floats("expert_acted", inner * k)
    b.pack_experts(source, hidden, ups, 1, groups)
    for at, (name, weight) in enumerate(zip(names, ups, strict=True)):
        last = at == len(names) - 1
        b.expert_project(weight, bias(name, inner), source, both[at * inner :], wide, 1, groups, wait=last)
    kind = ACTIVATIONS[h.style.activation]
    b.gate(kind, both, both[inner:] if gated else None, acted, inner, (wide, wide, inner), rows=k)
    b.pack_experts(acted, inner, [down], k, groups)
    out = b.floats("expert_out", hidden * k)
    b.expert_project(down, bias("down", hidden), acted, out, hidden, k, groups)
    for weight in (*ups, down):
        b.touched += weight.data.nbytes * k // n
        b.flops += 2 * weight.rows * weight.width * k
        own = b.w.tensors.get(weight.name.removesuffix("weight") + "bias")
        b.touched -= (
            own.data.nbytes * (n - k) // n if own is not None else 0
        )  # `vector` counted every expert's
    shared = _shared_expert(b, p, normed) if p + "ffn_up_shexp.weight" in b.w.tensors else None
    if high is None:
        b.program.add("combine", kernel_ops.combine, out, weights, k, hidden, x, int(not add))
    else:
        joined = b.floats("latent_sum", hidden)
        b.program.add("combine", kernel_ops.combine, out, weights, k, hidden, joined, 1)
        b.project(joined, hidden, [(high, x, h.hidden, None)], add=add)
    if shared is not None:
        b.program.add("add", kernel_ops.add, shared, x, h.hidden, h.hidden, h.hidden, 1.0)


def _routed(b: Builder, p: str, normed: np.ndarray) -> tuple[Groups, np.ndarray]:
    """(token, slot) pairs by the experts that the router chose, and their weights."""
    h, k, n = b.h, b.h.per_token, b.h.n_experts
    if not 0 < k <= n:
        raise UnsupportedModel(f"{b.w.name}: {k} of {n} experts per token")
    scores = b.floats("scores", n)
    router = b.w.get(p + "ffn_gate_inp.weight", (h.hidden, n))
    b.project(normed, h.hidden, [(router, scores, n, b.vector(p + "ffn_gate_inp.bias", n))])
    rows = b.room.n_batch * k
    pairs, first, chosen = (b.room.integers(s, max(rows, n + 1)) for s in ("pairs", "first", "chosen"))
    weights = b.floats("expert_weights", k)
    b.program.add("route", kernel_ops.route, scores, n, k, pairs, first, weights, ROUTERS[h.router], int(h.normalize),
                  float(h.expert_factor), b.vector(p + "exp_probs_b.bias", n), chosen)  # fmt: skip
    return Groups(pairs, first, n, k), weights


def _shared_expert(b: Builder, p: str, normed: np.ndarray) -> np.ndarray:
    """What the shared expert adds, times its own gate where it has one."""
    h = b.h
    gate = b.w.find(p + "ffn_gate_inp_shexp.weight")
    shared, strength = b.floats("shared_out", h.hidden), b.floats("shared_gate", 1)
    if gate is not None:
        if gate.shape not in ((h.hidden,), (h.hidden, 1)):
            b.w.get(gate.name, (h.hidden,))
        flat = Weight(gate.name, gate.format, (h.hidden, 1), gate.data)
        b.project(normed, h.hidden, [(flat, strength, 1, None)])
    _dense(b, p, "_shexp", normed, shared, add=False)
    if gate is not None:
        b.program.add("scale", kernel_ops.scale_by_gate, shared, h.hidden, strength)
    return shared


__all__ = ["Builder", "build"]
