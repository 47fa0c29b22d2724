"""ggml's graph allocator, replayed: a graph of tensors with symbolic sizes, and the buffer that it needs.

Tensors are placed in graph order, best fit first, freed after their last use, and some operations write over
their input. Written after reading `ggml/src/ggml-alloc.c` at llama.cpp commit 0c1e57098.
"""

from __future__ import annotations

from collections.abc import Sequence

# Sizes in bytes are sums of coefficient x monomial. T: tokens of the micro-batch, F and W: cells of the full
# and of the windowed cache that one sequence stream sees, O: tokens whose logits are wanted, S: sequences,
# TT: pairs of tokens of one sequence.
MONOMIALS = ("1", "T", "TF", "TW", "O", "S", "TT")
Size = tuple[float, ...]
ZERO: Size = (0.0,) * len(MONOMIALS)
ALIGNMENT = 32  # bytes; ggml's CPU buffer type


def size_of(
    one: float = 0, t: float = 0, tf: float = 0, tw: float = 0, o: float = 0, s: float = 0, tt: float = 0
) -> Size:
    """Bytes of that many float32 numbers per monomial: constant, T, TF, TW, O, S, TT."""
    return (4.0 * one, 4.0 * t, 4.0 * tf, 4.0 * tw, 4.0 * o, 4.0 * s, 4.0 * tt)


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
