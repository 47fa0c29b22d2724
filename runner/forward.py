"""The forward pass of every supported architecture, as a program of operations.

One builder serves all: what a layer does follows from the tensors it has (biases, head norms, post norms,
experts,
sinks) and from `runner.hyper`. Programs exist for one token (`one`), for many with logits of the last
(`last`), and
for many with logits of each (`all`).
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import numpy as np

from modeldb.errors import UnsupportedModel
from runner import (
    attention,
    compressed_attention,
    connections,
    feed_forward,
    kernel_ops,
    kernel_prefix,
    kernel_rows,
    latent,
    layer_inputs,
    recurrent,
    rotation,
    streams,
)
from runner.builder import Builder
from runner.cache import KvCache
from runner.hyper import Hyper
from runner.program import Program
from runner.room import Room
from runner.weights import Weights

Mode = Literal["one", "last", "all"]


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
    _add_positions(b, x)
    if h.style.norms_words:
        b.norm(x, None, x, h.hidden)
    if h.architecture == "bloom":
        b.norm_by("token_embd_norm", x, x)
    rotating = {h.turns_near(i) for i, turns in enumerate(h.rotates) if turns and h.rotary}
    angles = {windowed: _angles(b, windowed) for windowed in sorted(rotating)}
    if h.compressed:
        compressed_attention.prepare(b, rotating)
    inputs = layer_inputs.prepare(b, x)
    if h.embedded.streams:
        x = streams.begin(b, x)
    elif h.connections:
        x = connections.begin(b, x)
    final = max((i for i in range(h.n_layers) if not h.idle[i]), default=0)
    for i in range(h.n_layers):
        b.mark()
        if h.idle[i]:
            continue
        last = mode == "last" and i == final
        turns = angles.get(h.turns_near(i)) if h.rotates[i] else None
        if h.embedded.streams and inputs is not None:
            streams.layer(b, i, x, turns, inputs, last)
        elif h.connections:
            mix, feed = partial(_mix, b, i, angles=turns), partial(feed_forward.add, b, i)
            connections.layer(b, i, x, mix, feed, last)
        else:
            _layer(b, i, x, turns, inputs, last)
    b.mark()
    if h.embedded.streams:
        x = streams.end(b, x)
    elif h.connections:
        x = connections.end(b, x)
    normed = b.floats("normed", h.hidden)
    lfm2 = "output_norm.weight" not in w.tensors and "token_embd_norm.weight" in w.tensors
    b.norm_by("token_embd_norm" if lfm2 else "output_norm", x, normed)
    head = w.head(h.style.spare_words)
    vocab = head.rows
    rows = room.n_batch if mode == "all" else 1
    logits = room.floats("all_logits" if mode == "all" else "logits", vocab * rows)
    b.project(normed, h.hidden, [(head, logits, vocab, b.vector("output.bias", vocab))])
    if h.logit_scale != 1.0:
        b.program.add("scale", kernel_ops.add, None, logits, vocab, 0, vocab, 1.0 / h.logit_scale)
    if h.logit_cap:
        b.program.add("cap", kernel_ops.soft_cap, logits, vocab * rows, float(h.logit_cap))
    return b.program.finish(), logits, b.touched, b.flops


def _layer(b: Builder, i: int, x: np.ndarray, angles: np.ndarray | None, inputs: np.ndarray | None,
           last: bool) -> None:  # fmt: skip
    """x += the mixers' output, the feed-forward's and that of the layer's own `inputs`. `last`: what follows the mixers
    sees the last token alone."""
    h, p = b.h, f"blk.{i}."
    mixes = h.attends[i] or h.recurs[i]
    source, fed = x, None
    if mixes and not h.style.norms_behind:
        source = b.floats("normed", h.hidden)
        b.norm_by(p + "attn_norm", x, source)
        if h.parallel and (h.style.parallel != "unnormed" or p + "ffn_norm.weight" not in b.w.tensors):
            source, fed = _beside(b, p, x, source)
    _mix(b, i, x, source, angles)
    if last:
        later = feed_forward.shortcut(b)
        b.last_token(
            (x, h.hidden),
            (fed, h.hidden),
            (later, h.hidden),
            (inputs, h.embedded.width * h.embedded.n_layers),
        )
    if not h.style.recurrent or any(n in b.w.tensors for n in recurrent.feed_forward_names(i)):
        feed_forward.add(b, i, x, fed)
    if inputs is not None:
        out = layer_inputs.gated(b, i, x, inputs)
        b.program.add("add", kernel_ops.add, out, x, h.hidden, h.hidden, h.hidden, 1.0)
    if (scale := b.vector(p + "layer_output_scale.weight", 1)) is not None:
        b.program.add("scale", kernel_ops.add, None, x, h.hidden, 0, h.hidden, float(scale[0]))


def _mix(b: Builder, i: int, x: np.ndarray, source: np.ndarray, angles: np.ndarray | None) -> None:
    """x += the output of layer i's mixers for `source`."""
    h = b.h
    if h.attends[i]:
        mix = latent.decompressed if h.decompressed else latent.absorbed if h.is_latent else attention.plain
        mix = compressed_attention.mix if h.compressed else mix
        mix(b, i, x, source, angles)
    if h.recurs[i]:
        recurrent.mix(b, i, x, source)


def _beside(b: Builder, p: str, x: np.ndarray, normed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What mixer and feed-forward read where both read the layer's input: the same, or each its own norm of it."""
    own = next((n for n in ("attn_norm_2", "ffn_norm") if f"{p}{n}.weight" in b.w.tensors), "")
    if not own:
        return normed, normed
    other = b.floats("normed_beside", b.h.hidden)
    b.norm_by(p + own, x, other)
    return (other, normed) if own == "attn_norm_2" else (normed, other)


def _add_positions(b: Builder, x: np.ndarray) -> None:
    """Learned positions, where the model has them. Raises UnsupportedModel where the context is longer."""
    table = b.w.find("position_embd.weight")
    if table is None:
        return
    hidden = b.h.hidden
    b.w.get(table.name, (hidden, table.rows))
    first = b.h.style.first_position
    if table.rows - first < b.cache.n_context:
        raise UnsupportedModel(
            f"{b.w.name}: its positions end at {table.rows - first} tokens, not {b.cache.n_context}"
        )
    found = b.floats("positions", hidden)
    rows = table.address + first * table.row_bytes
    b.program.add("positions", kernel_rows.positions(table.format), rows, table.row_bytes, hidden, found)
    b.program.add("add", kernel_ops.add, found, x, hidden, hidden, hidden, 1.0)
    b.touched += table.row_bytes


def _angles(b: Builder, windowed: bool) -> np.ndarray:
    names: tuple[str, ...] = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
    if windowed and b.h.style.local_base is not None:  # these layers rotate without scaling
        names = ()
    widest = max(x.rotary for x in b.h.heads)
    tables = {n: v for n in names if (v := b.vector(n, widest // 2)) is not None}
    frequency, magnitude = rotation.frequencies(b.h, windowed, tables, b.cache.n_context)
    out = b.floats(f"angles_{windowed}", 2 * len(frequency))
    if b.h.style.prefixed:
        behind = b.floats("angles_behind", 2 * len(frequency))
        for plane, angles in enumerate((out, behind)):
            b.program.add("angles", kernel_prefix.plane_angles, frequency, len(frequency), angles, plane)
        return out
    b.program.add("angles", kernel_ops.rope_angles, frequency, len(frequency), out, magnitude)
    return out
