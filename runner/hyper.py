"""Hyperparameters of the forward pass, read from GGUF metadata (of a file, or of a catalogue model)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from math import log, sqrt
from typing import Any

import numpy as np

from modeldb.errors import BrokenFile, UnsupportedModel
from runner import blocks, compressed, connections, heads, indexer, per_layer, rotation, states
from runner.blocks import Blocks
from runner.compressed import Compressed
from runner.connections import Connections
from runner.heads import Heads
from runner.indexer import Indexer
from runner.keys import Keys
from runner.per_layer import Embedded
from runner.states import Recurrent
from runner.styles import STYLES, Style

CAPPED = ("gemma2", "gemma3n", "gemma4")  # logits, also where the file does not say so: llama-hparams.h
MAX_GROUPS = 60  # of experts: a bit each
MAX_LAYERS = 4096  # far beyond any model; what a damaged file may claim is not allocated for


@dataclass(frozen=True)
class Hyper:
    """Numbers of one model. Per-layer tuples have one entry per layer; `windows` are 0 where a layer sees
    everything, `n_kv_heads` where it does not attend (see `fitted`). `n_heads` are the most of any layer; `head_dim`,
    `value_dim` and `rotary` those of layers without a window: `heads` has each layer's."""

    architecture: str
    style: Style
    n_layers: int
    hidden: int
    n_heads: int
    n_kv_heads: tuple[int, ...]
    heads: tuple[Heads, ...]
    head_dim: int
    value_dim: int
    eps: float
    rotary: int
    windows: tuple[int, ...]
    max_context: int
    score_factor: float
    score_cap: float
    value_scale: float  # of what attention gives
    logit_cap: float
    n_experts: int
    n_zero: int  # further experts that give back what they read
    per_token: int
    expert_factor: float
    router: str
    normalize: bool
    kv_rank: int
    nope_dim: int
    latent_value_dim: int
    embedding_scale: float
    residual_scale: float
    logit_scale: float  # what logits are divided by
    recurrent: Recurrent | None
    recurs: tuple[bool, ...]
    idle: tuple[bool, ...]  # layers that only attend to an image, which text has not
    rotates: tuple[bool, ...]
    parallel: bool  # mixers and feed-forwards read the same
    # queries grow with position: scale, step and offset of `kernel_rows.temper`
    temper: tuple[float, int, int] | None
    alibi: float  # the largest bias of ALiBi; 0: none
    decompressed: bool  # latent keys and values are cached head by head
    clamp: float  # of queries, keys and values; 0: none
    expert_limits: tuple[float, ...]  # of gated units in experts, by layer; 0: none
    dense_limits: tuple[float, ...]  # the same in dense and shared ones
    indexer: Indexer | Blocks | None  # of sparse attention
    indexes: tuple[bool, ...]  # whether a layer has an indexer of its own
    expert_groups: tuple[int, int]  # (groups, those whose experts may be chosen); (0, 0): all are
    sources: tuple[int, ...]  # the layer whose keys and values each layer reads: itself, or one before it
    embedded: Embedded
    connections: Connections | None  # hyper-connections of the residual's streams
    decay_bound: float  # the least logarithm of Kimi's decays, below 0; 0: none
    # deviations above the mean that a gate's activations exceed to count; 0: all count
    sparse: tuple[float, ...]
    compressed: Compressed | None  # rows of the cache that stand for several tokens
    metadata: dict[str, Any]

    @property
    def is_latent(self) -> bool:
        return self.kv_rank > 0 and not self.decompressed

    @property
    def n_chosen(self) -> int:
        """Experts that a router chooses from."""
        return self.n_experts + self.n_zero

    @property
    def attends(self) -> tuple[bool, ...]:
        return tuple(n > 0 for n in self.n_kv_heads)

    def turns_near(self, i: int) -> bool:
        """Whether layer i rotates as those do that see no further than their window."""
        return self.windows[i] > 0 and not (self.compressed and self.compressed.rates[i])

    def rotary_of(self, windowed: bool) -> int:
        """Numbers of a head that rotate in layers with a window, or in those without."""
        own = [x.rotary for x, w in zip(self.heads, self.windows, strict=True) if bool(w) == windowed]
        return own[0] if own else self.rotary


