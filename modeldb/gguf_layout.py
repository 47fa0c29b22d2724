"""The tensors that llama.cpp's file of a model holds, its sizes, and what loading keeps. Exact to the byte.

A file is the walk in the architecture's dialect (`modeldb.architectures.Layout`), plus rotation tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from modeldb import gguf_metadata, gguf_sparse
from modeldb.architectures import DRAFT_LAYERS, LAYOUTS, RUNNER_ALONE, UNCORRECTED, Layout
from modeldb.errors import UnsupportedModel
from modeldb.formats import FORMATS
from modeldb.gguf_mixes import MIXES, Where, types
from modeldb.layer_tensors import mixer_tensors
from modeldb.layers import Attention, Experts, LatentAttention
from modeldb.model import Model
from modeldb.scheme import Scheme
from modeldb.tensor import Format, Tensor

ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT


def architecture(model: Model) -> str:
    """llama.cpp's name of the model's architecture. Raises UnsupportedModel where it has none."""
    if not model.architecture:
        raise UnsupportedModel(
            f"llama.cpp has no architecture for {model.name or model.id} ({model.model_type})"
        )
    return model.architecture


def graph(model: Model) -> str:
    """The architecture that the bundled runner executes the model as: llama.cpp's or, where that has none, its own
    (`RUNNER_ALONE`). Raises UnsupportedModel where it has none either."""
    return RUNNER_ALONE.get(model.model_type, "") or architecture(model)


def layout(model: Model) -> Layout:
    """How llama.cpp lays this model's architecture out. Raises UnsupportedModel where it has none."""
    return LAYOUTS.get(architecture(model), Layout())


def tensors(model: Model) -> tuple[Tensor, ...]:
    """The file's tensors in file order; `format` is set where the checkpoint fixes it. Raises
    UnsupportedModel."""
    if model.file_tensors:
        return model.file_tensors
    return _tensors(model)


@lru_cache(maxsize=64)
def _tensors(model: Model) -> tuple[Tensor, ...]:
    from modeldb import walk

    dialect = layout(model)
    found = list(_fused(_whole(walk.tensors(model), model), dialect, model))
    found[1:1] = _rotation_tables(model)
    if model.model_type in DRAFT_LAYERS:
        found += _draft_layer(model, found)
    return tuple(found)


def _whole(walked: tuple[Tensor, ...], model: Model) -> tuple[Tensor, ...]:
    """With what checkpoints of Gemma 3n and 4 hold beside the parameters of their layers, which the converter
    (conversion/gemma.py) writes as it finds it: keys and values of layers that read those of another, a factor of each
    layer's output (Gemma 4), and rows of per-layer embeddings for tokens of images and sound (Gemma 3n)."""
    arch, found = architecture(model), list(walked)
    if arch not in ("gemma3n", "gemma4"):
        return walked
    for i, block in enumerate(model.blocks):
        found += [
            Tensor(f"blk.{i}.{name}", shape, "idle", i)
            for m in block.mixers if isinstance(m, Attention) and m.shares_cache
            for name, shape, _ in mixer_tensors(replace(m, shares_cache=False), model.hidden_size)
            if name.startswith(("attn_k", "attn_v"))
        ]  # fmt: skip
        if arch == "gemma4":
            found.append(Tensor(f"blk.{i}.layer_output_scale.weight", (1,), "other", i))
    return tuple(
        replace(t, shape=(t.shape[0], model.vocab_size)) if t.name == "per_layer_token_embd.weight" else t
        for t in found
    )


