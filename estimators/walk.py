"""The walk over a model's tensors and caches in one scheme, reduced to the sums that every price needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from modeldb import layers
from modeldb.architectures import DRAFT_LAYERS, LAYOUTS, Layout
from modeldb.model import Model
from modeldb.scheme import Scheme
from modeldb.tensor import Format, Tensor
from modeldb.walk import idle_layers, is_idle

Number = Any  # float, or a numpy array of them: every field of a Walk may be either

TABLE_FILE = Path(__file__).parent / "data" / "walks.npz"


@dataclass(frozen=True, slots=True)
class Walk:
    """Sums over one (model, scheme); as a table, each field is an array with one entry per pair.

    `*_bytes` are as stored by the scheme, `*_params` are element counts. Matrices of attention and of
    linear or recurrent mixers count as `mixer`; routers and shared experts as `shared`; norms, biases,
    vectors as `other`. `kv_k_full`, `kv_v_full` are K and V elements per cached token summed over
    unwindowed layers (MLA: latent, K only), `kv_k_window`, `kv_v_window` over windowed ones, whose window
    is `window_tokens`; `state_elements` are per sequence. `attention_flops_full` is FLOPs per (new token x
    visible token), summed over layers without a window; `decode_attention_flops` the same for decode, where
    latent attention works on the compressed cache. A sparse indexer limits what full layers see to
    `top_k_tokens` (0: everything).
    """

    n_layers: Number
    n_full_layers: Number
    n_window_layers: Number
    n_linear_layers: Number
    n_moe_layers: Number
    hidden_size: Number
    vocab_size: Number
    n_heads: Number
    head_dim: Number
    max_inner: Number  # widest feed-forward activation of one token
    n_experts: Number
    experts_per_token: Number
    embedding_bytes: Number
    head_bytes: Number  # bytes read to make logits: the embedding's when tied (not stored twice then)
    mixer_bytes: Number
    dense_bytes: Number
    expert_bytes: Number  # all routed experts of all layers
    shared_bytes: Number
    other_bytes: Number
    tower_bytes: Number  # vision, audio, projectors, draft heads: kept, not read by a text step
    total_bytes: Number  # what the loader keeps
    file_bytes: Number  # what is downloaded (0 where the container leaves it open)
    embedding_params: Number
    head_params: Number
    mixer_params: Number
    dense_params: Number
    expert_params: Number
    shared_params: Number
    total_params: Number
    active_params: Number  # touched per token, input embedding excluded, head included
    tied: Number
    latent: Number  # 1 for MLA
    attention_flops_full: Number
    attention_flops_window: Number
    window_tokens: Number
    kv_k_full: Number
    kv_v_full: Number
    kv_k_window: Number
    kv_v_window: Number
    index_elements: Number
    state_elements: Number
    decode_attention_flops: Number = 0.0
    top_k_tokens: Number = 0.0
    # of an indexer's keys in llama.cpp: a pooled one's lie with their gate and their pool, those of blocks with values
    index_copies: Number = 1.0
    windowless: Number = 0.0  # 1 where llama.cpp caches windowed layers as full ones
    expanded_k: Number = 0.0  # latent layers that llama.cpp caches expanded: K and V elements per token,
    expanded_v: Number = 0.0  # 0 where it keeps the latents
    expanded_head_dim: Number = 0.0
    # K elements per token that llama.cpp caches for a layer that drafts, though it skips it
    drafted_k: Number = 0.0
    # heads of lightning attention, for each of which llama.cpp multiplies all pairs of a micro-batch's tokens
    pair_heads: Number = 0.0
    idle_bytes: Number = 0.0  # kept in the layers' memory, but read by no step
    # K and V elements per token that layers without a cache read of another's, unwindowed and windowed
    again_full: Number = 0.0
    again_window: Number = 0.0

    @property
    def layer_bytes(self) -> Number:
        """What layers hold beside routed experts."""
        return self.mixer_bytes + self.dense_bytes + self.shared_bytes + self.other_bytes + self.idle_bytes

    def take(self, indices: Any) -> Walk:
        """The walks at these positions of a table."""
        return Walk(**{f.name: getattr(self, f.name)[indices] for f in fields(self)})

    def row(self, index: int) -> Walk:
        """One walk of a table, as plain floats."""
        return Walk(**{f.name: float(getattr(self, f.name)[index]) for f in fields(self)})


ROLE_GROUPS = {
    "embedding": "embedding", "head": "head", "attention": "mixer", "linear": "mixer", "dense": "dense",
    "experts": "expert", "shared_experts": "shared", "router": "shared", "norm": "other", "other": "other",
    "vision": "tower", "audio": "tower", "draft": "tower", "idle": "idle",
}  # fmt: skip

LAYER_SUMS = (
    "n_layers", "n_full_layers", "n_window_layers", "n_linear_layers", "n_moe_layers", "n_heads", "head_dim",
    "max_inner", "n_experts", "experts_per_token", "latent", "attention_flops_full", "attention_flops_window",
    "decode_attention_flops", "window_tokens", "kv_k_full", "kv_v_full", "kv_k_window", "kv_v_window",
    "index_elements", "state_elements", "top_k_tokens", "index_copies", "windowless", "expanded_k", "expanded_v",
    "expanded_head_dim", "again_full", "again_window", "drafted_k", "pair_heads",
)  # fmt: skip

# whose drafting layer lies in llama.cpp's cache of a hybrid's attending layers (0c1e57098, src/llama-model.cpp)
CACHED_DRAFTS = "bailingmoe3"
TEXT_GROUPS = ("embedding", "mixer", "dense", "expert", "shared", "other", "idle")
BF16_BYTES = 2  # towers stay in 16 bit unless the file says otherwise


def walk(model: Model, scheme: Scheme) -> Walk:
    """The sums over `model` stored in `scheme`."""
    sums = _tensor_sums(_assigned(model, scheme), idle_layers(model))
    tied = float(model.tied_embeddings or sums["head_params"] == 0)
    if tied and model.has_head:
        sums["head_bytes"], sums["head_params"] = sums["token_bytes"], sums["token_params"]
    stored = sum(sums[f"{group}_bytes"] for group in (*TEXT_GROUPS, "tower"))
    if not sums["tower_bytes"]:
        sums["tower_bytes"] = float(BF16_BYTES * model.non_text_params)
        stored += sums["tower_bytes"]
    total = stored + (0.0 if tied else sums["head_bytes"])
    shape = _layer_sums(model)
    share = shape["experts_per_token"] / max(shape["n_experts"], 1)
    dense = sum(sums[f"{group}_params"] for group in ("mixer", "dense", "shared", "head"))
    names = {f.name for f in fields(Walk)}
    return Walk(
        **{k: v for k, v in sums.items() if k in names},
        **shape,
        hidden_size=float(model.hidden_size),
        vocab_size=float(model.vocab_size),
        total_bytes=total,
        file_bytes=_file_bytes(model, scheme),
        total_params=sum(sums[f"{g}_params"] for g in TEXT_GROUPS) + (0.0 if tied else sums["head_params"]),
        active_params=dense + sums["expert_params"] * share,
        tied=tied,
    )


def _assigned(model: Model, scheme: Scheme) -> Iterable[tuple[Tensor, Format]]:
    """Each tensor with its format; a model that llama.cpp does not know takes the mix's nominal bits
    throughout (forks run such models before llama.cpp does)."""
    from modeldb import schemes
    from modeldb.errors import UnsupportedModel

    try:
        return schemes.assign(scheme, model)
    except UnsupportedModel:
        nominal = Format("nominal", 8, 0, scheme.nominal_bits)
        plain = Format("F32", 1, 4)
        return [(t, nominal if len(t.shape) > 1 else plain) for t in model.tensors()]


def _file_bytes(model: Model, scheme: Scheme) -> float:
    if scheme.container != "gguf" or model.file_tensors:
        return 0.0
    from modeldb import gguf_layout
    from modeldb.errors import UnsupportedModel

    try:
        return float(gguf_layout.file_bytes(model, scheme))
    except UnsupportedModel:
        return 0.0


def _tensor_sums(assigned: Iterable[tuple[Tensor, Format]], idle: frozenset[int]) -> dict[str, float]:
    """Bytes and elements per group of roles. Vectors count as `other`, whatever their role."""
    sums = {f"{g}_{unit}": 0.0 for g in {*ROLE_GROUPS.values(), "token"} for unit in ("bytes", "params")}
    for tensor, stored in assigned:
        group = "idle" if is_idle(tensor, idle) else ROLE_GROUPS[tensor.role]
        if group in ("mixer", "dense", "shared") and len(tensor.shape) < 2:
            group = "other"
        size, count = float(stored.n_bytes(tensor.shape)), float(tensor.n_elements)
        for name in (group, "token") if tensor.name == "token_embd.weight" else (group,):
            sums[f"{name}_bytes"] += size
            sums[f"{name}_params"] += count
    return sums


def _layer_sums(model: Model) -> dict[str, float]:
    """What depends on the kinds of layers, not on how they are stored."""
    s = dict.fromkeys(LAYER_SUMS, 0.0)
    s["n_layers"] = float(len(model.blocks))
    for block in model.blocks:
        for mixer in block.mixers:
            _add_mixer(s, mixer)
        for ffn in block.feed_forwards:
            _add_feed_forward(s, ffn)
        pooled = any(isinstance(m, layers.LatentAttention) and m.index_pool for m in block.mixers)
        blocks = any(isinstance(m, layers.Attention) and m.index_block for m in block.mixers)
        s["index_copies"] = max(s["index_copies"], 3.0 if pooled else 2.0 if blocks else 1.0)
    windows = 0.0
    for kept in model.caches():
        if kept.kind == "cross" and kept.window_tokens is None:
            continue  # of an image's tokens, which text has none of
        near = kept.window_tokens is not None
        s["kv_k_window" if near else "kv_k_full"] += kept.k_elements
        s["kv_v_window" if near else "kv_v_full"] += kept.v_elements
        s["index_elements"] += kept.index_elements
        s["state_elements"] += kept.state_elements
        windows += (kept.k_elements + kept.v_elements) * (kept.window_tokens or 0)
    s["window_tokens"] = windows / max(s["kv_k_window"] + s["kv_v_window"], 1.0)
    layout = LAYOUTS.get(model.architecture, Layout())
    s["windowless"] = float(layout.windowless)
    if model.architecture == CACHED_DRAFTS and drafts(model):
        last = [m for m in model.blocks[-1].mixers if isinstance(m, layers.LatentAttention)]
        s["drafted_k"] = float(sum(m.kv_rank + m.rope_dim for m in last))
    if layout.decompressed_latent:
        latents = [m for b in model.blocks for m in b.mixers if isinstance(m, layers.LatentAttention)]
        s["expanded_k"] = float(sum(m.n_heads * (m.nope_dim + m.rope_dim) for m in latents))
        s["expanded_v"] = float(sum(m.n_heads * m.value_dim for m in latents))
        s["expanded_head_dim"] = float(max((m.nope_dim + m.rope_dim for m in latents), default=0))
        s["decode_attention_flops"] = 2.0 * (s["expanded_k"] + s["expanded_v"])
    return s


def drafts(model: Model) -> bool:
    """Whether the model's file has a layer that drafts."""
    return model.model_type in DRAFT_LAYERS or any(t.role == "draft" for t in model.file_tensors)


