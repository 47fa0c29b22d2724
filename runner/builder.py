"""What the layers of a forward pass share while they append operations to a program."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modeldb.errors import BrokenFile
from runner import kernel_experts, kernel_fused, kernel_ops, kernel_pack, kernel_rows
from runner.cache import KvCache
from runner.dequantize import dequantize
from runner.hyper import Hyper
from runner.kernel_matmul import matmul, uses_bytes
from runner.kernel_matvec import expert_matvec, matvec
from runner.program import Mark, Program
from runner.room import Room
from runner.weights import Weight, Weights

SWIGLU_OAI_LIMIT = 7.0  # gpt-oss model card and modeling_gpt_oss.py


@dataclass(frozen=True)
class Groups:
    """(token, slot) pairs by expert: `pairs`, the first of each of `n` experts, and slots per token."""

    pairs: np.ndarray
    first: np.ndarray
    n: int
    n_slots: int


@dataclass
class Builder:
    """What the layer functions below share while they append operations to `program`."""

    h: Hyper
    w: Weights
    cache: KvCache
    room: Room
    program: Program
    many: bool
    touched: int = 0  # weight bytes that one run reads, experts by their share
    flops: float = 0.0  # per token, experts by their share, attention scores left out

    def floats(self, name: str, per_token: int) -> np.ndarray:
        return self.room.floats(name, self.room.n_batch * per_token)

    def vector(self, name: str, width: int) -> np.ndarray | None:
        """A norm, bias or table as float32, or None where the model has none."""
        weight = self.w.tensors.get(name)
        if weight is None:
            return None
        values = dequantize(weight.format, weight.data)
        if len(values) != width:
            raise BrokenFile(f"{self.w.name}: tensor `{name}` holds {len(values)} numbers, its model {width}")
        self.touched += weight.data.nbytes
        return values

    def norm(self, x: np.ndarray, weight: np.ndarray | None, out: np.ndarray, width: int, heads: int = 1,
             stride: int = 0, add: bool = False, head_stride: int = 0, out_stride: int = 0,
             eps: float = 0.0) -> None:  # fmt: skip
        self.program.add("norm", kernel_ops.norm, x, weight, None, out, width, float(eps or self.h.eps), heads,
                         stride or width, out_stride or stride or width, int(self.h.style.norm != "rms"), head_stride,
                         int(add))  # fmt: skip

    def norm_by(self, name: str, x: np.ndarray, out: np.ndarray) -> None:
        """out = x normed as the model norms its layers' inputs, with the tensors `name`.weight and `name`.bias."""
        width, weight, bias = self.h.hidden, None, None
        if self.h.style.norm != "bare":
            bare = name + ".weight" not in self.w.tensors and name in self.w.tensors  # as Falcon-H1 names one
            weight = self.vector(self.w.get(name if bare else name + ".weight").name, width)
            bias = self.vector(name + ".bias", width)
        self.program.add("norm", kernel_ops.norm, x, weight, bias, out, width, float(self.h.eps), 1, width, width,
                         int(self.h.style.norm != "rms"), 0, 0)  # fmt: skip

    def pack(self, x: np.ndarray, width: int, stride: int, floats: bool, quants: bool, rows: int = 1,
             in_order: bool = False) -> None:  # fmt: skip
        p = self.room.packed
        assert p is not None
        if not (self.many or floats) and rows == 1 and width % 32 == 0 and self._packs_itself(x, width):
            return
        self.program.add("pack", kernel_pack.pack, x, width, stride, p.floats if floats else None,
                         p.quants if quants else None, p.scales, p.sums32, p.sums16, rows, int(in_order))  # fmt: skip

    def _packs_itself(self, x: np.ndarray, width: int) -> bool:
        """Whether the operation before this makes `x` and could be replaced by one that packs it as well."""
        p, program = self.room.packed, self.program
        assert p is not None
        packed = (p.quants, p.scales, p.sums32, p.sums16)
        if (found := program.last(kernel_ops.norm)) is not None:
            source, weight, bias, out, n, eps, heads, _, _, centre, _, add = found
            if (out, n, heads, add) == (x.ctypes.data, width, 1, 0) and source != out:
                program.replace(
                    "norm", kernel_fused.norm_and_pack, source, weight, bias, out, n, eps, centre, *packed
                )
                return True
        elif (found := program.last(kernel_ops.gate)) is not None:
            gate, up, out, n, _, _, _, kind, rows, limit = found
            if (out, n, rows) == (x.ctypes.data, width, 1):
                program.replace("gate", kernel_fused.gate_and_pack, gate, up, out, n, kind, limit, *packed)
                return True
        return False

    def project(self, x: np.ndarray, stride: int, parts: list[tuple[Weight, np.ndarray, int, np.ndarray | None]],
                add: bool = False) -> None:  # fmt: skip
        """out (+)= W x (+ bias) for each (W, out, out stride, bias); all read the same x [token][stride]."""
        width = parts[0][0].width
        kinds = [
            uses_bytes(p[0].format) if self.many else p[0].format not in ("F32", "F16", "BF16") for p in parts
        ]
        if self.many or any(kinds):
            # few tokens always take bytes
            quantized = any(p[0].format not in ("F32", "F16", "BF16") for p in parts)
            self.pack(x, width, stride, self.many and not all(kinds), quantized)
        p = self.room.packed
        assert p is not None
        pieces = [piece for part in parts for piece in _in_pieces(*part)]
        for i, (weight, out, out_stride, bias) in enumerate(pieces):
            operation = (matmul if self.many else matvec)(weight.format)
            inputs = p.floats if self.many else x
            self.program.add("matmul", operation, weight.address, weight.row_bytes, weight.rows, width, out, out_stride,
                             int(add), bias, inputs, p.quants, p.scales, p.sums32, p.sums16, self.room.scratch,
                             self.room.scratch_bytes, wait=i == len(pieces) - 1, streams=not self.many)  # fmt: skip
            self.touched += weight.data.nbytes
            self.flops += 2 * weight.rows * weight.width

    def pack_experts(
        self, x: np.ndarray, width: int, weights: list[Weight], rows: int, groups: Groups
    ) -> None:
        """Pack x [token * rows][width] for `expert_project` with these weights."""
        self.pack(x, width, width, False, True, rows, in_order=True)
        p = self.room.by_expert
        if self.many and p is not None:
            kinds = [uses_bytes(w.format) for w in weights]
            self.program.add("pack", kernel_experts.pack_by_expert, x, width, width, None if all(kinds) else p.floats,
                             p.quants if any(kinds) else None, p.scales, p.sums32, p.sums16, groups.pairs, groups.first,
                             groups.n, groups.n_slots // rows)  # fmt: skip

    def expert_project(self, weight: Weight, bias: np.ndarray | None, x: np.ndarray, out: np.ndarray, out_stride: int,
                       rows: int, groups: Groups, wait: bool = True) -> None:  # fmt: skip
        """out[pair] = W[expert of pair] x[pair's row], of `rows` rows per token, packed by `pack_experts`."""
        p, q = self.room.packed, self.room.by_expert
        assert p is not None
        shared = (weight.address, weight.row_bytes, weight.rows, weight.width, out, out_stride,
                  weight.row_bytes * weight.rows, bias, x, p.quants, p.scales, p.sums32, p.sums16, groups.pairs,
                  groups.first, groups.n, groups.n_slots // rows)  # fmt: skip
        few = kernel_experts.FEW if self.many else 1 << 40
        self.program.add("experts", expert_matvec(weight.format), *shared, few, wait=wait and not self.many)
        if self.many and q is not None:
            inputs = q.quants if uses_bytes(weight.format) else q.floats
            sums = q.sums16 if kernel_experts.sums_per(weight.format) == 16 else q.sums32
            self.program.add("experts", kernel_experts.expert_matmul(weight.format), *shared, inputs, q.scales, sums,
                             self.room.scratch, self.room.scratch_bytes, wait=wait)  # fmt: skip

    def mark(self) -> None:
        """A layer begins here, or the last one ended."""
        self.program.marks.append(Mark(len(self.program.rows), self.touched, self.flops))

    def gate(self, kind: int, gate: np.ndarray, up: np.ndarray | None, out: np.ndarray, width: int, strides:
             tuple[int, int, int], rows: int = 1, limit: float = SWIGLU_OAI_LIMIT) -> None:  # fmt: skip
        """out = activation(gate) * up, with the strides of gate, up and out."""
        self.program.add("gate", kernel_ops.gate, gate, up, out, width, *strides, kind, rows, limit)

    def join(self, x: np.ndarray, source: np.ndarray, weight: Weight, bias: np.ndarray | None = None,
             post: np.ndarray | None = None) -> None:  # fmt: skip
        """x += W source (+ bias), through the post norm and by the residual factor where the model has them."""
        width, hidden = weight.width, self.h.hidden
        if post is None and self.adds:
            self.project(source, width, [(weight, x, hidden, bias)], add=True)
            return
        out = self.floats("branch", hidden)
        self.project(source, width, [(weight, out, hidden, bias)])
        self.merge(x, out, post)

    @property
    def adds(self) -> bool:
        """Whether what a layer's parts give is added to the residual as it is."""
        return self.h.residual_scale == 1.0 and not self.h.style.carries

    def merge(self, x: np.ndarray, out: np.ndarray, post: np.ndarray | None = None) -> None:
        """x += out, through the post norm and by the residual factor; or, where the model carries on what the part
        read, x = out + that by the factor."""
        h = self.h.hidden
        if post is not None:
            self.norm(out, post, x, h, add=True, eps=self.h.style.eps_behind)
            return
        if self.h.style.carries:
            read = self.floats("normed", h)
            self.program.add("add", kernel_rows.carry, read, out, x, h, float(self.h.residual_scale))
            return
        self.program.add("add", kernel_ops.add, out, x, h, h, h, float(self.h.residual_scale))

    def last_token(self, *rows: tuple[np.ndarray | None, int]) -> None:
        """Of each (rows, width) the last token's becomes the first; what follows sees it alone."""
        for each, width in rows:
            if each is not None:
                self.program.add("last", kernel_ops.copy_last, each, width, each)
        self.program.add("single", kernel_ops.single_token)
        self.many = False


def _in_pieces(
    weight: Weight, out: np.ndarray, stride: int, bias: np.ndarray | None
) -> list[tuple[Weight, np.ndarray, int, np.ndarray | None]]:
    """(piece, its part of the output, output stride, its part of the bias) of a matrix."""
    found, row = [], 0
    for piece in weight.pieces():
        found.append((piece, out[row:], stride, None if bias is None else bias[row:]))
        row += piece.rows
    return found