def _fused(walked: tuple[Tensor, ...], dialect: Layout, model: Model) -> Iterator[Tensor]:
    """The walk's tensors, renamed, fused and split."""
    shapes = {t.name: t.shape for t in walked}
    for t in walked:
        stem, _, suffix = t.name.rpartition(".")
        prefix, _, bare = stem.rpartition(".")
        part = f"{prefix}." if prefix else ""
        has_keys = f"{part}attn_k.weight" in shapes
        if dialect.fused_qkv and has_keys and bare in ("attn_q", "attn_k", "attn_v"):
            if bare == "attn_q":
                widths = [shapes[f"{part}attn_{x}.{suffix}"] for x in "qkv"]
                yield replace(t, name=f"{part}attn_qkv.{suffix}", shape=_joined(widths))
        elif dialect.fused_gate_up and bare == "ffn_gate":
            continue
        elif dialect.fused_gate_up and bare == "ffn_up":
            yield replace(t, shape=_joined([t.shape, t.shape]))
        elif dialect.fused_experts and bare == "ffn_up_exps":
            continue
        elif dialect.fused_experts and bare == "ffn_gate_exps":
            inputs, inner, n = t.shape
            yield replace(t, name=f"{part}ffn_gate_up_exps.{suffix}", shape=(inputs, 2 * inner, n))
        elif dialect.split_kv_b and bare == "attn_kv_b":
            yield from split_kv_b(t, part, model)
        elif dialect.merged_beta_alpha and bare in ("ssm_beta", "ssm_alpha"):
            if bare == "ssm_beta":
                yield replace(t, name=f"{part}ssm_ba.weight", shape=_joined([t.shape, t.shape]))
        elif dialect.flat_rates and t.name.endswith(".ssm_a"):
            yield replace(t, shape=t.shape[-1:])
        elif dialect.embedding_norm_last and t.name == "output_norm.weight":
            yield replace(t, name="token_embd_norm.weight")
        elif dialect.head_norms_2d and bare in ("attn_q_norm", "attn_k_norm"):
            yield replace(t, shape=_per_head(t.shape, model))
        elif dialect.padded_vocab[0] and t.shape[-1] == dialect.padded_vocab[0]:
            yield replace(t, shape=(*t.shape[:-1], dialect.padded_vocab[1]))
        elif bare in dialect.norms and t.role == "norm":
            new = dialect.norms[bare]
            yield replace(t, name=part + (new[:-1] if new.endswith("!") else f"{new}.{suffix}"))
        else:
            fixed = dialect.fixed_experts if t.role == "experts" and suffix == "weight" else None
            yield replace(t, format=fixed) if fixed else t
        if dialect.hashed and bare == "ffn_gate_inp" and (t.layer or 0) < gguf_sparse.HASH_LAYERS:
            yield _hash_table(t, part, model)
        elif dialect.score_bias and bare == "ffn_gate_inp" and model.model_type not in UNCORRECTED:
            bias = f"{part}exp_probs_b" + ("" if dialect.bare_score_bias else ".bias")
            if bias not in shapes:
                yield replace(t, name=bias, shape=t.shape[1:])
        if dialect.made_head_norms and bare == "attn_output":
            width = (gguf_metadata.attention_of(model).head_dim,)
            for x in "qk":
                yield replace(t, name=f"{part}attn_{x}_norm.weight", shape=width, role="norm")


def _hash_table(t: Tensor, part: str, model: Model) -> Tensor:
    """Which experts each token of the vocabulary goes to, in layers that do not choose."""
    experts = gguf_metadata.first(model, Experts)
    assert experts is not None
    shape = (experts.per_token, model.vocab_size)
    return replace(t, name=f"{part}ffn_gate_tid2eid.weight", shape=shape, format="I32", role="other")


