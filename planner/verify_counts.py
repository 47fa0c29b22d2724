"""What the runner allocated and touched, by class of tensor, from its own arrays and names."""

from __future__ import annotations

import re
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
    ("mixer", re.compile(r"\.(indexer\.([qk]_)?proj|(attn|indexer)_compressor_\w+)\.weight$")),
    ("dense", re.compile(r"\.(ffn_(gate|up|down)|inp_gate|proj|laurel_[lr]|altup_\w+)\.weight$")),
    ("dense", re.compile(r"^(per_layer_model_proj|altup_(unembd_)?proj)\.weight$")),
    (
        "mixer",
        re.compile(
            r"\.(cross_)?attn_(q|k|v|kv|qkv|output(_[ab])?|gate|[qk]_b|q_a|kv_a_mqa|kv_b|v_b)\.weight$"
        ),
    ),
    ("mixer", re.compile(r"\.(ssm_(?!\w*norm)\w+\.weight|ssm_[ad]|shortconv\.\w+\.weight)$")),
)
GROUPS = ("embedding", "head", "mixer", "dense", "expert", "shared", "other")


def class_of(name: str, shape: tuple[int, ...]) -> str:
    """The class of a tensor."""
    if name in ("token_embd.weight", "position_embd.weight", "per_layer_token_embd.weight"):
        return "embedding"
    if name in ("output.weight", "output.bias"):
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
    laid_out = gguf_layout.tensors(replace(model, file_tensors=())) if model.architecture else ()
    tables = [replace(t, format="F32") for t in laid_out
              if t.name.startswith("rope_") and t.name not in stored]  # fmt: skip
    expanded = [replace(t, format="F32") if model.model_type.startswith("gemma") and t.name.endswith("norm.weight")
                else t for t in model.file_tensors]  # fmt: skip
    return replace(model, file_tensors=(*expanded, *tables))


def bytes_by_class(weights: Weights) -> dict[str, int]:
    """Allocated bytes of each class."""
    found = dict.fromkeys(GROUPS, 0)
    for name, weight in weights.tensors.items():
        found[class_of(name, weight.shape)] += weight.data.nbytes
    return found


def sampled(sample: Sample, n_tokens: int) -> dict[str, Any]:
    """What the whole model has, by the layers (and the experts) of a sampled run: parameters, bytes, and the step that
    decodes token number `n_tokens`."""
    from runner.meter import StepCounts, layer_counts

    engine, weights = sample.engine, sample.engine.weights
    layers = range(engine.hyper.n_layers)
    of = [dict.fromkeys(GROUPS, 0) for _ in layers]
    params, every = [0 for _ in layers], dict.fromkeys(GROUPS, 0)
    routers = [0 for _ in layers]  # bytes and FLOPs of a step for experts that were left out
    scored = [0.0 for _ in layers]
    outside = 0
    for name, weight in weights.tensors.items():
        more = sample.part.times_experts(name)
        size, n = round(weight.data.nbytes * more), round(prod(weight.shape) * more)
        if not name.startswith("blk."):
            every[class_of(name, weight.shape)] += size
            outside += n
            continue
        layer = int(name.split(".")[1])
        of[layer][class_of(name, weight.shape)] += size
        params[layer] += n
        if more > 1 and "_exps." not in name:  # a token's experts are as many as in the whole model
            routers[layer] += size - weight.data.nbytes
            scored[layer] += 2.0 * (n - prod(weight.shape)) if name.endswith("ffn_gate_inp.weight") else 0.0
    marks = engine._one.marks
    touched = [b.touched - a.touched + r for (a, b), r in zip(pairwise(marks), routers, strict=True)]
    flops = [b.flops - a.flops + s for (a, b), s in zip(pairwise(marks), scored, strict=True)]
    caches = [layer_counts(engine, i, n_tokens) for i in layers]
    rows = [engine.cache.layer_bytes(i) for i in layers]
    rest = engine.meter.token_weight_bytes - (marks[-1].touched - marks[0].touched)
    head = engine.meter.token_flops - (marks[-1].flops - marks[0].flops)
    return {
        "classes": {g: round(sample.whole([o[g] for o in of].__getitem__, every[g])) for g in GROUPS},
        "weights": round(sample.whole(lambda i: sum(of[i].values()), sum(every.values()))),
        "params": round(sample.whole(lambda i: params[i], outside)),
        "allocated": round(sample.whole(lambda i: rows[i])),
        "step": StepCounts(
            n_tokens,
            round(sample.whole(lambda i: touched[i], rest)),
            round(sample.whole(lambda i: caches[i][0])),
            sample.whole(lambda i: flops[i], head),
            sample.whole(lambda i: caches[i][2]),
            round(sample.whole(lambda i: caches[i][1])),
        ),
    }  # fmt: skip
