"""What the runner allocated and touched, by class of tensor, from its own arrays and names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runner.weights import Weights

#: Matrices of a layer by the middle of their GGUF name; vectors are `other`.
CLASSES = (
    ("expert", re.compile(r"_exps\.(weight|bias)$")),
    ("shared", re.compile(r"(_shexp\.weight|ffn_gate_inp\.weight)$")),
    ("dense", re.compile(r"\.ffn_(gate|up|down)\.weight$")),
    ("mixer", re.compile(r"\.attn_(q|k|v|qkv|output|q_a|q_b|kv_a_mqa|kv_b|k_b|v_b)\.weight$")),
)


def class_of(name: str, shape: tuple[int, ...]) -> str:
    """The class of a tensor."""
    if name == "token_embd.weight":
        return "embedding"
    if name == "output.weight":
        return "head"
    if len(shape) > 1:
        for label, pattern in CLASSES:
            if pattern.search(name):
                return label
    return "other"


def bytes_by_class(weights: Weights) -> dict[str, int]:
    """Allocated bytes of each class."""
    found = dict.fromkeys(("embedding", "head", "mixer", "dense", "expert", "shared", "other"), 0)
    for name, weight in weights.tensors.items():
        found[class_of(name, weight.shape)] += weight.data.nbytes
    return found
