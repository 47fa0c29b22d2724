"""Sizes of attention over compressed rows (DeepSeek-V4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from modeldb.errors import BrokenFile, UnsupportedModel
from runner.dequantize import TABLES
from runner.indexer import Indexer
from runner.indexer import read as read_indexer
from runner.keys import Keys

if TYPE_CHECKING:
    from runner.hyper import Hyper
    from runner.weights import Weights

INDEXED, PLAIN = 4, 128  # tokens of a row that llama.cpp's graph knows: with an indexer, and without


@dataclass(frozen=True, slots=True)
class Compressed:
    """`rates`: tokens of a row, by layer (0: it has none). Rows of layers with an `indexer` also reach over the tokens
    of the row before. `groups` of heads are projected to `group_rank` numbers each."""

    rates: tuple[int, ...]
    indexer: Indexer
    groups: int
    group_rank: int

    def reach(self, i: int) -> int:
        """Rows that a token of layer i gives to."""
        return 2 if self.rates[i] == INDEXED else 1

    def state_numbers(self, i: int, width: int) -> int:
        """Values that layer i keeps for rows to come, its indexer's included; and as many scores."""
        if not self.rates[i]:
            return 0
        return self.rates[i] * self.reach(i) ** 2 * (width + self.index_width(i))

    def rows(self, i: int, n_tokens: int) -> tuple[int, int]:
        """Compressed rows of `n_tokens` tokens in layer i, and those that the last of them sees."""
        n = n_tokens // self.rates[i] if self.rates[i] else 0
        return n, min(n, self.indexer.top_k) if self.index_width(i) else n

    def index_width(self, i: int) -> int:
        return self.indexer.width if self.rates[i] == INDEXED else 0


def read(keys: Keys, n_layers: int, rotary: int) -> Compressed | None:
    """From a file's metadata. Raises BrokenFile, and UnsupportedModel for rows of other numbers of tokens."""
    if keys.get("attention.compress_ratios") is None:
        return None
    rates = keys.by_layer("attention.compress_ratios", n_layers)
    if any(r not in (0, INDEXED, PLAIN) for r in rates):
        raise UnsupportedModel(f"{keys.name}: rows of {rates!s:.60} tokens are not supported by the runner")
    indexer = read_indexer(keys, rotary)
    groups, rank = (keys.count(f"attention.output_{k}", 0) for k in ("group_count", "lora_rank"))
    heads = keys.count("attention.head_count")
    if indexer is None or not groups or not rank or heads % groups:
        raise BrokenFile(
            f"{keys.name}: {heads} heads in {groups} groups of rank {rank} with indexer {indexer}"
        )
    return Compressed(rates, indexer, groups, rank)


def check(h: Hyper, w: Weights, i: int) -> None:
    """Hold layer i's metadata against its tensors. Raises BrokenFile."""
    own, p, heads = h.compressed, f"blk.{i}.", h.heads[i]
    assert own is not None
    w.get(p + "attn_kv.weight", (h.hidden, heads.width))
    w.get(p + "attn_output_a.weight", (heads.n_mixed // own.groups, own.groups * own.group_rank))
    table = w.find(p + "ffn_gate_tid2eid.weight", (h.per_token, w.get("token_embd.weight").rows))
    if table is None:
        return
    if table.format not in TABLES or i == h.n_layers - 1:  # which sees the last token alone
        raise UnsupportedModel(
            f"{w.name}: tensor `{table.name}` of {table.format} is not supported by the runner"
        )
    experts = np.ascontiguousarray(table.data).view(np.int32)
    if experts.min() < 0 or experts.max() >= h.n_experts:
        raise BrokenFile(f"{w.name}: tensor `{table.name}` names experts beyond the {h.n_experts} there are")
