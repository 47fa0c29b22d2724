"""What every part of a graph is written with: the graph, its inputs, and a small vocabulary of operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from estimators.ggml_alloc import Graph, Node, Size, size_of
from estimators.llamacpp_graph.style import Style
from modeldb.architectures import Layout

Rows = Literal["t", "o"]  # a value per token of the micro-batch, or per token whose logits are wanted


@dataclass(frozen=True, slots=True)
class CacheInputs:
    """What enters the graph for one cache: row indices to write to, the mask, and rotations when quantized."""

    k_index: Node
    v_index: Node
    mask: Node
    k_rotation: Node | None = None
    v_rotation: Node | None = None


@dataclass(frozen=True, slots=True)
class Decays:
    """Inputs of lightning attention: heads' slopes, and exponents of queries, keys, and pairs of them."""

    slopes: Node
    queries: Node
    keys: Node
    pairs: Node


@dataclass(frozen=True, slots=True)
class Builder:
    """One model's graph while it is written down. Widths are numbers (float32) per token."""

    graph: Graph
    architecture: str
    style: Style
    layout: Layout
    hidden: int
    flash: bool  # attention in one fused operation
    layer_norm: bool  # with a mean, so never in place
    ring: bool  # some layers have a windowed cache of their own
    position: Node
    full: CacheInputs
    window: CacheInputs
    copies: Node  # which state each sequence of the batch reads
    decays: Decays | None = None

    def matmul(self, x: Node, width: float, rows: Rows = "t") -> Node:
        """A product with a weight of `width` outputs."""
        return self.graph.op(size_of(**{rows: width}), x)

    def in_place(self, x: Node, *others: Node) -> Node:
        """An operation that writes over `x` where nothing else needs it: a bias, an activation, a scale."""
        return self.graph.op(x.size, x, *others, reuse=(0,))

    def norm(self, x: Node, size: Size) -> Node:
        """Root mean square or layer norm, then its weight in place."""
        n = self.graph.op(size, x, reuse=() if self.layer_norm else (0,))
        return self.in_place(n)

    def add(self, a: Node, b: Node, size: Size) -> Node:
        """A sum (or product) over whichever of the two is free."""
        return self.graph.op(size, a, b, reuse=(0, 1))

    def rope(self, x: Node, width: float) -> Node:
        """`x` turned by its position, in place."""
        return self.graph.op(size_of(t=width), x, self.position, reuse=(0,))
