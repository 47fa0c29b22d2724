"""Attention over a cache: softmax attention of any grouping, and latent attention, absorbed or not."""

from __future__ import annotations

from estimators.ggml_alloc import Node, size_of
from estimators.llamacpp_graph.builder import Builder, CacheInputs
from modeldb.layers import Attention, LatentAttention


def softmax_attention(b: Builder, a: Attention, x: Node) -> Node:
    """One attention block from its normed input to its output projection."""
    g, ring = b.graph, b.ring and bool(a.window_tokens)
    q_width, k_width, v_width = _widths(a)
    q, k, v, gate = _fused(b, a, x) if b.layout.fused_qkv else _separate(b, a, x)
    if not (b.style.no_rope or (b.style.no_rope_in_full_layers and not a.window_tokens)):
        q, k = b.rope(q, q_width), b.rope(k, k_width)
    cache = b.window if ring else b.full
    if cache.k_rotation is not None:
        q = g.view(g.op(size_of(t=q_width), cache.k_rotation, g.view(q)))
        k = g.view(g.op(size_of(t=k_width), cache.k_rotation, g.view(k)))
    if cache.v_rotation is not None:
        v = g.op(size_of(t=v_width), v) if b.layout.fused_qkv else g.view(v)
        v = g.view(g.op(size_of(t=v_width), cache.v_rotation, v))
    for node in (q, k, v) if b.ring else (q, v, k):
        g.expand(node)
    g.expand(g.store(g.view(k), cache.k_index))
    joined = b.layout.fused_qkv and not b.flash and cache.v_rotation is None
    g.expand(g.store(g.view(g.op(size_of(t=v_width), v) if joined else v), cache.v_index))
    out_width = a.n_heads * a.value_dim
    out = _heads(b, g.view(g.view(q)), cache, a.n_heads, out_width, ring=ring)
    if cache.v_rotation is not None:
        out = g.view(g.op(size_of(t=out_width), cache.v_rotation, g.view(out)))
    if gate is not None:
        out = b.add(out, b.in_place(gate), gate.size)
    out = b.matmul(out, b.hidden)
    return b.in_place(out) if a.output_bias else out


def _widths(a: Attention) -> tuple[int, int, int]:
    """Numbers per token of queries, keys and values."""
    return a.n_heads * a.head_dim, a.n_kv_heads * a.head_dim, a.n_kv_heads * a.value_dim


Projected = tuple[Node, Node, Node, Node | None]  # queries, keys, values, gate of the output


def _fused(b: Builder, a: Attention, x: Node) -> Projected:
    qkv = b.matmul(x, sum(_widths(a)))
    if a.qkv_bias:
        qkv = b.in_place(qkv)
    return b.graph.view(qkv), b.graph.view(qkv), b.graph.view(qkv), None


def _separate(b: Builder, a: Attention, x: Node) -> Projected:
    g = b.graph
    q_width, k_width, v_width = _widths(a)
    q = b.matmul(x, q_width * (2 if a.gate == "double_q" else 1))
    k, v = b.matmul(x, k_width), b.matmul(x, v_width)
    if a.qkv_bias:
        q, k, v = (b.in_place(node) for node in (q, k, v))
    if a.qk_norm == "full":
        q, k = b.norm(q, q.size), b.norm(k, k.size)
    if a.gate == "double_q":
        whole = q
        q = b.norm(g.op(size_of(t=q_width), g.view(whole)), size_of(t=q_width))
        gate = g.op(size_of(t=q_width), g.view(whole))
        return q, b.norm(g.view(k), k.size), v, gate
    q, k, v = g.view(q), g.view(k), g.view(v)
    if a.qk_norm in ("head", "qk_ln_heads"):
        q, k = b.norm(q, size_of(t=q_width)), b.norm(k, size_of(t=k_width))
    return q, k, v, None


