"""Lightning attention (MiniMax-01): what a micro-batch's tokens take from each other, and from the state before them.

Follows src/models/minimax-01.cpp of llama.cpp 0c1e57098, which multiplies all queries of a sequence with all its keys:
a square of the micro-batch for each head.
"""

from __future__ import annotations

from estimators.ggml_alloc import Graph, size_of
from estimators.llamacpp_graph.builder import Builder, Decays, Node
from modeldb.layers import LinearAttention


def inputs(g: Graph, heads: int) -> Decays:
    """What the layers share, with so many heads."""
    by_token = size_of(t=heads)
    return Decays(
        g.input(size_of(one=heads)), g.input(by_token), g.input(by_token), g.input(size_of(tt=heads))
    )


def lightning_attention(b: Builder, a: LinearAttention, x: Node) -> Node:
    """One mixer from its normed input to its output projection."""
    decays = b.decays
    assert decays is not None
    g, width, square = b.graph, size_of(t=a.n_v_heads * a.v_dim), size_of(s=a.n_v_heads * a.k_dim * a.v_dim)
    slopes = b.in_place(decays.slopes)
    state = g.op(square, b.copies)
    g.expand(state)
    mixed = b.in_place(b.matmul(g.view(x), 3 * a.n_v_heads * a.v_dim))
    by_query, by_key, by_pair = (
        b.in_place(b.in_place(exponents)) for exponents in (decays.queries, decays.keys, decays.pairs)
    )
    before = g.op(width, g.view(state), g.view(g.op(width, g.view(mixed), by_query)))
    pairs = g.op(decays.pairs.size, g.view(mixed), g.view(mixed))
    values = g.op(width, g.view(mixed))
    among = g.op(width, values, b.add(pairs, by_pair, pairs.size))
    y = b.add(before, among, width)
    g.expand(y)
    kept = g.op(square, g.view(state), g.view(b.in_place(b.in_place(slopes))))
    learned = g.op(square, g.op(width, g.view(g.op(width, g.view(mixed), by_key))), values)
    g.expand(g.store(b.add(kept, learned, square)))
    y = b.norm(g.view(g.op(width, g.view(y))), width)
    gated = b.add(b.in_place(b.matmul(g.view(x), a.n_v_heads * a.v_dim)), y, width)
    return g.view(b.matmul(gated, b.hidden))
