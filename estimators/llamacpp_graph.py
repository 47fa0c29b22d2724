"""llama.cpp's compute graph of one micro-batch: where the compute buffer comes from.

The operations of each layer kind, with symbolic sizes; `estimators.ggml_alloc` replays the allocator on them.
Written after reading llama.cpp at commit 0c1e57098 (`src/llama-graph.cpp`, `src/models/*.cpp`). Weights,
caches and host scratch are not here, because llama.cpp keeps them in other buffers.
"""

from __future__ import annotations

from dataclasses import dataclass

from estimators.ggml_alloc import Graph, Node, Size, size_of
from modeldb.architectures import LAYOUTS, Layout
from modeldb.layers import (
    Attention,
    Block,
    CompressedAttention,
    Convolution,
    CrossAttention,
    Dense,
    Experts,
    LatentAttention,
    LinearAttention,
    StateSpace,
)
from modeldb.model import Model


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
    no_rope_in_full_layers: bool = False


SECTIONED_POSITIONS = frozenset({"qwen2vl", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe"})  # four per token

STYLES = {
    "cohere2": Style(no_rope_in_full_layers=True),
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

    # -- small vocabulary ---
    def matmul(self, x: Node, width: float, per: str = "t") -> Node:
        return self.graph.op(size_of(**{per: width}), x)

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

    # -- mixers ---
    def softmax_attention(self, a: Attention, x: Node, key: str) -> Node:
        g, heads = self.graph, a.n_heads
        rope = not (self.style.no_rope or (self.style.no_rope_in_full_layers and not a.window_tokens))
        q_width, k_width, v_width = heads * a.head_dim, a.n_kv_heads * a.head_dim, a.n_kv_heads * a.value_dim
        gate: Node | None = None
        if self.layout.fused_qkv:
            qkv = self.matmul(x, q_width + k_width + v_width)
            if a.qkv_bias:
                qkv = g.op(qkv.size, qkv, reuse=(0,))
            q, k, v = g.view(qkv), g.view(qkv), g.view(qkv)
            if rope:
                q = g.op(size_of(t=q_width), q, self.position, reuse=(0,))  # type: ignore[arg-type]
                k = g.op(size_of(t=k_width), k, self.position, reuse=(0,))  # type: ignore[arg-type]
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
                q = self.norm(g.op(size_of(t=q_width), g.view(whole)), size_of(t=q_width))
                gate = g.op(size_of(t=q_width), g.view(whole))
                k = self.norm(g.view(k), k.size)
            else:
                q, k, v = g.view(q), g.view(k), g.view(v)
                if a.qk_norm in ("head", "qk_ln_heads"):
                    q, k = self.norm(q, size_of(t=q_width)), self.norm(k, size_of(t=k_width))
            if rope:
                q = g.op(size_of(t=q_width), q, self.position, reuse=(0,))  # type: ignore[arg-type]
                k = g.op(size_of(t=k_width), k, self.position, reuse=(0,))  # type: ignore[arg-type]
        k_index, v_index, mask, *rotations = self.attention_input(key)
        k_rotation = rotations[0] if self.rotate_k else None
        v_rotation = rotations[-1] if self.rotate_v else None
        if k_rotation is not None:
            q = g.view(g.op(size_of(t=q_width), k_rotation, g.view(q)))
            k = g.view(g.op(size_of(t=k_width), k_rotation, g.view(k)))
        if v_rotation is not None:
            v = g.op(size_of(t=v_width), v) if self.layout.fused_qkv else g.view(v)
            v = g.view(g.op(size_of(t=v_width), v_rotation, v))
        for node in (q, k, v) if self.ring else (q, v, k):
            g.expand(node)
        g.expand(g.store(g.view(k), k_index))
        joined = self.layout.fused_qkv and not self.flash and v_rotation is None
        g.expand(g.store(g.view(g.op(size_of(t=v_width), v) if joined else v), v_index))
        out = self.heads(g.view(g.view(q)), mask, heads, heads * a.value_dim, key)
        if v_rotation is not None:
            out = g.view(g.op(size_of(t=heads * a.value_dim), v_rotation, g.view(out)))
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
            out = g.op(size_of(t=latent or width), q, mask)
            if latent:
                out = g.op(size_of(t=width), g.view(out))
                out = g.op(size_of(t=width), g.view(out))
            out = g.view(out)
        else:
            scores = g.op(size_of(**{cells: n_heads}), q)
            scores = g.op(scores.size, scores, mask, reuse=(0,))
            out = g.op(size_of(t=latent or width), scores)
            if latent:
                out = g.op(size_of(t=width), out)
            out = g.op(size_of(t=width), g.view(out))
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
            k_rope = g.op(size_of(t=a.rope_dim), k_rope, self.position)  # type: ignore[arg-type]
            q_rope = g.op(size_of(t=h * a.rope_dim), q_rope, self.position)  # type: ignore[arg-type]
        latent = g.op(size_of(t=a.kv_rank), latent)
        latent = g.op(latent.size, latent, reuse=(0,))
        k_index, v_index, mask, *_ = self.attention_input("full")
        if absorbed:
            q_nope = g.op(size_of(t=h * a.kv_rank), g.view(g.view(q3)))
            query = g.op(size_of(t=h * (a.kv_rank + a.rope_dim)), g.view(q_nope), q_rope)
            value = g.view(latent)
            k = g.op(size_of(t=a.kv_rank + a.rope_dim), value, k_rope)
            for node in (query, value, k):
                g.expand(node)
            g.expand(g.store(g.view(k), k_index))
            out = self.heads(g.view(g.view(query)), mask, h, h * a.value_dim, "full", latent=h * a.kv_rank)
        else:
            kv = self.matmul(latent, h * (a.nope_dim + a.value_dim))
            v = g.op(size_of(t=h * a.value_dim), g.view(kv))
            q = g.op(size_of(t=q_width), q3, self.position)  # type: ignore[arg-type]
            k = g.op(size_of(t=q_width), g.view(kv), g.op(size_of(t=h * a.rope_dim), k_rope))
            for node in (q, v, k):
                g.expand(node)
            g.expand(g.store(g.view(k), k_index))
            g.expand(g.store(g.view(v), v_index))
            out = self.heads(g.view(g.view(q)), mask, h, h * a.value_dim, "full")
        return self.matmul(out, self.hidden)

    def state(self, elements: float) -> Node:
        """The rows of a recurrent state, gathered for the sequences of this batch."""
        node = self.graph.op(size_of(s=elements), self.attention_input("state")[0])
        self.graph.expand(node)
        return node

    def causal_conv(self, x: Node, channels: float, kernel: int, tail: Node | None = None) -> Node:
        """Concatenate the last inputs, keep the new tail, convolve."""
        g = self.graph
        tail = tail or self.state(channels * (kernel - 1))
        joined = g.op(size_of(t=channels, s=channels * (kernel - 1)), g.view(tail), g.view(x))
        g.expand(g.store(g.view(joined)))
        return g.op(size_of(t=channels), joined)

    def mamba(self, m: StateSpace, x: Node) -> Node:
        g, inner, copies = self.graph, m.inner, self.attention_input("state")[0]
        width = size_of(t=inner)
        if m.version == 1:
            xz = self.matmul(g.view(x), 2 * inner)
            u, z = g.view(xz), g.view(xz)
            conv = self.causal_conv(u, inner, m.conv_kernel)
            u = g.op(width, g.op(width, conv, reuse=(0,)), reuse=(0,))
            small = self.matmul(u, m.dt_rank + 2 * m.state)
            dt, b, c = g.view(small), g.view(small), g.view(small)
            if m.inner_norms:
                dt, b, c = (
                    self.norm(g.op(size_of(t=w), n), size_of(t=w))
                    for n, w in ((dt, m.dt_rank), (b, m.state), (c, m.state))
                )
            else:
                dt = g.op(size_of(t=m.dt_rank), dt)
            dt = self.matmul(dt, inner)
            dt = g.op(width, dt, reuse=(0,))
        else:
            groups = m.n_groups * m.state
            xz = g.view(self.matmul(x, 2 * inner + 2 * groups + m.n_heads))
            z, mixed, dt = g.view(xz), g.view(xz), g.view(xz)
            conv = self.causal_conv(mixed, inner + 2 * groups, m.conv_kernel)
            conv = g.op(conv.size, g.op(conv.size, conv, reuse=(0,)), reuse=(0,))
            u, b, c = g.view(conv), g.view(conv), g.view(conv)
            dt = g.op(size_of(t=m.n_heads), dt)
            dt = g.op(dt.size, dt, reuse=(0,))
        view_u = g.view(u) if m.version == 1 else u
        scan = g.op(size_of(t=inner, s=inner * m.state), view_u, dt, b, c, copies)
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
            beta = g.op(size_of(t=a.n_v_heads), g.view(self.matmul(x, a.n_v_heads)), reuse=(0,))
            decay = g.view(self.matmul(x, a.n_v_heads))
            for _ in range(3):
                decay = g.op(size_of(t=a.n_v_heads), decay, reuse=(0,))
            tail = self.state((2 * k_width + v_width) * (a.conv_kernel - 1))
            channels = 2 * k_width + v_width
            joined = g.op(size_of(t=channels, s=channels * (a.conv_kernel - 1)), g.view(tail), g.view(mixed))
            g.expand(g.store(g.view(joined)))
            state = self.state(state_size)
            conv = g.op(size_of(t=channels), joined)
            conv = g.op(conv.size, conv, reuse=(0,))
            q, k, v = (
                g.op(size_of(t=k_width), g.view(conv)),
                g.op(size_of(t=k_width), g.view(conv)),
                g.view(conv),
            )
        else:
            parts = []
            tails = self.state((2 * k_width + v_width) * (a.conv_kernel - 1))
            for width in (k_width, k_width, v_width):
                conv = self.causal_conv(self.matmul(x, width), width, a.conv_kernel, tails)
                parts.append(g.view(g.op(conv.size, conv, reuse=(0,))))
            low = self.matmul(x, a.k_dim)
            decay = self.matmul(low, k_width)
            for _ in range(3):
                decay = g.op(decay.size, decay, reuse=(0,))
            beta = g.op(size_of(t=a.n_v_heads), g.view(self.matmul(x, a.n_v_heads)), reuse=(0,))
            state = self.state(state_size)
            q, k, v = g.op(size_of(t=k_width), parts[0]), g.op(size_of(t=k_width), parts[1]), parts[2]
            z = None
        out = g.op(size_of(t=v_width, s=state_size), q, k, v, decay, beta, g.view(state))
        y, new_state = g.view(out), g.view(out)
        if z is None:
            y = g.op(size_of(t=v_width), y)
        g.expand(g.store(new_state))
        if z is None:
            z = self.matmul(self.matmul(g.view(x), a.v_dim), v_width)
            y = g.view(y)
        normed = self.norm(y, size_of(t=v_width))
        gated = self.add(normed, g.op(z.size, g.view(z), reuse=(0,)), size_of(t=v_width))
        if a.kind == "kda":
            gated = g.op(gated.size, gated)
        return g.view(self.matmul(g.view(gated), self.hidden))

    def short_conv(self, c: Convolution, x: Node) -> Node:
        g, d = self.graph, self.hidden
        bcx = self.matmul(g.view(x), 3 * d)
        b, cc, u = g.view(bcx), g.view(bcx), g.view(bcx)
        product = g.op(size_of(t=d), b, u)
        conv = self.causal_conv(product, d, c.conv_kernel)
        return g.view(self.matmul(g.op(size_of(t=d), cc, conv, reuse=(1,)), d))

    # -- feed-forwards ---
    def dense(self, f: Dense, x: Node, per: str, inner: float | None = None) -> Node:
        g, ff = self.graph, inner or f.inner
        width = size_of(**{per: ff})
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
        weights = g.op(size_of(**{per: k}), g.view(probabilities), order)
        total = g.op(size_of(**{per: 1}), g.view(weights))
        weights = g.view(g.op(weights.size, g.view(weights), total, reuse=(0,)))
        g.expand(weights)
        width = f.latent or self.hidden
        source = g.view(x if not f.latent else self.matmul(x, f.latent, per))
        if self.style.weigh_input:
            repeated = g.op(size_of(**{per: k * width}), source)
            source = g.op(repeated.size, repeated, weights, reuse=(0,))
        inner = size_of(**{per: k * f.inner})
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
        down = g.op(size_of(**{per: k * width}), act, order)
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
            out = g.op(size_of(**{per: width}), out, parts[i], reuse=(0,) if i > 1 else ())
            g.expand(out)
        if k == 1:
            out = g.op(size_of(**{per: width}), out)
        if f.latent:
            out = self.matmul(out, self.hidden, per)
        if f.shared_inner:
            shared = self.dense(Dense(f.shared_inner, f.n_matrices), x, per)
            if f.shared_gate:
                scale = g.op(size_of(**{per: 1}), self.matmul(x, 1, per), reuse=(0,))
                shared = g.op(shared.size, shared, scale, reuse=(0,))
            out = self.add(out, shared, out.size)
        return out


def _key(mixer: Attention, windowed: bool) -> str:
    return "window" if windowed and mixer.window_tokens else "full"


REPEATS = 5  # of a layer between equal neighbours; the allocator's state has settled by then


def _kept_layers(blocks: tuple[Block, ...]) -> list[int]:
    """Layers enough to reach the peak: a long run of equal layers adds nothing after a few of them."""
    kept: list[int] = []
    runs: dict[tuple[int, ...], int] = {}
    ids = {block: i for i, block in enumerate(dict.fromkeys(blocks))}
    for i in range(len(blocks)):
        signature = tuple(ids[b] for b in blocks[max(0, i - 1) : i + 2])
        runs[signature] = runs.get(signature, 0) + 1
        if runs[signature] <= REPEATS or i >= len(blocks) - 2:
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
    x = g.op(size_of(t=d), g.input(size_of(t=1)))
    g.expand(x)
    g.expand(g.input(size_of(t=d)))  # embeddings given instead of tokens: always reserved
    b.position = g.input(size_of(t=4 if model.architecture in SECTIONED_POSITIONS else 1))
    if dict(model.extra).get("learned_pos"):
        x = b.add(x, g.op(size_of(t=d), b.position), size_of(t=d))
    b.inputs = _cache_inputs(g, model, flash, rotate_k, rotate_v)
    wanted = g.input(size_of(o=1))
    layers = list(range(len(model.blocks))) if all_layers else _kept_layers(model.blocks)
    for i in layers:
        last = i == layers[-1] and not style.late_outputs
        x = _layer(b, model, model.blocks[i], x, wanted if last else None, windowed)
    per = "t" if style.late_outputs else "o"
    if style.late_outputs == "before norm":
        x.is_output = True
        x, per = g.op(size_of(o=d), x, wanted), "o"
    x = b.norm(x, size_of(**{per: d}))
    x.is_output = True
    if style.late_outputs == "after norm":
        x = g.op(size_of(o=d), x, wanted)
        x.is_output = True
    padded, kept = layout.padded_vocab  # the converter drops padding rows
    logits = b.matmul(x, kept if model.vocab_size == padded else model.vocab_size, "o")
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
    made: dict[str, tuple[Node, ...]] = {"state": (g.input(size_of(s=1)),)}
    for key in ("full", "window"):
        one, cells = size_of(t=2), ("tf" if key == "full" else "tw")
        values = one if flash else size_of(t=2 * v_width)
        nodes = [g.input(one), g.input(values), g.input(size_of(**{cells: mask_bytes / 4}))]
        if rotate_k:
            nodes.append(g.input(size_of(one=square * square)))
        if rotate_v:
            nodes.append(g.input(size_of(one=64 * 64)))
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
        elif isinstance(
            m, CrossAttention | CompressedAttention
        ):  # not followed step by step: queries, then output
            wide = b.graph.op(size_of(t=2 * m.n_heads * m.head_dim), x)
            outs.append(b.matmul(b.graph.op(size_of(t=m.n_heads * m.head_dim), wide), b.hidden))
    out = outs[0]
    for other in outs[1:]:
        out = b.add(out, other, size_of(t=b.hidden))
    return out


def _layer(b: _Builder, model: Model, block: Block, x: Node, wanted: Node | None, windowed: bool) -> Node:
    g, d = b.graph, b.hidden
    per, full = "t", size_of(t=d)
    parallel = any(isinstance(m, Attention) and m.parallel for m in block.mixers)
    residual, normed = x, x
    post_only = model.architecture == "olmo2"
    if block.mixers:
        normed = x if post_only else b.norm(x, full)
        if any(isinstance(m, LinearAttention) for m in block.mixers):
            g.expand(normed)  # before the state's rows are gathered
        out = _mix(b, model, block, x, normed, windowed)
        if post_only or b.style.post_norm:
            out = b.norm(out, full)
    else:
        out = x
    if wanted is not None:
        per = "o"
        narrow = size_of(o=d)
        if block.mixers:
            out = g.op(narrow, out, wanted)
            residual = g.op(narrow, residual, wanted)
            if parallel:
                normed = g.op(narrow, normed, wanted)
        else:
            out = residual = g.op(narrow, x, wanted)
    size = size_of(**{per: d})
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
