"""Layers that keep a state: Mamba, linear attention (gated delta rule, KDA), short convolution."""

from __future__ import annotations

from estimators.ggml_alloc import Node, size_of
from estimators.llamacpp_graph.builder import Builder
from modeldb.layers import Convolution, LinearAttention, StateSpace


def _state(b: Builder, elements: float) -> Node:
    """The rows of a recurrent state, gathered for the sequences of this batch."""
    node = b.graph.op(size_of(s=elements), b.copies)
    b.graph.expand(node)
    return node


def _causal_conv(b: Builder, x: Node, channels: float, kernel: int, tail: Node | None = None) -> Node:
    """Concatenate the last inputs, keep the new tail, convolve."""
    g = b.graph
    tail = tail or _state(b, channels * (kernel - 1))
    joined = g.op(size_of(t=channels, s=channels * (kernel - 1)), g.view(tail), g.view(x))
    g.expand(g.store(g.view(joined)))
    return g.op(size_of(t=channels), joined)


def mamba(b: Builder, m: StateSpace, x: Node) -> Node:
    """A state-space block of version 1 or 2: projections, convolution, scan, gate."""
    g, width, first = b.graph, size_of(t=m.inner), m.version == 1
    u, z, scanned = _mamba1_inputs(b, m, x) if first else _mamba2_inputs(b, m, x)
    scan = g.op(size_of(t=m.inner, s=m.inner * m.state), g.view(u) if first else u, *scanned, b.copies)
    g.expand(scan)
    g.expand(g.store(g.view(scan)))
    skip = g.op(width, u, reuse=(0,) if first else ())
    y = b.add(g.view(scan), skip, width)
    y = g.op(width, g.op(width, z), y)
    if not first and m.normed:
        y = b.norm(g.view(y), width)
    return g.view(b.matmul(g.view(y), b.hidden))


Scanned = tuple[Node, Node, tuple[Node, Node, Node]]  # input, gate, (step size, B, C)


def _mamba1_inputs(b: Builder, m: StateSpace, x: Node) -> Scanned:
    g = b.graph
    xz = b.matmul(g.view(x), 2 * m.inner)
    u, z = g.view(xz), g.view(xz)
    u = b.in_place(b.in_place(_causal_conv(b, u, m.inner, m.conv_kernel)))
    small = b.matmul(u, m.dt_rank + 2 * m.state)
    dt, in_, out = g.view(small), g.view(small), g.view(small)
    if m.inner_norms:
        dt, in_, out = (
            b.norm(g.op(size_of(t=width), node), size_of(t=width))
            for node, width in ((dt, m.dt_rank), (in_, m.state), (out, m.state))
        )
    else:
        dt = g.op(size_of(t=m.dt_rank), dt)
    return u, z, (b.in_place(b.matmul(dt, m.inner)), in_, out)


def _mamba2_inputs(b: Builder, m: StateSpace, x: Node) -> Scanned:
    g, channels = b.graph, m.inner + 2 * m.n_groups * m.state
    projected = g.view(b.matmul(x, m.inner + channels + m.n_heads))
    z, mixed, dt = g.view(projected), g.view(projected), g.view(projected)
    conv = b.in_place(b.in_place(_causal_conv(b, mixed, channels, m.conv_kernel)))
    u, in_, out = g.view(conv), g.view(conv), g.view(conv)
    return u, z, (b.in_place(g.op(size_of(t=m.n_heads), dt)), in_, out)


def linear_attention(b: Builder, a: LinearAttention, x: Node) -> Node:
    """The gated delta rule, or Kimi's delta attention."""
    g, delta = b.graph, a.kind == "gated_deltanet"
    v_width, state_size = a.n_v_heads * a.v_dim, a.n_v_heads * a.k_dim * a.v_dim
    out = g.op(size_of(t=v_width, s=state_size), *(_delta_rule if delta else _kda)(b, a, x, state_size))
    y, new_state = g.view(out), g.view(out)
    if not delta:
        y = g.op(size_of(t=v_width), y)
    g.expand(g.store(new_state))
    if delta:
        z = b.matmul(x, v_width)
    else:
        z, y = b.matmul(_narrow(b, a, g.view(x), a.v_dim), v_width), g.view(y)
    gated = b.add(b.norm(y, size_of(t=v_width)), b.in_place(g.view(z)), size_of(t=v_width))
    if a.kind == "kda":
        gated = g.op(gated.size, gated)
    return g.view(b.matmul(g.view(gated), b.hidden))


Updated = tuple[Node, Node, Node, Node, Node, Node]  # queries, keys, values, decay, beta, state


def _delta_rule(b: Builder, a: LinearAttention, x: Node, state_size: int) -> Updated:
    """One projection and one convolution over queries, keys and values; a decay per head."""
    g, k_width = b.graph, a.n_k_heads * a.k_dim
    channels = 2 * k_width + a.n_v_heads * a.v_dim
    mixed = g.view(b.matmul(x, channels))
    beta = b.in_place(g.view(b.matmul(x, a.n_v_heads)))
    decay = _decay(b, g.view(b.matmul(x, a.n_v_heads)))
    conv = _causal_conv(b, mixed, channels, a.conv_kernel)
    state = _state(b, state_size)
    conv = b.in_place(conv)
    q, k = (g.op(size_of(t=k_width), g.view(conv)) for _ in range(2))
    return q, k, g.view(conv), decay, beta, g.view(state)


def _kda(b: Builder, a: LinearAttention, x: Node, state_size: int) -> Updated:
    """A projection and a convolution for each of queries, keys and values; a decay per channel."""
    g, k_width, v_width = b.graph, a.n_k_heads * a.k_dim, a.n_v_heads * a.v_dim
    tails = _state(b, (2 * k_width + v_width) * (a.conv_kernel - 1))
    q, k, v = (
        g.view(b.in_place(_causal_conv(b, b.matmul(x, width), width, a.conv_kernel, tails)))
        for width in (k_width, k_width, v_width)
    )
    decay = _decay(b, b.matmul(_narrow(b, a, x, a.k_dim), k_width))
    beta = b.in_place(g.view(b.matmul(x, a.n_v_heads)))
    state = g.view(_state(b, state_size))
    return g.op(size_of(t=k_width), q), g.op(size_of(t=k_width), k), v, decay, beta, state


def _narrow(b: Builder, a: LinearAttention, x: Node, width: int) -> Node:
    """What a gate's wide matrix multiplies: Ling 3.0's take the input itself."""
    return x if a.full_gates else b.matmul(x, width)


def _decay(b: Builder, x: Node) -> Node:
    """A bias, a softplus and a scale."""
    for _ in range(3):
        x = b.in_place(x)
    return x


def short_convolution(b: Builder, c: Convolution, x: Node) -> Node:
    """LFM2's gated convolution over the last few tokens."""
    g, d = b.graph, b.hidden
    bcx = b.matmul(g.view(x), 3 * d)
    before, after, u = g.view(bcx), g.view(bcx), g.view(bcx)
    conv = _causal_conv(b, g.op(size_of(t=d), before, u), d, c.conv_kernel)
    return g.view(b.matmul(g.op(size_of(t=d), after, conv, reuse=(1,)), d))