def _add_mixer(s: dict[str, float], mixer: layers.Mixer) -> None:
    match mixer:
        case layers.Attention():
            near = mixer.window_tokens is not None
            flops = 2.0 * mixer.n_heads * (mixer.head_dim + mixer.value_dim)
            s["n_window_layers" if near else "n_full_layers"] += 1
            s["attention_flops_window" if near else "attention_flops_full"] += flops
            s["decode_attention_flops"] += 0.0 if near else flops
            if mixer.shares_cache:
                s["again_window" if near else "again_full"] += mixer.n_kv_heads * (
                    mixer.head_dim + mixer.value_dim
                )
            s["top_k_tokens"] = max(s["top_k_tokens"], mixer.index_top_k)
        case layers.LatentAttention():
            s["latent"] = 1.0
            s["n_full_layers"] += 1
            s["attention_flops_full"] += (
                2.0 * mixer.n_heads * (mixer.nope_dim + mixer.rope_dim + mixer.value_dim)
            )
            s["decode_attention_flops"] += 2.0 * mixer.n_heads * (2 * mixer.kv_rank + mixer.rope_dim)
            s["top_k_tokens"] = max(s["top_k_tokens"], mixer.index_top_k)
        case layers.CompressedAttention():
            flops = 4.0 * mixer.n_heads * mixer.head_dim
            s["n_window_layers"] += 1
            s["attention_flops_window"] += flops
            s["top_k_tokens"] = max(s["top_k_tokens"], mixer.index_top_k * mixer.ratio)
            if mixer.ratio:
                s["attention_flops_full"] += flops / mixer.ratio
                s["decode_attention_flops"] += flops / mixer.ratio
        case layers.LinearAttention(kind="lightning"):
            s["n_linear_layers"] += 1
            s["pair_heads"] = max(s["pair_heads"], mixer.n_v_heads)
        case layers.StateSpace() | layers.LinearAttention() | layers.Convolution():
            s["n_linear_layers"] += 1
        case layers.CrossAttention():
            pass
    if n_heads := getattr(mixer, "n_heads", 0):
        s["n_heads"] = max(s["n_heads"], n_heads)
    s["head_dim"] = max(s["head_dim"], getattr(mixer, "head_dim", 0))


