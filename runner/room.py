"""Memory of the forward pass: activation buffers, their packed forms and scratch, shared by all layers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from modeldb.errors import BrokenFile, UnsupportedModel
from runner import (
    compressed,
    kernel_attention,
    kernel_compress,
    kernel_index,
    kernel_index_pool,
    kernel_matmul,
    recurrent,
)
from runner.cache import padded
from runner.hyper import Hyper
from runner.kernel_matmul import block_tokens, uses_bytes
from runner.memory import zeros
from runner.weights import Weights

PAGE_BYTES = 4096
# of matrices side by side
STACKED = ("_exps.weight", "attn_k_b.weight", "attn_v_b.weight", "attn_output_a.weight")


@dataclass
class Packed:
    """Activations as the matrix kernels want them: float32 and int8 blocks with scales and sums."""

    floats: np.ndarray
    quants: np.ndarray
    scales: np.ndarray
    sums32: np.ndarray
    sums16: np.ndarray

    @classmethod
    def room(cls, n_elements: int, floats: bool = True) -> Packed:
        f32 = lambda n: zeros(n, np.float32)  # noqa: E731
        return cls(f32(n_elements if floats else 0), zeros(n_elements, np.int8), f32(n_elements // 32 + 1),
                   f32(n_elements // 32 + 1), f32(n_elements // 16 + 2))  # fmt: skip


@dataclass
class Room:
    """Activation buffers for `n_batch` tokens, shared by all layers and programs."""

    n_batch: int
    n_threads: int
    tokens: np.ndarray
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    packed: Packed | None = None
    by_expert: Packed | None = None  # tokens of one expert together
    scratch: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    scratch_bytes: int = 0

    def floats(self, name: str, n: int) -> np.ndarray:
        """The named buffer, grown to n float32."""
        if name not in self.arrays or len(self.arrays[name]) < n:
            self.arrays[name] = zeros(n, np.float32)
        return self.arrays[name]

    def integers(self, name: str, n: int) -> np.ndarray:
        if name not in self.arrays or len(self.arrays[name]) < n:
            self.arrays[name] = zeros(n, np.int64)
        return self.arrays[name]

    def all(self) -> list[np.ndarray]:
        """Every buffer."""
        found = [*self.arrays.values(), self.scratch, self.tokens]
        for p in (self.packed, self.by_expert):
            found += [p.floats, p.quants, p.scales, p.sums32, p.sums16] if p else []
        return found

    def touch(self) -> None:
        """Write to every page, so that memory is there before a run is timed."""
        for each in self.all():
            each[:: PAGE_BYTES // each.itemsize] = 0

    @property
    def n_bytes(self) -> int:
        return sum(a.nbytes for a in self.all())


def check(h: Hyper, w: Weights) -> None:
    """Hold the metadata against the tensors before memory is taken on their word. Raises BrokenFile."""
    table = w.get("token_embd.weight")
    if len(table.shape) != 2 or table.width != h.hidden:
        w.get("token_embd.weight", (h.hidden, table.rows))
    for i in range(h.n_layers):
        if h.recurs[i]:
            recurrent.check(h, w, i)
        if h.attends[i]:
            _check_attention(h, w, i)
        elif h.style.gaps and f"blk.{i}.attn_output.weight" in w.tensors:
            raise UnsupportedModel(
                f"{w.name}: layer {i} is a matrix instead of attention, which the runner has not"
            )
        elif not h.recurs[i] and not any(n in w.tensors for n in recurrent.feed_forward_names(i)):
            raise BrokenFile(f"{w.name}: layer {i} holds nothing that the runner knows")
        if f"blk.{i}.ffn_gate_inp.weight" in w.tensors:
            w.get(f"blk.{i}.ffn_gate_inp.weight", (h.hidden, h.n_chosen))
    if h.decompressed and (h.nope_dim < 1 or set(h.n_kv_heads) != {h.n_heads}):
        raise BrokenFile(f"{w.name}: {h.n_heads} latent heads with keys of {h.head_dim}, {h.rotary} rotated")
    if h.is_latent and (h.head_dim != h.kv_rank + h.rotary or h.value_dim != h.kv_rank or h.nope_dim < 1):
        raise BrokenFile(f"{w.name}: heads of {h.head_dim} do not follow from a latent rank of {h.kv_rank}")
    if not h.rotary and h.style.rotates is not True:
        return
    rotating = h.rotary if h.is_latent else h.head_dim
    if not 0 < h.rotary <= rotating or h.rotary % 2 or not 0 <= h.per_token <= max(h.n_experts, 0):
        raise BrokenFile(
            f"{w.name}: {h.rotary} rotary channels of {rotating}, {h.per_token} of {h.n_experts} experts"
        )


def _check_attention(h: Hyper, w: Weights, i: int) -> None:
    own = h.heads[i]
    if h.compressed:
        compressed.check(h, w, i)
        return
    width = own.n * h.latent_value_dim if h.is_latent else own.n_mixed
    w.get(f"blk.{i}.attn_output.weight", (width, h.hidden))
    if h.kv_rank:
        w.get(f"blk.{i}.attn_kv_a_mqa.weight", (h.hidden, h.kv_rank + h.rotary))
    if h.is_latent:
        w.get(f"blk.{i}.attn_k_b.weight", (h.nope_dim, h.kv_rank, h.n_heads))
    elif h.decompressed:
        w.get(f"blk.{i}.attn_kv_b.weight", (h.kv_rank, own.n * (h.nope_dim + own.value_width)))
    elif f"blk.{i}.attn_qkv.weight" not in w.tensors:
        gate = 2 if h.style.recurrent == "delta" else 1
        w.get(f"blk.{i}.attn_q.weight", (h.hidden, gate * own.n_queries))


def make_room(h: Hyper, w: Weights, n_batch: int, n_threads: int) -> Room:
    """Buffers large enough for every operation of the model."""
    rows = -(-n_batch // block_tokens()) * block_tokens()
    widest = max(
        t.width for n, t in w.tensors.items() if not n.endswith("token_embd.weight") and len(t.shape) > 1
    )
    pairs = zip(h.heads, h.n_kv_heads, strict=True)
    group = h.n_heads if h.is_latent else max((own.n // k for own, k in pairs if k), default=1)
    head_dim = padded(max(x.width for x in h.heads))
    value_dim = padded(max(x.value_width for x in h.heads))
    room = Room(n_batch, n_threads, np.zeros(rows, np.int64))
    expert_rows = n_batch * max(1, h.per_token)
    by_group = n_batch * h.n_heads * h.head_dim if h.compressed else 0
    latent = n_batch * h.n_heads * max(h.nope_dim, h.kv_rank) if h.is_latent else 0
    widths = [rows * widest, latent, by_group]
    if h.n_experts:
        widths.append(expert_rows * max((t.width for n, t in w.tensors.items() if "_exps." in n), default=0))
    room.packed = Packed.room(max(widths))
    stacked = [t for n, t in w.tensors.items() if n.endswith(STACKED)]
    if stacked:  # every expert's last block may be all but empty
        of_experts = (expert_rows + h.n_experts * block_tokens()) * max(
            (t.width for t in stacked if "_exps." in t.name), default=0
        )
        of_heads = (n_batch + block_tokens()) * h.n_heads * max(h.nope_dim, h.kv_rank)
        if h.compressed:
            of_heads = (n_batch + block_tokens()) * h.n_heads * h.head_dim
        room.by_expert = Packed.room(
            max(of_experts, of_heads), any(not uses_bytes(t.format) for t in stacked)
        )
    need = max(kernel_matmul.scratch_bytes(), kernel_attention.scratch_bytes(head_dim, value_dim, group))
    if h.indexer is not None:
        need = max(need, kernel_index.scratch_bytes(h.indexer.n_heads))
        need = max(need, kernel_index_pool.scratch_bytes(h.indexer.width))
    if h.compressed is not None:
        need = max(need, kernel_index.scratch_bytes(h.compressed.indexer.n_heads))
        need = max(need, kernel_compress.scratch_bytes(max(h.head_dim, h.compressed.indexer.width)))
    room.scratch_bytes = -(-need // 64) * 64
    room.scratch = zeros(room.scratch_bytes * n_threads, np.uint8)
    return room
