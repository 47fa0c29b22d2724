"""A GGUF file as a model: its layers, and its tensors with the formats they are stored in."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from modeldb.errors import BrokenFile, UnsupportedModel
from modeldb.gguf_blocks import Keys, block
from modeldb.gguf_file import GgufFile
from modeldb.layers import Attention, Block
from modeldb.model import Model
from modeldb.scheme import Scheme
from modeldb.tensor import Tensor
from modeldb.tensor_names import layer_of, role_of

MAX_LAYERS = 4096
# general.file_type -> name of the mix; llama.h's enum llama_ftype
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0",
    37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0",
}  # fmt: skip
GUESSED = 1024  # LLAMA_FTYPE_GUESSED: the type was not written but inferred
NO_HEAD = ("bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert",
           "gemma-embedding", "eurobert")  # fmt: skip


def read_gguf(file: GgufFile) -> tuple[Model, Scheme]:
    """The model in a GGUF file and how it is stored. Raises UnsupportedModel or BrokenFile, one line each."""
    name = str(file.paths[0])
    keys = _keys(file, name)
    n_all, n_draft = keys.need("block_count"), keys.get("nextn_predict_layers")
    if n_all > MAX_LAYERS or n_draft >= n_all:
        raise BrokenFile(f"{name}: {n_all} layers, {n_draft} of them for drafting, are not plausible")
    n_layers = n_all - n_draft
    shapes = _shapes_by_layer(file)
    if extra := [i for i in shapes if i is not None and i >= n_all]:
        raise BrokenFile(f"{name}: holds tensors of layer {max(extra)}, but `block_count` is {n_all}")
    if "token_embd.weight" not in shapes[None]:
        raise UnsupportedModel(
            f"{name}: has no token_embd.weight; a projector or adapter is not a model by itself"
        )
    blocks = tuple(block(keys, i, n_layers, shapes[i]) for i in range(n_layers))
    embedding = shapes[None]["token_embd.weight"]
    if embedding[0] != keys.need("embedding_length") or len(embedding) != 2:
        raise BrokenFile(f"{name}: token_embd.weight {embedding} contradicts embedding_length")
    stem, meta = _stem(file.paths[0].name), file.metadata
    title = _text(meta.get("general.name")) or stem
    headless = keys.architecture in NO_HEAD
    model = Model(
        id=stem,
        name=title,
        hf_id=_text(meta.get("general.source.huggingface.repository")),
        family=_text(meta.get("general.basename")) or title,
        base=stem,
        architecture=keys.architecture,
        model_type="",
        modality="embedding" if headless else "text",
        hidden_size=embedding[0],
        vocab_size=embedding[1],
        tied_embeddings="output.weight" not in shapes[None] and not headless,
        max_context=keys.get("context_length") or None,
        blocks=blocks,
        has_head=not headless,
        native_dtype="",
        licence=_text(meta.get("general.license")),
        file_tensors=tuple(_tensor(t.name, t.shape, t.type, blocks) for t in file.tensors),
        source=f"GGUF header of {name}",
        causal=not headless and keys.raw("attention.causal") is not False,
        norm_width=2 if "output_norm.bias" in shapes[None] else 1,
        rotary_dim=keys.get("rope.dimension_count"),
        rope_scaling=_text(keys.raw("rope.scaling.type")),
    )
    return model, _scheme(file)


def _keys(file: GgufFile, name: str) -> Keys:
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise BrokenFile(f"{name}: metadata key `general.architecture` is missing")
    kind = _text(file.metadata.get("general.type"))
    if kind in ("adapter", "mmproj", "imatrix") or architecture == "clip":
        raise UnsupportedModel(
            f"{name}: holds a {kind or 'projector'}, not a model; give the model's own file"
        )
    return Keys(file.metadata, architecture, name)


def _shapes_by_layer(file: GgufFile) -> dict[int | None, dict[str, tuple[int, ...]]]:
    shapes: dict[int | None, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for t in file.tensors:
        layer = layer_of(t.name)
        shapes[layer][t.name if layer is None else t.name.split(".", 2)[2]] = t.shape
    return shapes


def _tensor(name: str, shape: tuple[int, ...], type_name: str, blocks: tuple[Block, ...]) -> Tensor:
    layer, role = layer_of(name), role_of(name)
    if layer is not None and layer >= len(blocks):
        role = "draft"
    elif layer is not None and re.search(r"\.attn_[kv](_norm)?\.", name):
        shares = any(isinstance(m, Attention) and m.shares_cache for m in blocks[layer].mixers)
        role = "idle" if shares else role
    return Tensor(name, shape, role, layer, type_name)


def _scheme(file: GgufFile) -> Scheme:
    """The scheme `file`: each tensor keeps its format; the label is the mix's name, or the commonest type."""
    n_bytes: Counter[str] = Counter()
    for t in file.tensors:
        n_bytes[t.type] += t.nbytes
    declared = file.metadata.get("general.file_type")
    dominant = n_bytes.most_common(1)[0][0] if n_bytes else "F16"
    label = dominant
    if isinstance(declared, int) and not isinstance(declared, bool):
        told = FILE_TYPES.get(declared % GUESSED, dominant)
        stale = told in ("F32", "F16", "BF16") and dominant not in ("F32", "F16", "BF16")
        label = dominant if stale else told  # a quantizer that copied the header of what it quantized
    return file_scheme("gguf", label, family_of(dominant), _bits(file), f"GGUF header of {file.paths[0]}")


def _bits(file: GgufFile) -> float:
    from math import prod

    n_weights = sum(prod(t.shape) for t in file.tensors)
    return 8 * sum(t.nbytes for t in file.tensors) / n_weights if n_weights else 0.0


def file_scheme(container: Any, label: str, family: str, bits: float, source: str) -> Scheme:
    """The scheme of a file whose tensors carry their own formats."""
    return replace(Scheme("file", container, family, bits, source=source), label=label)


def family_of(type_name: str) -> str:
    """The kernel family of a ggml type: `Q4_K` -> `k-quant`, `IQ3_S` -> `i-quant`, `Q8_0` -> `q8_0`."""
    if type_name.endswith("_K"):
        return "k-quant"
    return "i-quant" if type_name.startswith("IQ") else type_name.lower()


def _stem(file_name: str) -> str:
    return re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", PurePath(file_name).name)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
