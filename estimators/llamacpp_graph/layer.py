"""One layer: norms, mixers, feed-forwards and the sums between them."""

from __future__ import annotations

from estimators.ggml_alloc import Node, Size, size_of
from estimators.llamacpp_graph.attention import latent_attention, softmax_attention
from estimators.llamacpp_graph.builder import Builder, Rows
from estimators.llamacpp_graph.feed_forward import feed_forward
from estimators.llamacpp_graph.lightning import lightning_attention
from estimators.llamacpp_graph.recurrent import linear_attention, mamba, short_convolution
from modeldb.layers import (
    Attention,
    Block,
    CompressedAttention,
    Convolution,
    CrossAttention,
    LatentAttention,
    LinearAttention,
    Mixer,
    StateSpace,
)


def layer(b: Builder, block: Block, x: Node, wanted: Node | None) -> Node:
    """The residual stream after one block; `wanted` selects the rows whose logits are asked for."""
    parallel = any(isinstance(m, Attention) and m.parallel for m in block.mixers)
    residual, out, normed = _mixed(b, block, x)
    rows: Rows = "t"
    if wanted is not None:
        rows, narrow = "o", size_of(o=b.hidden)
        if block.mixers:
            out = b.graph.op(narrow, out, wanted)
            residual = b.graph.op(narrow, residual, wanted)
            if parallel:
                normed = b.graph.op(narrow, normed, wanted)
        else:
            residual = b.graph.op(narrow, x, wanted)
    size = size_of(**{rows: b.hidden})
    if parallel:
        write = _stablelm if b.architecture == "stablelm" else _parallel
        return write(b, block, out, residual, normed, rows)
    x = b.in_place(residual) if b.style.carried else residual
    if block.mixers:
        x = _sum(b, out, x, size, b.style.residual_first == "both")
    for f in block.feed_forwards:
        read = x if _post_only(b) else b.norm(x, size)
        inner = feed_forward(b, f, read, rows)
        if _post_only(b) or b.style.post_norm:
            inner = b.norm(inner, size)
        x = _sum(b, inner, b.in_place(read) if b.style.carried else x, size, bool(b.style.residual_first))
    return x


def _post_only(b: Builder) -> bool:
    """OLMo 2 norms what mixers and feed-forwards give, not what they take."""
    return b.architecture == "olmo2"


def _sum(b: Builder, new: Node, residual: Node, size: Size, residual_first: bool) -> Node:
    return b.add(residual, new, size) if residual_first else b.add(new, residual, size)


def _mixed(b: Builder, block: Block, x: Node) -> tuple[Node, Node, Node]:
    """(the residual, what the mixers give, what they were given)."""
    if not block.mixers:
        return x, x, x
    full = size_of(t=b.hidden)
    normed = x if _post_only(b) else b.norm(x, full)
    if any(isinstance(m, LinearAttention) for m in block.mixers) and not b.style.early_states:
        b.graph.expand(normed)  # before the state's rows are gathered
    out = _mix(b, block, x, normed)
    if _post_only(b) or b.style.post_norm:
        out = b.norm(out, full)
    return normed if b.style.carried else x, out, normed


def _mix(b: Builder, block: Block, source: Node, normed: Node) -> Node:
    """The sum of a block's mixers."""
    outs: list[Node] = []
    for mixer in block.mixers:
        if outs and b.style.norm_twice:
            normed = b.norm(source, normed.size)
        outs.append(_mixer(b, mixer, normed))
    out = outs[0]
    for other in outs[1:]:
        out = b.add(out, other, size_of(t=b.hidden))
    return out


def _mixer(b: Builder, mixer: Mixer, x: Node) -> Node:
    match mixer:
        case Attention():
            return softmax_attention(b, mixer, x)
        case LatentAttention():
            return latent_attention(b, mixer, x)
        case StateSpace():
            return mamba(b, mixer, x)
        case LinearAttention(kind="lightning"):
            return lightning_attention(b, mixer, x)
        case LinearAttention():
            return linear_attention(b, mixer, x)
        case Convolution():
            return short_convolution(b, mixer, x)
        case CrossAttention() | CompressedAttention():  # not followed step by step: queries, then output
            width = mixer.n_heads * mixer.head_dim
            return b.matmul(b.graph.op(size_of(t=width), b.graph.op(size_of(t=2 * width), x)), b.hidden)


def _stablelm(b: Builder, block: Block, attention: Node, residual: Node, normed: Node, rows: Rows) -> Node:
    """The feed-forward takes attention's normed input, after attention was added."""
    size = size_of(**{rows: b.hidden})
    x = b.add(attention, residual, size)
    return b.add(feed_forward(b, block.feed_forwards[0], normed, rows), x, size)


def _parallel(b: Builder, block: Block, attention: Node, residual: Node, normed: Node, rows: Rows) -> Node:
    """Attention and feed-forward beside each other, with one norm or two."""
    size = size_of(**{rows: b.hidden})
    x = normed if block.n_norms == 1 else b.norm(residual, size)
    out = feed_forward(b, block.feed_forwards[0], x, rows)
    if b.architecture == "phi2":
        return b.add(b.add(attention, out, size), residual, size)
    return b.add(b.add(out, residual, size), attention, size)
