"""Feed-forwards, dense and of experts."""

from __future__ import annotations

from estimators.ggml_alloc import Node, size_of
from estimators.llamacpp_graph.builder import Builder, Rows
from modeldb.layers import Dense, Experts


def feed_forward(b: Builder, f: Dense | Experts, x: Node, rows: Rows) -> Node:
    """One feed-forward of either kind, over all tokens or over those whose logits are wanted."""
    return _experts(b, f, x, rows) if isinstance(f, Experts) else _dense(b, f, x, rows)


def _dense(b: Builder, f: Dense, x: Node, rows: Rows) -> Node:
    g, width = b.graph, size_of(**{rows: f.inner})
    if f.n_matrices == 2:
        act = b.matmul(x, f.inner, rows)
        if f.bias:
            act = b.in_place(act)
        act = b.in_place(act)
    elif b.layout.fused_gate_up:
        act = g.op(width, b.matmul(x, 2 * f.inner, rows))
    else:
        up, gate = b.matmul(x, f.inner, rows), b.matmul(x, f.inner, rows)
        act = g.op(width, gate, up)
    out = b.matmul(act, b.hidden, rows)
    return b.in_place(out) if f.bias else out


def _experts(b: Builder, f: Experts, x: Node, rows: Rows) -> Node:
    """Router, the chosen experts' products, their weighted sum, and the shared expert."""
    g, width = b.graph, f.latent or b.hidden
    order, weights = _route(b, f, x, rows)
    source = g.view(x if not f.latent else b.matmul(x, f.latent, rows))
    if b.style.weigh_input:
        source = b.in_place(g.op(size_of(**{rows: f.per_token * width}), source), weights)
    act = _activations(b, f, source, order, rows)
    down = g.op(size_of(**{rows: f.per_token * width}), act, order)
    if f.bias:
        down = b.in_place(down, order)
    if not b.style.weigh_input:
        down = b.in_place(down, weights)
    g.expand(down)
    out = _summed(b, down, f.per_token, width, rows)
    if f.latent:
        out = b.matmul(out, b.hidden, rows)
    return b.add(out, _shared(b, f, x, rows), out.size) if f.shared_inner else out


def _route(b: Builder, f: Experts, x: Node, rows: Rows) -> tuple[Node, Node]:
    """(the chosen experts of each token, their normalised weights)."""
    g = b.graph
    logits = b.matmul(x, f.n_experts, rows)
    probabilities = b.in_place(logits)
    selection = g.op(logits.size, probabilities) if f.score_bias else probabilities
    order = g.view(g.op(logits.size, selection))  # argsort, its first k
    weights = g.op(size_of(**{rows: f.per_token}), g.view(probabilities), order)
    total = g.op(size_of(**{rows: 1}), g.view(weights))
    weights = g.view(b.in_place(g.view(weights), total))
    g.expand(weights)
    return order, weights


def _activations(b: Builder, f: Experts, source: Node, order: Node, rows: Rows) -> Node:
    """What enters the down products of the chosen experts."""
    g, inner = b.graph, size_of(**{rows: f.per_token * f.inner})
    up = g.op(inner, source, order)
    if f.bias:
        up = b.in_place(up, order)
    if f.n_matrices != 3:
        return b.in_place(up)
    gate = g.op(inner, source, order)
    if f.bias:
        gate = b.in_place(gate, order)
    return g.op(inner, gate, up)


def _summed(b: Builder, down: Node, n_experts: int, width: int, rows: Rows) -> Node:
    """The experts' outputs added one by one; a copy where there is one only."""
    g, size = b.graph, size_of(**{rows: width})
    parts = [g.view(down) for _ in range(n_experts)]
    for part in parts:
        g.expand(part)
    out = parts[0]
    for i, part in enumerate(parts[1:]):
        out = g.op(size, out, part, reuse=(0,) if i else ())  # the first part is a view
        g.expand(out)
    return out if n_experts > 1 else g.op(size, out)


def _shared(b: Builder, f: Experts, x: Node, rows: Rows) -> Node:
    shared = _dense(b, Dense(f.shared_inner, f.n_matrices), x, rows)
    if not f.shared_gate:
        return shared
    return b.in_place(shared, b.in_place(b.matmul(x, 1, rows)))