def read(metadata: dict[str, Any], name: str) -> Hyper:
    """Raises UnsupportedModel for an architecture that the runner has no forward pass for, BrokenFile
    otherwise."""
    keys = Keys(metadata, name)
    style = STYLES.get(str(keys.architecture))
    if style is None:
        if (
            not isinstance(keys.architecture, str)
            or not keys.architecture.isprintable()
            or not keys.architecture
        ):
            raise BrokenFile(f"{name}: metadata key `general.architecture` names no architecture")
        raise UnsupportedModel(
            f"{name}: the runner has no `{keys.architecture}` architecture among its {len(STYLES)} "
            "(docs/running.md lists them)"
        )
    # llama's matrices as Hugging Face stores them, or a model that sees
    if keys.get("rope.halves") or rotation.sectioned(keys):
        style = replace(style, halves=True)
    # layers that predict a token further (multi-token prediction) follow the others; they are not run
    n_layers = keys.count("block_count") - keys.count("nextn_predict_layers", 0)
    hidden = keys.count("embedding_length")
    by_layer = heads.numbers(keys, n_layers) if 0 < n_layers <= MAX_LAYERS else (0,)
    n_heads = max(by_layer)
    if not (0 < n_layers <= MAX_LAYERS and hidden and (n_heads or style.recurrent)):
        raise BrokenFile(f"{name}: {n_layers} layers of width {hidden} with {n_heads} heads is not a model")
    head_dim = keys.count("attention.key_length", hidden // n_heads if n_heads else 64)
    if not 0 < head_dim <= 1 << 16 and n_heads:
        raise BrokenFile(f"{name}: attention heads of width {head_dim}")
    kv = keys.by_layer("attention.head_count_kv", n_layers, n_heads)
    least = 0 if style.recurrent or style.gaps else 1
    if any(not isinstance(k, int) or k < least or (k and n % k) for n, k in zip(by_layer, kv, strict=True)):
        raise BrokenFile(f"{name}: key-value heads {kv!s:.60} do not divide {n_heads} heads")
    kv_rank = keys.count("attention.kv_lora_rank", 0)
    key_dim = keys.count("attention.key_length_mla", head_dim) if kv_rank else head_dim
    decompressed = kv_rank > 0 and not keys.get("attention.key_length_mla")
    rotates = style.rotates if style.rotates is not None else keys.get("rope.scaling.finetuned", True)
    rotary = keys.count("rope.dimension_count", head_dim) // (2 if style.prefixed else 1) if rotates else 0
    if kv_rank and not (style.rotates is not False) <= rotary < key_dim <= 1 << 16:
        raise BrokenFile(f"{name}: {rotary} rotary channels in latent heads of width {key_dim}")
    rotation.check_sections(keys, rotary)
    windows = _windows(keys, style, n_layers)
    value_dim = keys.count("attention.value_length", hidden // n_heads if decompressed else head_dim)
    if style.full_gates:  # its files say those of recurrent heads
        value_dim = kv_rank
    near = rotary
    rotary = rotary // 2 if style.half_turned else rotary
    usual = Heads(n_heads, head_dim, value_dim, rotary)
    embedding_scale, residual_scale, logit_scale = _scales(keys, style, hidden)
    return Hyper(
        architecture=keys.architecture,
        style=style,
        n_layers=n_layers,
        hidden=hidden,
        n_heads=n_heads,
        n_kv_heads=kv,
        heads=heads.of_layers(keys, by_layer, windows, usual, near),
        head_dim=head_dim,
        value_dim=value_dim,
        eps=keys.number("attention.layer_norm_rms_epsilon", keys.get("attention.layer_norm_epsilon")),
        rotary=rotary,
        windows=windows,
        max_context=keys.count("context_length", 0),
        score_factor=_score_factor(keys, n_layers, hidden, n_heads, key_dim),
        score_cap=keys.number("attn_logit_softcapping", 50.0) if keys.architecture == "gemma2" else 0.0,
        value_scale=float(keys.number("attention.value_scale", 1.0) or 1.0) if keys.architecture == "mimo2" else 1.0,
        logit_cap=keys.number("final_logit_softcapping", 30.0 if keys.architecture in CAPPED else 0.0),
        n_experts=keys.count("expert_count", 0),
        n_zero=keys.count("expert_zero_count", 0),
        per_token=keys.count("expert_used_count", 0),
        expert_factor=keys.number("expert_weights_scale", 1.0) or 1.0,
        router="sigmoid" if keys.get("expert_gating_func", 1) == 2 else style.router,
        normalize=bool(keys.get("expert_weights_norm", style.normalize)),
        kv_rank=kv_rank,
        nope_dim=key_dim - rotary if kv_rank else 0,
        latent_value_dim=keys.count("attention.value_length_mla", 0) if kv_rank else 0,
        embedding_scale=embedding_scale,
        residual_scale=residual_scale,
        logit_scale=logit_scale,
        recurrent=states.sizes(keys, style, hidden),
        recurs=(False,) * n_layers,
        idle=(False,) * n_layers,
        rotates=rotation.layers(keys, style, windows),
        parallel=bool(keys.get("use_parallel_residual", True)) if style.parallel == "stated" else bool(style.parallel),
        alibi=float(keys.number("attention.max_alibi_bias", 0.0) if style.alibi is None else style.alibi),
        temper=_temper(keys),
        decompressed=decompressed,
        clamp=float(keys.number("attention.clamp_kqv", 0.0)),
        expert_limits=keys.limits("swiglu_clamp_exp", n_layers),
        dense_limits=keys.limits("swiglu_clamp_shexp", n_layers),
        indexer=(found := indexer.read(keys, rotary) if kv_rank else blocks.read(keys, rotary, max(kv))),
        indexes=indexer.layers(keys, found, tuple(k > 0 for k in kv)) if kv_rank else (found is not None,) * n_layers,
        expert_groups=_expert_groups(keys),
        sources=per_layer.sources(keys, windows),
        embedded=per_layer.sizes(keys, n_layers),
        connections=connections.read(keys),
        decay_bound=states.decay_bound(keys, style),
        sparse=per_layer.deviations(keys, n_layers),
        compressed=compressed.read(keys, n_layers, rotary),
        metadata=metadata,
    )  # fmt: skip


def _scales(keys: Keys, style: Style, hidden: int) -> tuple[float, float, float]:
    """Factors of embeddings and of what layers add, and what logits are divided by."""
    embedding = float(np.float32(hidden) ** np.float32(0.5)) if style.scaled_embedding else 1.0
    of = lambda key: float(keys.number(key, 1.0) or 1.0)  # noqa: E731
    if style.scaled == "all":
        return of("embedding_scale"), of("residual_scale"), of("logit_scale")
    if style.scaled == "residual":
        return 1.0, of("residual_scale"), 1.0
    if style.scaled == "depth":
        return 1.0, sqrt(2 * keys.count("block_count")), 1.0
    if style.scaled == "minicpm3":  # constants of its graph, src/models/minicpm3.cpp
        return 12.0, 1.4 / sqrt(keys.count("block_count")), hidden / 256
    return embedding, 1.0, 1.0 / of("logit_scale") if style.scaled == "logits" else 1.0


def _temper(keys: Keys) -> tuple[float, int, int] | None:
    """How queries grow with position; Llama 4's numbers are constants of its graph. Raises BrokenFile."""
    if keys.architecture == "llama4":
        return 0.1, 8192, 1
    scale = float(keys.number("attention.temperature_scale", 0.0))
    if not scale:
        return None
    step = keys.count("attention.temperature_length", keys.count("rope.scaling.original_context_length", 0))
    if not step:
        raise BrokenFile(
            f"{keys.name}: metadata key `{keys.architecture}.attention.temperature_length` is missing or 0"
        )
    return scale, step, 0


def _expert_groups(keys: Keys) -> tuple[int, int]:
    """Groups of experts, and how many of them a token's experts come from (DeepSeek-V3). Raises BrokenFile."""
    n, used, experts = (
        keys.count(k, 0) for k in ("expert_group_count", "expert_group_used_count", "expert_count")
    )
    if n <= 1 or not experts:
        return 0, 0
    each, chosen = experts // n, keys.count("expert_used_count", 0)
    if experts % n or each < 2 or n > MAX_GROUPS or not 0 < used <= n or used * each < chosen:
        raise BrokenFile(f"{keys.name}: {experts} experts in {n} groups, {used} of them used")
    return n, used


def fitted(h: Hyper, names: Collection[str]) -> Hyper:
    """With what the tensors' names say: which layers have an indexer, which need an image, and, of a hybrid, which
    attend and recur."""
    if h.indexer is not None:  # files of GLM-5.2 need not list them
        first, key = h.attends.index(True) if True in h.attends else 0, "attn_k"
        if isinstance(h.indexer, Blocks):
            first, key = -1, "k_proj"
        h = replace(h, indexes=tuple(
            x and (i == first or f"blk.{i}.indexer.{key}.weight" in names) for i, x in enumerate(h.indexes)
        ))  # fmt: skip
    idle = tuple(f"blk.{i}.cross_attn_q.weight" in names for i in range(h.n_layers))
    if all(idle):
        raise BrokenFile("every layer attends to an image")
    if any(idle):
        h = replace(
            h, idle=idle, n_kv_heads=tuple(0 if x else k for x, k in zip(idle, h.n_kv_heads, strict=True))
        )
    if not h.style.recurrent:
        return h
    own = {
        "short_conv": "shortconv.conv.weight",
        "kda": "ssm_conv1d_q.weight",
        "lightning": "attn_norm_2.weight",
    }.get(h.style.recurrent, "ssm_conv1d.weight")
    recurs = tuple(f"blk.{i}.{own}" in names for i in range(h.n_layers))
    mixes = [  # these recurrent layers call their output as attention does
        f"blk.{i}.attn_output.weight" in names
        and not (recurs[i] and h.style.recurrent in ("kda", "lightning"))
        for i in range(h.n_layers)
    ]
    kv = tuple(k if mixes[i] else 0 for i, k in enumerate(h.n_kv_heads))
    if any(recurs) and h.recurrent is None:
        raise BrokenFile("metadata key `ssm.inner_size` is missing or no number")
    return replace(h, n_kv_heads=kv, recurs=recurs)


def _windows(keys: Keys, style: Style, n_layers: int) -> tuple[int, ...]:
    window = keys.count("attention.sliding_window", style.usual_window)
    pattern = keys.get("attention.sliding_window_pattern", style.window_period)
    if keys.architecture in ("lfm2", "deepseek4"):
        return (window,) * n_layers
    if not window or not (style.window_period or isinstance(pattern, (list, tuple))):
        return (0,) * n_layers
    if isinstance(pattern, (list, tuple)):
        if len(pattern) < n_layers:
            raise BrokenFile(
                f"{keys.name}: the window pattern has {len(pattern)} entries for {n_layers} layers"
            )
        return tuple(window if p else 0 for p in pattern[:n_layers])
    if not isinstance(pattern, int) or pattern < 1:
        raise BrokenFile(f"{keys.name}: a window pattern of {pattern!r}")
    return tuple(window if i % pattern < pattern - 1 else 0 for i in range(n_layers))


def _score_factor(keys: Keys, n_layers: int, hidden: int, n_heads: int, key_dim: int) -> float:
    stated = keys.number("attention.scale", 0.0)
    if stated:
        return float(stated)
    # queries and keys of these are normed instead (gemma_pytorch config.py)
    if keys.architecture in ("gemma3n", "gemma4"):
        return 1.0
    # Gemma 2 and 3 of 27B scale by the width per head instead (gemma_pytorch config.py)
    if (keys.architecture, n_layers) in (("gemma2", 46), ("gemma3", 62)):
        return 1 / sqrt(hidden / n_heads)
    log_mul = keys.number("rope.scaling.yarn_log_multiplier", 0.0)
    factor = keys.number("rope.scaling.factor", 1.0) or 1.0
    if keys.architecture in rotation.TURNED_LESS and keys.get("rope.scaling.type") == "yarn" and factor > 1:
        return (1 + 0.1 * log(factor)) ** 2 / sqrt(key_dim)
    if keys.architecture == "deepseek2" and log_mul and factor > 1:
        # DeepSeek-V2 applies YaRN's magnitude to the scores: (1 + 0.1 m ln s)^2
        return (1 + log_mul * log(factor)) ** 2 / sqrt(key_dim)
    return 1 / sqrt(key_dim)