def _joined(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Matrices (or vectors) stacked along their outputs."""
    return (*shapes[0][:-1], sum(s[-1] for s in shapes))


def split_kv_b(t: Tensor, part: str, model: Model) -> Iterator[Tensor]:
    """A latent up-projection as the two that absorbed attention multiplies with, by head; `part`: the names' prefix."""
    a = gguf_metadata.first(model, LatentAttention)
    assert a is not None
    yield replace(t, name=f"{part}attn_k_b.weight", shape=(a.nope_dim, a.kv_rank, a.n_heads))
    yield replace(t, name=f"{part}attn_v_b.weight", shape=(a.kv_rank, a.value_dim, a.n_heads))


def _per_head(shape: tuple[int, ...], model: Model) -> tuple[int, ...]:
    width = gguf_metadata.attention_of(model).head_dim
    return shape if len(shape) > 1 else (width, shape[0] // width)


def _rotation_tables(model: Model) -> list[Tensor]:
    """rope_freqs or rope_factors, half the rotating channels each,
    where the architecture's files carry them."""
    arch, scaling = architecture(model), model.rope_scaling
    names: tuple[str, ...] = ()
    if arch == "llama4" or (arch in ("llama", "exaone4", "deci", "step35") and scaling == "llama3"):
        names = ("rope_freqs",)
    elif (arch in ("phi3", "phimoe") and scaling in ("longrope", "su")) or arch == "minicpm3":
        names = ("rope_factors_long", "rope_factors_short")
    width = model.rotary_dim
    if (
        arch == "gemma4"
    ):  # layers without a window rotate a part of each head, by infinite divisors of the rest
        names = ("rope_freqs",)
        layers = (
            m for b in model.blocks for m in b.mixers if isinstance(m, Attention) and not m.window_tokens
        )
        width = next((m.head_dim for m in layers), width)
    return [Tensor(f"{name}.weight", (width // 2,), "other") for name in names]


def _draft_layer(model: Model, found: list[Tensor]) -> list[Tensor]:
    """The NextN layer: one more MoE layer, without streams but with an indexer where any layer has one, and what joins
    it to the model. Loading skips it."""
    n, h = model.n_layers, model.hidden_size
    held = {t.name for t in found}
    last, indexed = f"blk.{n - 1}.", next((i for i in range(n) if f"blk.{i}.indexer.proj.weight" in held), 0)
    draft = [
        replace(t, name=t.name.replace(prefix, f"blk.{n}."), layer=n, role="draft")
        for t in found
        for prefix in [f"blk.{indexed}." if ".indexer" in t.name else last]
        if t.name.startswith(prefix) and ".hc_" not in t.name
    ]
    shapes = {"eh_proj": (2 * h, h)}
    shapes |= dict.fromkeys(("embed_tokens", "shared_head_head"), (h, model.vocab_size))
    for name in DRAFT_LAYERS[model.model_type]:
        part = "" if name == "layer_output_norm" else "nextn."
        draft.append(Tensor(f"blk.{n}.{part}{name}.weight", shapes.get(name, (h,)), "draft", n))
    return draft


def formats(model: Model, mix: str, imatrix: bool) -> tuple[tuple[Tensor, Format], ...]:
    """Each tensor of the file with the type that the mix gives it."""
    listed = tensors(model)
    attention = gguf_metadata.query_groups(model)
    experts = gguf_metadata.first(model, Experts)
    arch = architecture(model)
    n_all = model.n_layers + (model.model_type in DRAFT_LAYERS)
    where = Where(
        n=n_all,
        gqa=attention,
        n_experts=experts.n_experts if experts else 0,
        imatrix=imatrix,
        falcon=arch == "falcon",
        glm5_next=arch == "glm5-next",
        bailingmoe3=arch == "bailingmoe3",
        is_70b=n_all == 80 and (arch in ("qwen2", "olmo", "deci") or (arch == "llama" and attention > 1)),
    )
    chosen = types(listed, MIXES[mix], where, experts_mxfp4=mix == "MXFP4_MOE")
    return tuple((t, FORMATS[chosen[t.name]]) for t in listed)


def model_bytes(model: Model, scheme: Scheme) -> int:
    """Bytes of the buffer that loading fills: each tensor aligned, a draft layer skipped."""
    return sum(_aligned(f.n_bytes(t.shape)) for t, f in _assigned(model, scheme) if t.role != "draft")


def tensor_bytes(model: Model, scheme: Scheme) -> int:
    """Bytes of all tensors in the file."""
    return sum(f.n_bytes(t.shape) for t, f in _assigned(model, scheme))


def file_bytes(model: Model, scheme: Scheme) -> int:
    """Bytes of the file without a tokenizer, which adds 2 to 16 MB over files in the wild (by vocabulary and
    merges)."""
    pairs = _assigned(model, scheme)
    header = gguf_metadata.header_bytes(model, architecture(model), [t for t, _ in pairs])
    return _aligned(header) + sum(_aligned(f.n_bytes(t.shape)) for t, f in pairs)


def _assigned(model: Model, scheme: Scheme) -> tuple[tuple[Tensor, Format], ...]:
    from modeldb.schemes import assign

    return assign(scheme, model)


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT
