"""What the runner allocated and touched, by class of tensor, from its own arrays and names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modeldb.model import Model
    from runner.sampled import Sample
    from runner.weights import Weights

#: Matrices of a layer by the middle of their GGUF name; vectors are `other`.
CLASSES = (
    ("expert", re.compile(r"_exps\.(weight|bias)$")),
    ("shared", re.compile(r"(_shexp|ffn_gate_inp|ffn_latent_(down|up))\.weight$")),
    ("dense", re.compile(r"\.ffn_(gate|up|down)\.weight$")),
    ("mixer", re.compile(r"\.attn_(q|k|v|qkv|output|gate|q_a|q_b|kv_a_mqa|kv_b|k_b|v_b)\.weight$")),
    ("mixer", re.compile(r"\.(ssm_(in|out|conv1d|ba|beta|alpha)\.weight|ssm_[ad]|shortconv\.\w+\.weight)$")),
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


def as_held(model: Model) -> Model:
    """A checkpoint's model with its tensors as the runner holds them: Gemma's norms, to which its code adds one, in
    float32, and beside them the tables of rotation that GGUF files store and checkpoints describe."""
    from dataclasses import replace

    from modeldb import gguf_layout

    stored = {t.name for t in model.file_tensors}
    tables = [replace(t, format="F32") for t in gguf_layout.tensors(replace(model, file_tensors=()))
              if t.name.startswith("rope_") and t.name not in stored]  # fmt: skip
    expanded = [replace(t, format="F32") if model.model_type.startswith("gemma") and t.name.endswith("norm.weight")
                else t for t in model.file_tensors]  # fmt: skip
    return replace(model, file_tensors=(*expanded, *tables))


def bytes_by_class(weights: Weights, prefix: str = "") -> dict[str, int]:
    """Allocated bytes of each class, of the tensors whose names begin with `prefix`."""
    found = dict.fromkeys(("embedding", "head", "mixer", "dense", "expert", "shared", "other"), 0)
    for name, weight in weights.tensors.items():
        if name.startswith(prefix):
            found[class_of(name, weight.shape)] += weight.data.nbytes
    return found


def sampled(sample: Sample, n_tokens: int) -> dict[str, Any]:
    """What the whole model has, by the layers of a sampled run: parameters, bytes, and the step that decodes token
    number `n_tokens`."""
    from runner.meter import StepCounts, layer_counts

    engine, weights = sample.engine, sample.engine.weights
    layers = range(engine.hyper.n_layers)
    of = [bytes_by_class(weights, f"blk.{i}.") for i in layers]
    every = bytes_by_class(weights)
    params = [
        sum(prod(t.shape) for n, t in weights.tensors.items() if n.startswith(f"blk.{i}.")) for i in layers
    ]
    marks = engine._one.marks
    touched = [b.touched - a.touched for a, b in pairwise(marks)]
    flops = [b.flops - a.flops for a, b in pairwise(marks)]
    caches = [layer_counts(engine, i, n_tokens) for i in layers]

    def whole(figures: Sequence[float], everything: float) -> float:
        return sample.whole(lambda i: figures[i], everything - sum(figures))

    return {
        "classes": {name: round(whole([o[name] for o in of], size)) for name, size in every.items()},
        "weights": round(whole([sum(o.values()) for o in of], sum(every.values()))),
        "params": round(whole(params, weights.n_params)),
        "allocated": round(whole([engine.cache.layer_bytes(i) for i in layers], engine.cache.allocated_bytes)),
        "step": StepCounts(
            n_tokens,
            round(whole(touched, engine.meter.token_weight_bytes)),
            round(sample.whole(lambda i: caches[i][0])),
            whole(flops, engine.meter.token_flops),
            sample.whole(lambda i: caches[i][1]),
        ),
    }  # fmt: skip
