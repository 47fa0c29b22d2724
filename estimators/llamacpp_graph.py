"""llama.cpp's compute graph of one micro-batch, and ggml's allocator over it: where the compute buffer comes from.

The buffer is deterministic: tensors are placed in graph order, best fit first, freed after their last use, and
some operations write over their input. This module builds the operations of each layer kind with symbolic sizes
(coefficients over six monomials) and replays the allocator. Written after reading llama.cpp at commit 0c1e57098
(`src/llama-graph.cpp`, `src/models/*.cpp`, `ggml/src/ggml-alloc.c`); no weights, caches or host scratch are here,
because llama.cpp keeps them in other buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modeldb.architectures import LAYOUTS, Layout
from modeldb.layers import (
    Attention,
    Block,
    Convolution,
    CrossAttention,
    Dense,
    Experts,
    LatentAttention,
    LinearAttention,
    StateSpace,
)
from modeldb.model import Model

# Sizes in bytes are sums of coefficient x monomial. T: tokens of the micro-batch, F and W: cells of the full and
# of the windowed cache that one sequence stream sees, O: tokens whose logits are wanted, S: sequences.
MONOMIALS = ("1", "T", "TF", "TW", "O", "S")
Size = tuple[float, ...]
ZERO: Size = (0.0,) * len(MONOMIALS)
ALIGNMENT = 32  # bytes; ggml's CPU buffer type


def _size(one: float = 0, t: float = 0, tf: float = 0, tw: float = 0, o: float = 0, s: float = 0) -> Size:
    return (4.0 * one, 4.0 * t, 4.0 * tf, 4.0 * tw, 4.0 * o, 4.0 * s)


class Node:
    """A tensor of the graph. `reuse` are the sources whose memory this operation may write over."""

    __slots__ = ("is_input", "is_output", "reuse", "root", "size", "sources")

    def __init__(
        self,
        size: Size,
        sources: tuple[Node, ...] = (),
        reuse: tuple[int, ...] = (),
        root: Node | None = None,
    ) -> None:
        self.size, self.sources, self.reuse, self.root = size, sources, reuse, root
        self.is_input = self.is_output = False


class Graph:
    """Nodes in the order in which ggml would run them, leaves (inputs) apart."""

    def __init__(self) -> None:
        self.leaves: list[Node] = []
        self.nodes: list[Node] = []
        self._seen: set[int] = set()
        self._keep: list[Node] = []  # ids must stay unique while building

    def input(self, size: Size) -> Node:
        node = Node(size)
        node.is_input = True
        self._keep.append(node)
        return node

    def op(self, size: Size, *sources: Node, reuse: tuple[int, ...] = ()) -> Node:
        node = Node(size, sources, reuse)
        self._keep.append(node)
        return node

    def view(self, source: Node, *more: Node) -> Node:
        node = Node(source.size, (source, *more), (), source.root or source)
        self._keep.append(node)
        return node

    def store(self, *sources: Node) -> Node:
        """A write into a cache outside this buffer: takes no room, but ends its sources' lives."""
        node = Node(ZERO, sources, (), EXTERNAL)
        self._keep.append(node)
        return node

    def expand(self, node: Node) -> None:
        """Append `node` and what it needs, depth first, left to right."""
        if id(node) in self._seen:
            return
        stack: list[tuple[Node, int]] = [(node, 0)]
        self._seen.add(id(node))
        while stack:
            current, i = stack[-1]
            if i < len(current.sources):
                stack[-1] = (current, i + 1)
                source = current.sources[i]
                if id(source) not in self._seen:
                    self._seen.add(id(source))
                    stack.append((source, 0))
                continue
            stack.pop()
            (self.leaves if current.is_input else self.nodes).append(current)


EXTERNAL = Node(ZERO)