def _heads(
    b: Builder, q: Node, cache: CacheInputs, n_heads: int, width: float, ring: bool = False, latent: float = 0
) -> Node:
    """Scores, softmax and weighted values; one fused operation with flash attention."""
    g, cells = b.graph, "tw" if ring else "tf"
    if b.flash:
        out = g.op(size_of(t=latent or width), q, cache.mask)
        if latent:
            out = g.op(size_of(t=width), g.view(out))
            out = g.op(size_of(t=width), g.view(out))
        out = g.view(out)
    else:
        scores = g.op(size_of(**{cells: n_heads}), q)
        scores = b.in_place(scores, cache.mask)
        out = g.op(size_of(t=latent or width), scores)
        if latent:
            out = g.op(size_of(t=width), out)
        out = g.op(size_of(t=width), g.view(out))
    g.expand(out)
    return out


def latent_attention(b: Builder, a: LatentAttention, x: Node) -> Node:
    """Multi-head latent attention: over the latents themselves, or over keys and values expanded from them."""
    g = b.graph
    q = g.view(_latent_queries(b, a, x))
    compressed = b.matmul(x, a.kv_rank + a.rope_dim)
    latent, k_rope = g.view(compressed), g.view(compressed)
    if _turns(b):
        k_rope = g.op(size_of(t=a.rope_dim), k_rope, b.position)
    latent = b.in_place(g.op(size_of(t=a.kv_rank), latent))
    attend = _expanded if b.layout.decompressed_latent else _absorbed
    out = attend(b, a, q, latent, k_rope)
    if a.head_gate:
        width = size_of(t=a.n_heads * a.value_dim)
        out = g.op(width, b.add(out, b.in_place(g.view(b.matmul(x, a.n_heads))), width))
    return b.matmul(out, b.hidden)


def _turns(b: Builder) -> bool:
    """Kimi Linear's latent attention has no rotary position, though it keeps the dimensions."""
    return b.architecture != "kimi-linear"


def _latent_queries(b: Builder, a: LatentAttention, x: Node) -> Node:
    width = a.n_heads * (a.nope_dim + a.rope_dim)
    if not a.q_rank:
        return b.matmul(x, width)
    low = b.matmul(x, a.q_rank)
    return b.matmul(b.norm(low, low.size), width)


def _absorbed(b: Builder, a: LatentAttention, q: Node, latent: Node, k_rope: Node) -> Node:
    """The key's expansion is multiplied into the queries, so that one latent serves all heads."""
    g, h = b.graph, a.n_heads
    q_rope = g.view(q)
    if _turns(b):
        q_rope = g.op(size_of(t=h * a.rope_dim), q_rope, b.position)
    q_nope = g.op(size_of(t=h * a.kv_rank), g.view(g.view(q)))
    query = g.op(size_of(t=h * (a.kv_rank + a.rope_dim)), g.view(q_nope), q_rope)
    value = g.view(latent)
    k = g.op(size_of(t=a.kv_rank + a.rope_dim), value, k_rope)
    for node in (query, value, k):
        g.expand(node)
    g.expand(g.store(g.view(k), b.full.k_index))
    return _heads(b, g.view(g.view(query)), b.full, h, h * a.value_dim, latent=h * a.kv_rank)


def _expanded(b: Builder, a: LatentAttention, q: Node, latent: Node, k_rope: Node) -> Node:
    """Keys and values of every head are made from the latent, and cached."""
    g, h = b.graph, a.n_heads
    width = h * (a.nope_dim + a.rope_dim)
    kv = b.matmul(latent, h * (a.nope_dim + a.value_dim))
    v = g.op(size_of(t=h * a.value_dim), g.view(kv))
    q = g.op(size_of(t=width), q, b.position)
    k = g.op(size_of(t=width), g.view(kv), g.op(size_of(t=h * a.rope_dim), k_rope))
    for node in (q, v, k):
        g.expand(node)
    g.expand(g.store(g.view(k), b.full.k_index))
    g.expand(g.store(g.view(v), b.full.v_index))
    return _heads(b, g.view(g.view(q)), b.full, h, h * a.value_dim)
