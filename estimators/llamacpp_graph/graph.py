"""The whole graph: embedding, inputs of the caches, layers, head."""

from __future__ import annotations

from estimators.ggml_alloc import Graph, Node, size_of
from estimators.llamacpp_graph import lightning
from estimators.llamacpp_graph.builder import Builder, CacheInputs, Rows
from estimators.llamacpp_graph.layer import layer
from estimators.llamacpp_graph.style import SECTIONED_POSITIONS, STYLES, Style
from modeldb.architectures import LAYOUTS, Layout
from modeldb.layers import Attention, Block, LinearAttention
from modeldb.model import Model

REPEATS = 5  # of a layer between equal neighbours; the allocator's state has settled by then
HADAMARD = 64  # heads of a multiple of this are rotated before their cache is quantized


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
    b = _builder(model, flash, rotate_k, rotate_v, windowed)
    g, style = b.graph, b.style
    x = g.op(size_of(t=b.hidden), g.input(size_of(t=1)))
    g.expand(x)
    g.expand(g.input(size_of(t=b.hidden)))  # embeddings given instead of tokens: always reserved
    if dict(model.extra).get("learned_pos"):
        x = b.add(x, g.op(size_of(t=b.hidden), b.position), size_of(t=b.hidden))
    wanted = g.input(size_of(o=1))
    kept = list(range(len(model.blocks))) if all_layers else _kept_layers(model.blocks)
    for i in kept:
        selects = i == kept[-1] and not style.late_outputs
        x = layer(b, model.blocks[i], x, wanted if selects else None)
    logits = b.matmul(_last_norm(b, x, wanted), _n_logits(model, b.layout), "o")
    logits.is_output = True
    g.expand(logits)
    return g


def _builder(model: Model, flash: bool, rotate_k: bool, rotate_v: bool, windowed: bool) -> Builder:
    g, layout = Graph(), LAYOUTS.get(model.architecture, Layout())
    attentions = [m for block in model.blocks for m in block.mixers if isinstance(m, Attention)]
    full, window = (_cache_inputs(g, attentions, cells, flash, rotate_k, rotate_v) for cells in ("tf", "tw"))
    return Builder(
        g,
        model.architecture,
        STYLES.get(model.architecture, Style()),
        layout,
        model.hidden_size,
        flash,
        layer_norm=layout.layer_norm or any(block.norm_width == 2 for block in model.blocks),
        ring=windowed and any(a.window_tokens for a in attentions),
        position=g.input(size_of(t=4 if model.architecture in SECTIONED_POSITIONS else 1)),
        full=full,
        window=window,
        copies=g.input(size_of(s=1)),
        decays=next(
            (
                lightning.inputs(g, m.n_v_heads)
                for block in model.blocks
                for m in block.mixers
                if isinstance(m, LinearAttention) and m.kind == "lightning"
            ),
            None,
        ),
    )


def _cache_inputs(
    g: Graph, attentions: list[Attention], cells: str, flash: bool, rotate_k: bool, rotate_v: bool
) -> CacheInputs:
    """Inputs of the cache whose size is `cells` ("tf": the full one, "tw": the windowed one)."""
    v_width = max((a.n_kv_heads * a.value_dim for a in attentions), default=0)
    index = size_of(t=2)  # of 64 bits
    square = HADAMARD
    while attentions and all(a.head_dim % (square * 2) == 0 for a in attentions):
        square *= 2
    return CacheInputs(
        g.input(index),
        g.input(index if flash else size_of(t=2 * v_width)),  # values are stored transposed without it
        g.input(size_of(**{cells: 0.5 if flash else 1.0})),  # the mask in 16 or in 32 bits
        g.input(size_of(one=square * square)) if rotate_k else None,
        g.input(size_of(one=HADAMARD * HADAMARD)) if rotate_v else None,
    )


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


def _last_norm(b: Builder, x: Node, wanted: Node) -> Node:
    """What enters the head, its rows selected before or after the norm where no layer did it."""
    late = b.style.late_outputs
    rows: Rows = "t" if late else "o"
    if late == "before norm":
        x.is_output = True
        x, rows = b.graph.op(size_of(o=b.hidden), x, wanted), "o"
    x = b.norm(x, size_of(**{rows: b.hidden}))
    x.is_output = True
    if late == "after norm":
        x = b.graph.op(size_of(o=b.hidden), x, wanted)
        x.is_output = True
    return x


def _n_logits(model: Model, layout: Layout) -> int:
    padded, kept = layout.padded_vocab  # the converter drops padding rows
    return kept if model.vocab_size == padded else model.vocab_size