def _add_feed_forward(s: dict[str, float], ffn: layers.FeedForward) -> None:
    if isinstance(ffn, layers.Dense):
        s["max_inner"] = max(s["max_inner"], ffn.inner)
        return
    s["n_moe_layers"] += 1
    s["n_experts"] = max(s["n_experts"], ffn.n_experts)
    # of those a token chooses, as many as have weights on average
    weighted = ffn.n_experts / (ffn.n_experts + ffn.n_zero_experts)
    s["experts_per_token"] = max(s["experts_per_token"], ffn.per_token * weighted)
    s["max_inner"] = max(s["max_inner"], ffn.per_token * ffn.inner + ffn.shared_inner)


@dataclass(frozen=True)
class WalkTable:
    """The walks of every catalogue model in the usual schemes, compiled; `position` finds a pair's row."""

    walk: Walk
    position: dict[tuple[str, str], int]

    def index(self, model_id: str, scheme_id: str) -> int:
        """Row of this pair. Raises KeyError where it was not compiled (compute `walk` then)."""
        return self.position[model_id, scheme_id]

    def take(self, indices: Any) -> Walk:
        return self.walk.take(indices)


@cache
def load_table() -> WalkTable:
    """The compiled table (about a millisecond)."""
    import numpy as np

    with np.load(TABLE_FILE) as data:
        columns = Walk(**dict(zip((f.name for f in fields(Walk)), data["walks"], strict=True)))
        models, schemes = data["models"].tolist(), data["schemes"].tolist()
        position = {(models[i], schemes[j]): n for n, (i, j) in enumerate(data["pairs"].tolist())}
    return WalkTable(columns, position)