class _Heap:
    """ggml's dynamic allocator: a list of free blocks [offset, size], the last one endless."""

    def __init__(self) -> None:
        self.free_blocks: list[list[int]] = [[0, 1 << 62]]
        self.peak = 0

    def take(self, size: int) -> int:
        best, best_size = -1, 1 << 62
        for i in range(len(self.free_blocks) - 1):
            available = self.free_blocks[i][1]
            if size <= available <= best_size:
                best, best_size = i, available
        block = self.free_blocks[best]
        offset = block[0]
        block[0] += size
        block[1] -= size
        if block[1] == 0:
            self.free_blocks.remove(block)
        self.peak = max(self.peak, offset + size)
        return offset

    def give(self, offset: int, size: int) -> None:
        if size == 0:
            return
        blocks = self.free_blocks
        for i, block in enumerate(blocks):
            if block[0] + block[1] == offset:
                block[1] += size
                if i + 1 < len(blocks) and block[0] + block[1] == blocks[i + 1][0]:
                    block[1] += blocks[i + 1][1]
                    del blocks[i + 1]
                return
            if offset + size == block[0]:
                block[0] = offset
                block[1] += size
                return
        at = 0
        while at < len(blocks) and blocks[at][0] < offset:
            at += 1
        blocks.insert(at, [offset, size])


def _padded(size: float) -> int:
    return -(-int(size) // ALIGNMENT) * ALIGNMENT


def peak_bytes(graph: Graph, values: Sequence[float]) -> int:
    """Replay ggml-alloc over `graph` with `values` for MONOMIALS. Returns the buffer's size in bytes."""
    heap = _Heap()
    children: dict[int, int] = {}
    views: dict[int, int] = {}
    place: dict[int, tuple[int, int]] = {}  # id -> (offset, size) while allocated

    def bytes_of(node: Node) -> int:
        return _padded(sum(c * v for c, v in zip(node.size, values, strict=True)))

    def allocate(node: Node) -> None:
        if node.root is not None or node is EXTERNAL or id(node) in place:
            return
        for i in node.reuse:
            parent = node.sources[i]
            if parent.root is not None or id(parent) not in place or parent.is_output:
                continue
            if children[id(parent)] != 1 or views.get(id(parent), 0):
                continue
            offset, old = place.pop(id(parent))
            size = bytes_of(node)
            place[id(node)] = (offset, size)
            heap.give(offset + size, old - size)
            return
        size = bytes_of(node)
        place[id(node)] = (heap.take(size) if size else 0, size)

    for leaf in graph.leaves:
        allocate(leaf)
    for node in graph.nodes:
        if node.root is not None:
            views[id(node.root)] = views.get(id(node.root), 0) + 1
        for source in node.sources:
            children[id(source)] = children.get(id(source), 0) + 1
    for node in graph.nodes:
        allocate(node)
        for source in node.sources:
            children[id(source)] -= 1
            if children[id(source)] or views.get(id(source), 0):
                continue
            owner = source
            if source.root is not None:
                owner = source.root
                views[id(owner)] -= 1
                if views[id(owner)] or children.get(id(owner), 0):
                    continue
            if id(owner) in place and not owner.is_output:
                heap.give(*place.pop(id(owner)))
    return heap.peak


@dataclass(frozen=True, slots=True)
class Style:
    """How llama.cpp writes one architecture's graph, where that moves memory."""

    late_outputs: str = (
        ""  # rows are selected "before norm" or "after norm" at the end, not in the last layer
    )
    residual_first: str = ""  # "both" sums, or the "feed-forward" one, name the residual first
    post_norm: bool = False
    norm_twice: bool = False
    weigh_input: bool = False  # experts' inputs are weighted, not their outputs
    no_rope: bool = False


STYLES = {
    "phi3": Style(residual_first="feed-forward"),
    "lfm2": Style(residual_first="both"),
    "lfm2moe": Style(residual_first="both"),
    "gpt-oss": Style(late_outputs="before norm"),
    "falcon-h1": Style(norm_twice=True),
    "gemma2": Style(post_norm=True),
    "gemma3": Style(post_norm=True),
    "glm4": Style(post_norm=True),
    "gpt2": Style(no_rope=True),
    "starcoder": Style(no_rope=True),
    "bloom": Style(no_rope=True),
    "mpt": Style(no_rope=True),
    "jais": Style(no_rope=True),
    "qwen3next": Style(late_outputs="after norm"),
    "qwen35": Style(late_outputs="after norm"),
    "qwen35moe": Style(late_outputs="after norm"),
    "llama4": Style(weigh_input=True),
    "jamba": Style(no_rope=True, residual_first="both"),
    "nemotron_h": Style(no_rope=True, late_outputs="after norm"),
    "nemotron_h_moe": Style(no_rope=True, late_outputs="after norm"),
    "granitehybrid": Style(no_rope=True),
}


@dataclass(slots=True)
class _Builder:
    """State while one model's graph is written down."""

    graph: Graph
    style: Style
    hidden: int
    flash: bool
    rotate_k: bool
    rotate_v: bool
    layout: Layout = LAYOUTS["llama"]
    layer_norm: bool = False
    ring: bool = False
    architecture: str = ""
    position: Node | None = None
    inputs: dict[str, tuple[Node, ...]] | None = None

    # -- small vocabulary -------------------------------------------------------------------------------------
    def matmul(self, x: Node, width: float, per: str = "t") -> Node:
        return self.graph.op(_size(**{per: width}), x)

    def norm(self, x: Node, size: Size, fresh: bool = True) -> Node:
        """Root mean square or layer norm, then its weight in place."""
        n = self.graph.op(size, x, reuse=() if self.layer_norm else (0,))
        return self.graph.op(size, n, reuse=(0,))

    def add(self, a: Node, b: Node, size: Size) -> Node:
        return self.graph.op(size, a, b, reuse=(0, 1))

    def attention_input(self, key: str) -> tuple[Node, ...]:
        """Key and value row indices, mask and rotation matrices of one cache, made once per graph."""
        assert self.inputs is not None
        return self.inputs[key]

    # -- mixers -----------------------------------------------------------------------------------------------
    def softmax_attention(self, a: Attention, x: Node, key: str) -> Node:
        g, heads = self.graph, a.n_heads
        q_width, k_width, v_width = heads * a.head_dim, a.n_kv_heads * a.head_dim, a.n_kv_heads * a.value_dim
        gate: Node | None = None
        if self.layout.fused_qkv:
            qkv = self.matmul(x, q_width + k_width + v_width)
            if a.qkv_bias:
                qkv = g.op(qkv.size, qkv, reuse=(0,))
            q, k, v = g.view(qkv), g.view(qkv), g.view(qkv)
            if not self.style.no_rope:
                q = g.op(_size(t=q_width), q, self.position, reuse=(0,))  # type: ignore[arg-type]
                k = g.op(_size(t=k_width), k, self.position, reuse=(0,))  # type: ignore[arg-type]
        else:
            double = 2 if a.gate == "double_q" else 1
            q = self.matmul(x, q_width * double)
            k, v = self.matmul(x, k_width), self.matmul(x, v_width)
            if a.qkv_bias:
                q, k, v = (g.op(n.size, n, reuse=(0,)) for n in (q, k, v))
            if a.qk_norm == "full":
                q, k = self.norm(q, q.size), self.norm(k, k.size)
            if a.gate == "double_q":
                whole = q
                q = self.norm(g.op(_size(t=q_width), g.view(whole)), _size(t=q_width))
                gate = g.op(_size(t=q_width), g.view(whole))
                k = self.norm(g.view(k), k.size)
            else:
                q, k, v = g.view(q), g.view(k), g.view(v)
                if a.qk_norm in ("head", "qk_ln_heads"):
                    q, k = self.norm(q, _size(t=q_width)), self.norm(k, _size(t=k_width))
            if not self.style.no_rope:
                q = g.op(_size(t=q_width), q, self.position, reuse=(0,))  # type: ignore[arg-type]
                k = g.op(_size(t=k_width), k, self.position, reuse=(0,))  # type: ignore[arg-type]
        k_index, v_index, mask, *rotations = self.attention_input(key)
        k_rotation = rotations[0] if self.rotate_k else None
        v_rotation = rotations[-1] if self.rotate_v else None
        if k_rotation is not None:
            q = g.view(g.op(_size(t=q_width), k_rotation, g.view(q)))
            k = g.view(g.op(_size(t=k_width), k_rotation, g.view(k)))
        if v_rotation is not None:
            v = g.op(_size(t=v_width), v) if self.layout.fused_qkv else g.view(v)
            v = g.view(g.op(_size(t=v_width), v_rotation, v))
        for node in (q, k, v) if self.ring else (q, v, k):
            g.expand(node)
        g.expand(g.store(g.view(k), k_index))
        joined = self.layout.fused_qkv and not self.flash and v_rotation is None
        g.expand(g.store(g.view(g.op(_size(t=v_width), v) if joined else v), v_index))
        out = self.heads(g.view(g.view(q)), mask, heads, heads * a.value_dim, key)
        if v_rotation is not None:
            out = g.view(g.op(_size(t=heads * a.value_dim), v_rotation, g.view(out)))
        if gate is not None:
            out = self.add(out, g.op(gate.size, gate, reuse=(0,)), gate.size)
        out = self.matmul(out, self.hidden)
        if a.output_bias:
            out = g.op(out.size, out, reuse=(0,))
        return out

    def heads(self, q: Node, mask: Node, n_heads: int, width: float, key: str, latent: float = 0) -> Node:
        """Scores, softmax and weighted values; one fused operation with flash attention."""
        g, cells = self.graph, ("tf" if key == "full" else "tw")
        if self.flash:
            out = g.op(_size(t=latent or width), q, mask)
            if latent:
                out = g.op(_size(t=width), g.view(out))
                out = g.op(_size(t=width), g.view(out))
            out = g.view(out)
        else:
            scores = g.op(_size(**{cells: n_heads}), q)
            scores = g.op(scores.size, scores, mask, reuse=(0,))
            out = g.op(_size(t=latent or width), scores)
            if latent:
                out = g.op(_size(t=width), out)
            out = g.op(_size(t=width), g.view(out))
        g.expand(out)
        return out

    def latent_attention(self, a: LatentAttention, x: Node, absorbed: bool, rope: bool) -> Node:
        g, h = self.graph, a.n_heads
        q_width = h * (a.nope_dim + a.rope_dim)
        if a.q_rank:
            q = self.matmul(x, a.q_rank)
            q = self.matmul(self.norm(q, q.size), q_width)
        else:
            q = self.matmul(x, q_width)
        compressed = self.matmul(x, a.kv_rank + a.rope_dim)
        latent, k_rope = g.view(compressed), g.view(compressed)
        q3 = g.view(q)
        q_rope = g.view(q3)
        if rope:
            k_rope = g.op(_size(t=a.rope_dim), k_rope, self.position)  # type: ignore[arg-type]
            q_rope = g.op(_size(t=h * a.rope_dim), q_rope, self.position)  # type: ignore[arg-type]
        latent = g.op(_size(t=a.kv_rank), latent)
        latent = g.op(latent.size, latent, reuse=(0,))
        k_index, v_index, mask, *_ = self.attention_input("full")
        if absorbed:
            q_nope = g.op(_size(t=h * a.kv_rank), g.view(g.view(q3)))
            query = g.op(_size(t=h * (a.kv_rank + a.rope_dim)), g.view(q_nope), q_rope)
            value = g.view(latent)
            k = g.op(_size(t=a.kv_rank + a.rope_dim), value, k_rope)
            for node in (query, value, k):
                g.expand(node)
            g.expand(g.store(g.view(k), k_index))
            out = self.heads(g.view(g.view(query)), mask, h, h * a.value_dim, "full", latent=h * a.kv_rank)
        else:
            kv = self.matmul(latent, h * (a.nope_dim + a.value_dim))
            v = g.op(_size(t=h * a.value_dim), g.view(kv))
            q = g.op(_size(t=q_width), q3, self.position)  # type: ignore[arg-type]
            k = g.op(_size(t=q_width), g.view(kv), g.op(_size(t=h * a.rope_dim), k_rope))
            for node in (q, v, k):
                g.expand(node)
            g.expand(g.store(g.view(k), k_index))
            g.expand(g.store(g.view(v), v_index))
            out = self.heads(g.view(g.view(q)), mask, h, h * a.value_dim, "full")
        return self.matmul(out, self.hidden)

    def state(self, elements: float) -> Node:
        """The rows of a recurrent state, gathered for the sequences of this batch."""
        node = self.graph.op(_size(s=elements), self.attention_input("state")[0])
        self.graph.expand(node)
        return node

    def causal_conv(self, x: Node, channels: float, kernel: int) -> Node:
        """Concatenate the last inputs, keep the new tail, convolve."""
        g = self.graph
        tail = self.state(channels * (kernel - 1))
        joined = g.op(_size(t=channels, s=channels * (kernel - 1)), g.view(tail), g.view(x))
        g.expand(g.store(g.view(joined)))
        return g.op(_size(t=channels), joined)

    def mamba(self, m: StateSpace, x: Node) -> Node:
        g, inner, copies = self.graph, m.inner, self.attention_input("state")[0]
        width = _size(t=inner)
        if m.version == 1:
            xz = self.matmul(g.view(x), 2 * inner)
            u, z = g.view(xz), g.view(xz)
            conv = self.causal_conv(u, inner, m.conv_kernel)
            u = g.op(width, g.op(width, conv, reuse=(0,)), reuse=(0,))
            small = self.matmul(u, m.dt_rank + 2 * m.state)
            dt, b, c = g.view(small), g.view(small), g.view(small)
            if m.inner_norms:
                dt, b, c = (
                    self.norm(g.op(_size(t=w), n), _size(t=w))
                    for n, w in ((dt, m.dt_rank), (b, m.state), (c, m.state))
                )
            else:
                dt = g.op(_size(t=m.dt_rank), dt)
            dt = self.matmul(dt, inner)
            dt = g.op(width, dt, reuse=(0,))
        else:
            groups = m.n_groups * m.state
            xz = g.view(self.matmul(x, 2 * inner + 2 * groups + m.n_heads))
            z, mixed, dt = g.view(xz), g.view(xz), g.view(xz)
            conv = self.causal_conv(mixed, inner + 2 * groups, m.conv_kernel)
            conv = g.op(conv.size, g.op(conv.size, conv, reuse=(0,)), reuse=(0,))
            u, b, c = g.view(conv), g.view(conv), g.view(conv)
            dt = g.op(_size(t=m.n_heads), dt)
            dt = g.op(dt.size, dt, reuse=(0,))
        view_u = g.view(u) if m.version == 1 else u
        scan = g.op(_size(t=inner, s=inner * m.state), view_u, dt, b, c, copies)
        g.expand(scan)
        g.expand(g.store(g.view(scan)))
        y = g.view(scan)
        skip = g.op(width, u, reuse=(0,) if m.version == 1 else ())
        y = g.op(width, y, skip, reuse=(0, 1))
        y = g.op(width, g.op(width, z), y)
        if m.version == 2 and m.normed:
            y = self.norm(g.view(y), width)
        return g.view(self.matmul(g.view(y), self.hidden))

    def linear_attention(self, a: LinearAttention, x: Node) -> Node:
        g = self.graph
        k_width, v_width = a.n_k_heads * a.k_dim, a.n_v_heads * a.v_dim
        state_size = a.n_v_heads * a.k_dim * a.v_dim
        if a.kind == "gated_deltanet":
            mixed, z = g.view(self.matmul(x, 2 * k_width + v_width)), self.matmul(x, v_width)
            beta = g.op(_size(t=a.n_v_heads), g.view(self.matmul(x, a.n_v_heads)), reuse=(0,))
            decay = g.view(self.matmul(x, a.n_v_heads))
            for _ in range(3):
                decay = g.op(_size(t=a.n_v_heads), decay, reuse=(0,))
            tail = self.state((2 * k_width + v_width) * (a.conv_kernel - 1))
            channels = 2 * k_width + v_width
            joined = g.op(_size(t=channels, s=channels * (a.conv_kernel - 1)), g.view(tail), g.view(mixed))
            g.expand(g.store(g.view(joined)))
            state = self.state(state_size)
            conv = g.op(_size(t=channels), joined)
            conv = g.op(conv.size, conv, reuse=(0,))
            q, k, v = g.op(_size(t=k_width), g.view(conv)), g.op(_size(t=k_width), g.view(conv)), g.view(conv)
        else:
            parts = []
            for width in (k_width, k_width, v_width):
                conv = self.causal_conv(self.matmul(x, width), width, a.conv_kernel)
                parts.append(g.view(g.op(conv.size, conv, reuse=(0,))))
            low = self.matmul(x, a.k_dim)
            decay = self.matmul(low, k_width)
            for _ in range(3):
                decay = g.op(decay.size, decay, reuse=(0,))
            beta = g.op(_size(t=a.n_v_heads), g.view(self.matmul(x, a.n_v_heads)), reuse=(0,))
            state = self.state(state_size)
            q, k, v = g.op(_size(t=k_width), parts[0]), g.op(_size(t=k_width), parts[1]), parts[2]
            z = None
        out = g.op(_size(t=v_width, s=state_size), q, k, v, decay, beta, g.view(state))
        y, new_state = g.view(out), g.view(out)
        if z is None:
            y = g.op(_size(t=v_width), y)
        g.expand(g.store(new_state))
        if z is None:
            z = self.matmul(self.matmul(g.view(x), a.v_dim), v_width)
            y = g.view(y)
        normed = self.norm(y, _size(t=v_width))
        gated = self.add(normed, g.op(z.size, g.view(z), reuse=(0,)), _size(t=v_width))
        if a.kind == "kda":
            gated = g.op(gated.size, gated)
        return g.view(self.matmul(g.view(gated), self.hidden))

    def short_conv(self, c: Convolution, x: Node) -> Node:
        g, d = self.graph, self.hidden
        bcx = self.matmul(g.view(x), 3 * d)
        b, cc, u = g.view(bcx), g.view(bcx), g.view(bcx)
        product = g.op(_size(t=d), b, u)
        conv = self.causal_conv(product, d, c.conv_kernel)
        return g.view(self.matmul(g.op(_size(t=d), cc, conv, reuse=(1,)), d))

    # -- feed-forwards ----------------------------------------------------------------------------------------
    def dense(self, f: Dense, x: Node, per: str, inner: float | None = None) -> Node:
        g, ff = self.graph, inner or f.inner
        width = _size(**{per: ff})
        if f.n_matrices == 2:
            act = self.matmul(x, ff, per)
            if f.bias:
                act = g.op(width, act, reuse=(0,))
            act = g.op(width, act, reuse=(0,))
        elif self.layout.fused_gate_up:
            act = g.op(width, self.matmul(x, 2 * ff, per))
        else:
            up, gate = self.matmul(x, ff, per), self.matmul(x, ff, per)
            act = g.op(width, gate, up)
        out = self.matmul(act, self.hidden, per)
        return g.op(out.size, out, reuse=(0,)) if f.bias else out

    def experts(self, f: Experts, x: Node, per: str) -> Node:
        g, k, n = self.graph, f.per_token, f.n_experts
        logits = self.matmul(x, n, per)
        probabilities = g.op(logits.size, logits, reuse=(0,))
        selection = probabilities
        if f.score_bias:
            selection = g.op(logits.size, probabilities)
        order = g.view(g.op(logits.size, selection))  # argsort, its first k
        weights = g.op(_size(**{per: k}), g.view(probabilities), order)
        total = g.op(_size(**{per: 1}), g.view(weights))
        weights = g.view(g.op(weights.size, g.view(weights), total, reuse=(0,)))
        g.expand(weights)
        width = f.latent or self.hidden
        source = g.view(x if not f.latent else self.matmul(x, f.latent, per))
        if self.style.weigh_input:
            repeated = g.op(_size(**{per: k * width}), source)
            source = g.op(repeated.size, repeated, weights, reuse=(0,))
        inner = _size(**{per: k * f.inner})
        up = g.op(inner, source, order)
        if f.bias:
            up = g.op(inner, up, order, reuse=(0,))
        if f.n_matrices == 3:
            gate = g.op(inner, source, order)
            if f.bias:
                gate = g.op(inner, gate, order, reuse=(0,))
            act = g.op(inner, gate, up)
        else:
            act = g.op(inner, up, reuse=(0,))
        down = g.op(_size(**{per: k * width}), act, order)
        if f.bias:
            down = g.op(down.size, down, order, reuse=(0,))
        if not self.style.weigh_input:
            down = g.op(down.size, down, weights, reuse=(0,))
        g.expand(down)
        parts = [g.view(down) for _ in range(k)]
        for part in parts:
            g.expand(part)
        out = parts[0]
        for i in range(1, k):
            out = g.op(_size(**{per: width}), out, parts[i], reuse=(0,) if i > 1 else ())
            g.expand(out)
        if k == 1:
            out = g.op(_size(**{per: width}), out)
        if f.latent:
            out = self.matmul(out, self.hidden, per)
        if f.shared_inner:
            shared = self.dense(Dense(f.shared_inner, f.n_matrices), x, per)
            if f.shared_gate:
                scale = g.op(_size(**{per: 1}), self.matmul(x, 1, per), reuse=(0,))
                shared = g.op(shared.size, shared, scale, reuse=(0,))
            out = self.add(out, shared, out.size)
        return out


def _key(mixer: Attention, windowed: bool) -> str:
    return "window" if windowed and mixer.window_tokens else "full"


def _kept_layers(blocks: tuple[Block, ...]) -> list[int]:
    """Layers enough to reach the peak: the allocator's state repeats, so a run of equal layers counts as four."""
    kept: list[int] = []
    runs: dict[tuple[int, ...], int] = {}
    ids = {block: i for i, block in enumerate(dict.fromkeys(blocks))}
    for i in range(len(blocks)):
        signature = tuple(ids[b] for b in blocks[max(0, i - 1) : i + 2])
        runs[signature] = runs.get(signature, 0) + 1
        if runs[signature] <= 3 or i >= len(blocks) - 2:
            kept.append(i)
    return kept


def build(
    model: Model,
    flash: bool = True,
    rotate_k: bool = False,
    rotate_v: bool = False,
    windowed: bool = True,
    all_layers: bool = False,
) -> Graph:
    """The graph of one micro-batch of `model` as llama.cpp would run it.

    `flash`: fused attention; `rotate_k`, `rotate_v`: the cache is quantized and its rows are Hadamard-rotated
    (heads of a multiple of 64); `windowed`: whether llama.cpp keeps a separate windowed cache for this model.
    """
    g, d = Graph(), model.hidden_size
    style = STYLES.get(model.architecture, Style())
    layout = LAYOUTS.get(model.architecture, Layout())
    layer_norm = layout.layer_norm or any(block.norm_width == 2 for block in model.blocks)
    ring = windowed and any(
        isinstance(m, Attention) and m.window_tokens for x in model.blocks for m in x.mixers
    )
    b = _Builder(g, style, d, flash, rotate_k, rotate_v, layout, layer_norm, ring, model.architecture)
    x = g.op(_size(t=d), g.input(_size(t=1)))
    g.expand(x)
    g.expand(g.input(_size(t=d)))  # embeddings given instead of tokens: always reserved
    b.position = g.input(_size(t=1))
    if dict(model.extra).get("learned_pos"):
        x = b.add(x, g.op(_size(t=d), b.position), _size(t=d))
    b.inputs = _cache_inputs(g, model, flash, rotate_k, rotate_v)
    wanted = g.input(_size(o=1))
    layers = list(range(len(model.blocks))) if all_layers else _kept_layers(model.blocks)
    for i in layers:
        last = i == layers[-1] and not style.late_outputs
        x = _layer(b, model, model.blocks[i], x, wanted if last else None, windowed)
    per = "t" if style.late_outputs else "o"
    if style.late_outputs == "before norm":
        x, per = g.op(_size(o=d), x, wanted), "o"
    x = b.norm(x, _size(**{per: d}))
    x.is_output = True
    if style.late_outputs == "after norm":
        x = g.op(_size(o=d), x, wanted)
        x.is_output = True
    logits = b.matmul(x, model.vocab_size, "o")
    logits.is_output = True
    g.expand(logits)
    return g


def _cache_inputs(
    g: Graph, model: Model, flash: bool, rotate_k: bool, rotate_v: bool
) -> dict[str, tuple[Node, ...]]:
    mask_bytes = 2 if flash else 4
    attentions = [
        m for block in model.blocks for m in block.mixers if isinstance(m, Attention | LatentAttention)
    ]
    v_width = max((m.n_kv_heads * m.value_dim for m in attentions if isinstance(m, Attention)), default=0)
    k_dims = [m.head_dim for m in attentions if isinstance(m, Attention)]
    square = 64
    while k_dims and all(k % (square * 2) == 0 for k in k_dims):
        square *= 2
    made = {"state": (g.input(_size(s=1)),)}
    for key in ("full", "window"):
        one, cells = _size(t=2), ("tf" if key == "full" else "tw")
        values = one if flash else _size(t=2 * v_width)
        nodes = [g.input(one), g.input(values), g.input(_size(**{cells: mask_bytes / 4}))]
        if rotate_k:
            nodes.append(g.input(_size(one=square * square)))
        if rotate_v:
            nodes.append(g.input(_size(one=64 * 64)))
        made[key] = tuple(nodes)
    return made


def _mix(b: _Builder, model: Model, block: Block, source: Node, x: Node, windowed: bool) -> Node:
    outs: list[Node] = []
    for m in block.mixers:
        if outs and b.style.norm_twice:
            x = b.norm(source, x.size)
        if isinstance(m, Attention):
            outs.append(b.softmax_attention(m, x, _key(m, windowed)))
        elif isinstance(m, LatentAttention):
            outs.append(
                b.latent_attention(
                    m, x, not b.layout.decompressed_latent, model.architecture != "kimi-linear"
                )
            )
        elif isinstance(m, StateSpace):
            outs.append(b.mamba(m, x))
        elif isinstance(m, LinearAttention):
            outs.append(b.linear_attention(m, x))
        elif isinstance(m, Convolution):
            outs.append(b.short_conv(m, x))
        elif isinstance(m, CrossAttention):
            continue
    out = outs[0]
    for other in outs[1:]:
        out = b.add(out, other, _size(t=b.hidden))
    return out


def _layer(b: _Builder, model: Model, block: Block, x: Node, wanted: Node | None, windowed: bool) -> Node:
    g, d = b.graph, b.hidden
    per, full = "t", _size(t=d)
    parallel = any(isinstance(m, Attention) and m.parallel for m in block.mixers)
    residual, normed = x, x
    post_only = model.architecture == "olmo2"
    if block.mixers:
        normed = x if post_only else b.norm(x, full)
        out = _mix(b, model, block, x, normed, windowed)
        if post_only or b.style.post_norm:
            out = b.norm(out, full)
    else:
        out = x
    if wanted is not None:
        per = "o"
        narrow = _size(o=d)
        if block.mixers:
            out = g.op(narrow, out, wanted)
            residual = g.op(narrow, residual, wanted)
            if parallel:
                normed = g.op(narrow, normed, wanted)
        else:
            out = residual = g.op(narrow, x, wanted)
    size = _size(**{per: d})
    if parallel:
        write = _stablelm if model.architecture == "stablelm" else _parallel
        return write(b, block, out, residual, normed, per, size)
    if block.mixers:
        x = b.add(residual, out, size) if b.style.residual_first == "both" else b.add(out, residual, size)
    else:
        x = residual
    for f in block.feed_forwards:
        normed = x if post_only else b.norm(x, size)
        out = b.experts(f, normed, per) if isinstance(f, Experts) else b.dense(f, normed, per)
        if post_only or b.style.post_norm:
            out = b.norm(out, size)
        x = b.add(x, out, size) if b.style.residual_first else b.add(out, x, size)
    return x


def _stablelm(
    b: _Builder, block: Block, attention: Node, residual: Node, normed: Node, per: str, size: Size
) -> Node:
    x = b.add(attention, residual, size)
    f = block.feed_forwards[0]
    assert isinstance(f, Dense)
    return b.add(b.dense(f, normed, per), x, size)


def _parallel(
    b: _Builder, block: Block, attention: Node, residual: Node, normed: Node, per: str, size: Size
) -> Node:
    x = normed if block.n_norms == 1 else b.norm(residual, size)
    f = block.feed_forwards[0]
    out = b.experts(f, x, per) if isinstance(f, Experts) else b.dense(f, x, per)
    if b.architecture == "phi2":
        return b.add(b.add(attention, out, size), residual, size)
    return b.add(b.add(out, residual, size), attention, size)
