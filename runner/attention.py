"""Softmax attention of a layer, as operations of a program."""

from __future__ import annotations

import numpy as np

from modeldb.errors import UnsupportedModel
from runner import blocks, kernel_attention, kernel_ops, kernel_rows, rotation
from runner.builder import Builder
from runner.cache import LayerCache, padded
from runner.indexer import Sight


def rotate(b: Builder, i: int, x: np.ndarray, heads: int, head_stride: int, stride: int,
            angles: np.ndarray | None, wait: bool = True) -> None:  # fmt: skip
    if angles is None:
        return
    pairs, halves = b.h.heads[i].rotary // 2, int(b.h.style.halves)
    if b.h.style.prefixed:
        behind = b.floats("angles_behind", 2 * pairs)
        second = x[2 * pairs :]
        b.program.add(
            "rope", kernel_ops.rope, second, heads, head_stride, stride, behind, pairs, halves, wait=False
        )
    b.program.add("rope", kernel_ops.rope, x, heads, head_stride, stride, angles, pairs, halves, wait=wait)


def attend(b: Builder, i: int, q: np.ndarray, q_stride: int, n_kv: int, seen: Sight, sinks: np.ndarray | None,
            out: np.ndarray) -> None:  # fmt: skip
    """out = softmax attention over what is `seen`. Its kernels take numbers by 32: heads of other widths get zeros
    behind their queries, which meet the next slot's keys there, and what they get of its values is left out."""
    h, own, c, mask = b.h, b.h.heads[i], seen.cache, seen.mask
    width, value_width = padded(own.width), padded(own.value_width)
    mixed = out
    if width != own.width:
        x, x_stride, q, q_stride = q, q_stride, b.floats("wide_q", own.n * width), own.n * width
        b.program.add("widen", kernel_rows.widen, x, x_stride, own.n, own.width, q, width)
    if value_width != own.value_width:
        mixed = b.floats("wide_mixed", own.n * value_width)
    operation = kernel_attention.attention(b.cache.key_format, b.cache.value_format)
    key_bytes, value_bytes = c.key_row_bytes // n_kv, c.value_row_bytes // n_kv
    b.program.add("attention", operation, q, q_stride, own.n, n_kv, width, value_width, c.keys, key_bytes,
                  key_bytes * c.n_slots, c.values, value_bytes, value_bytes * c.n_slots, c.n_slots, seen.window,
                  int(h.style.chunked), float(h.score_factor), float(h.score_cap), sinks, mixed,
                  b.room.scratch, b.room.scratch_bytes, mask,
                  seen.mask_bytes or (c.n_slots if seen.further is None else c.n_further),
                  rotation.slopes(own.n, h.alibi) if h.alibi else None, seen.count, seen.further,
                  seen.each)  # fmt: skip
    if mixed is not out:
        n = own.value_width
        b.program.add("slice", kernel_ops.slice_heads, mixed, value_width, out, n, n, own.n)


def store(b: Builder, c: LayerCache, values: bool, x: np.ndarray, stride: int, wait: bool) -> None:
    fmt, rows, width, row_bytes = (
        (b.cache.value_format, c.values, c.value_width, c.value_row_bytes) if values else
        (b.cache.key_format, c.keys, c.key_width, c.key_row_bytes)
    )  # fmt: skip
    b.program.add("store", kernel_attention.store_cache(fmt), x, width // c.n_heads, stride, rows,
                  row_bytes // c.n_heads, c.n_slots, c.n_heads, wait=wait)  # fmt: skip


def finish(b: Builder, i: int, x: np.ndarray, mixed: np.ndarray, width: int) -> None:
    """Output projection, post norm where there is one, residual."""
    h, p = b.h, f"blk.{i}."
    weight = b.w.get(p + "attn_output.weight", (width, h.hidden))
    if (inner := b.vector(p + "attn_sub_norm.weight", width)) is not None:
        b.norm(mixed, inner, mixed, width)
    behind = h.style.norms_behind or p + "ffn_norm.weight" in b.w.tensors
    post = b.vector(p + "post_attention_norm.weight", h.hidden) if behind else None
    b.join(x, mixed, weight, b.vector(p + "attn_output.bias", h.hidden), post)


def plain(b: Builder, i: int, x: np.ndarray, normed: np.ndarray, angles: np.ndarray | None) -> None:
    h, p, c = b.h, f"blk.{i}.", b.cache.layers[i]
    n_kv, heads = h.n_kv_heads[i], h.heads[i]
    own, dim = heads.n_queries, heads.width
    gated = h.style.recurrent == "delta"  # queries come with a gate of their own width, head by head
    shares = h.sources[i] != i  # keys and values are another layer's
    widths = [0 if gated else own, *((0, 0) if shares else (n_kv * dim, n_kv * heads.value_width))]
    total = sum(widths)
    qkv = b.floats("qkv", total)
    starts = [0, widths[0], widths[0] + widths[1]]
    parts = [qkv[s:] for s in starts]
    outs, strides = list(parts), [total] * 3
    if gated:
        outs[0], strides[0], widths[0] = b.floats("q_and_gate", 2 * own), 2 * own, 2 * own
    keys_are_values = (
        h.style.norms_values and not {p + f"attn_{n}.weight" for n in ("v", "qkv")} & b.w.tensors.keys()
    )
    fused = b.w.find(p + "attn_qkv.weight", (h.hidden, total))
    if fused is not None:
        b.project(normed, h.hidden, [(fused, qkv, total, b.vector(p + "attn_qkv.bias", total))])
    else:
        b.project(normed, h.hidden, [
            (b.w.get(f"{p}attn_{name}.weight", (h.hidden, width)), out, stride, b.vector(f"{p}attn_{name}.bias", width))
            for name, width, out, stride in zip("qkv", widths, outs, strides, strict=True)
            if name == "q" or not (shares or (name == "v" and keys_are_values))
        ])  # fmt: skip
    q, q_stride, gate = qkv, total, None
    if gated:
        q, q_stride, gate = b.floats("q", own), own, b.floats("q_gate", own)
        for source, out in ((outs[0], q), (outs[0][dim:], gate)):
            b.program.add(
                "slice",
                kernel_ops.slice_heads,
                source,
                2 * dim,
                out,
                dim,
                dim,
                heads.n,
            )
    if h.clamp:
        b.gate(kernel_ops.CLAMP, qkv, None, qkv, total, (total, total, total), limit=h.clamp)
    if h.style.norms_values and not shares:
        source = parts[1 if keys_are_values else 2]
        b.norm(source, None, parts[2], heads.value_width, n_kv, stride=total)
    turned = [("q", q, heads.n, q_stride)]
    if not shares:
        turned.append(("k", parts[1], n_kv, total))
        store(b, c, True, parts[2], total, wait=False)
    for name, part, n, stride in turned:
        if h.style.turns_first:
            rotate(b, i, part, n, dim, stride, angles)
        _norm_heads(b, p + f"attn_{name}_norm.weight", part, n, dim, stride, bare=angles is not None)
        if not h.style.turns_first:
            rotate(b, i, part, n, dim, stride, angles, wait=name == turned[-1][0])
    if h.temper and (angles is None or h.architecture != "llama4"):
        b.program.add("temper", kernel_rows.temper, q, own, q_stride, *h.temper)
    if not shares:
        store(b, c, False, parts[1], total, wait=True)
    mixed = b.floats("mixed", heads.n_mixed)
    seen = blocks.sight(b, i, normed, angles) if h.indexes[i] else Sight(c, h.windows[i])
    attend(b, i, q, q_stride, n_kv, seen, b.vector(p + "attn_sinks.weight", heads.n), mixed)
    if h.value_scale != 1.0:
        n = heads.n_mixed
        b.program.add("scale", kernel_ops.add, None, mixed, n, 0, n, h.value_scale)
    if gate is not None:
        b.gate(kernel_ops.LOGISTIC, gate, mixed, mixed, own, (own, own, own))
    elif not h.style.recurrent:
        gate_by_input(b, i, normed, mixed, heads.value_width)
    finish(b, i, x, mixed, heads.n_mixed)


def gate_by_input(b: Builder, i: int, normed: np.ndarray, mixed: np.ndarray, width: int) -> None:
    """mixed *= sigmoid of what the layer reads, projected, where the model has that: by number, or one for a head of
    values that are `width` wide."""
    h, own = b.h, b.h.heads[i]
    weight = b.w.find(f"blk.{i}.attn_gate.weight")
    if weight is None:
        return
    n = own.n if weight.rows == own.n else own.n * width
    b.w.get(weight.name, (h.hidden, n))
    gate = b.floats("q_gate", n)
    b.project(normed, h.hidden, [(weight, gate, n, None)])
    if n == own.n:
        b.program.add("scale", kernel_ops.scale_by_gate, mixed, width, gate, n)
    else:
        b.gate(kernel_ops.LOGISTIC, gate, mixed, mixed, n, (n, n, n))


def _norm_heads(
    b: Builder, name: str, x: np.ndarray, heads: int, width: int, stride: int, bare: bool
) -> None:
    """Norm of queries or keys, where the model has one: of each head, with one vector or one for each, or of all heads
    together. `bare`: Llama 4 norms without weights."""
    h, weight = b.h, b.w.find(name)
    if weight is None:
        if bare and h.architecture == "llama4" and h.n_experts != 128:  # Maverick has none
            b.norm(x, None, x, width, heads, stride)
        return
    if (bias := name.removesuffix("weight") + "bias") in b.w.tensors:
        raise UnsupportedModel(
            f"{b.w.name}: tensor `{bias}`: a bias of that norm is not supported by the runner"
        )
    together = heads > 1 and weight.shape == (heads * width,)
    each = weight.shape == (width, heads)
    values = b.vector(name, heads * width if together or each else width)
    if together:
        b.norm(x, values, x, heads * width, stride=stride)
    else:
        b.norm(x, values, x, width, heads, stride, head_stride=width if each else 0)
