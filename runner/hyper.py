"""Hyperparameters of the forward pass, read from GGUF metadata (of a file, or of a catalogue model)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from math import ceil, floor, log, pi, sqrt
from typing import Any

import numpy as np

from modeldb.errors import BrokenFile, UnsupportedModel


@dataclass(frozen=True, slots=True)
class Style:
    """What an architecture fixes and its files do not say.

    Attributes:
        halves: rotary pairs are (i, i + n/2) rather than neighbours.
        activation: `silu`, `gelu_tanh` or `swiglu_oai`.
        scaled_embedding: embeddings are multiplied by sqrt(hidden size).
        window_period: every n-th layer sees everything, the others a window; 0: the window is not used.
        local_rope: windowed layers rotate with base 10,000 and without scaling (Gemma 3).
        router: how expert scores become weights (`runner.kernel_ops`).
        normalize: expert weights are divided by their sum.
        recurrent: what layers without attention are (`mamba2`, `delta`, `short_conv`); empty: all layers attend.
        rotates: heads are rotated; None: unless the file's rope.scaling.finetuned says no.
        shared_keys: neighbouring value heads share a key head of the delta rule, rather than distant ones.
    """

    halves: bool = True
    activation: str = "silu"
    scaled_embedding: bool = False
    window_period: int = 0
    local_rope: bool = False
    router: str = "softmax"
    normalize: bool = True
    recurrent: str = ""
    rotates: bool | None = True
    shared_keys: bool = False


# https://github.com/ggml-org/llama.cpp/tree/master/src/models holds the graphs these follow.
STYLES: dict[str, Style] = {
    "llama": Style(halves=False),
    "qwen2": Style(),
    "qwen3": Style(),
    "qwen2moe": Style(normalize=False),
    "qwen3moe": Style(),
    "gemma": Style(activation="gelu_tanh", scaled_embedding=True),
    "gemma2": Style(activation="gelu_tanh", scaled_embedding=True, window_period=2),
    "gemma3": Style(activation="gelu_tanh", scaled_embedding=True, window_period=6, local_rope=True),
    "phi3": Style(),
    "gpt-oss": Style(activation="swiglu_oai", window_period=2, router="softmax_of_chosen"),
    "deepseek2": Style(halves=False, normalize=False),
    "granite": Style(halves=False, rotates=None),
    "granitemoe": Style(halves=False, rotates=None),
    "falcon-h1": Style(recurrent="mamba2"),
    "granitehybrid": Style(halves=False, recurrent="mamba2", rotates=None),
    "nemotron_h": Style(activation="relu_squared", recurrent="mamba2", rotates=False),
    "nemotron_h_moe": Style(
        activation="relu_squared", recurrent="mamba2", rotates=False, router="sigmoid", normalize=False
    ),
    "lfm2": Style(recurrent="short_conv"),
    "lfm2moe": Style(recurrent="short_conv"),
    "qwen3next": Style(recurrent="delta", shared_keys=True),
    "qwen35": Style(recurrent="delta"),
    "qwen35moe": Style(recurrent="delta"),
}


MAX_LAYERS = 4096  # far beyond any model; what a damaged file may claim is not allocated for


@dataclass(frozen=True, slots=True)
class Recurrent:
    """Sizes of a recurrent layer: `taps` of its convolution over `channels`, and `n_heads` states of `head_rows` rows
    of `state` numbers, in `n_groups` that share inputs. A short convolution has no states."""

    taps: int
    channels: int
    n_heads: int = 0
    head_rows: int = 0
    state: int = 0
    n_groups: int = 1

    @property
    def inner(self) -> int:
        return self.n_heads * self.head_rows

    @property
    def tail_numbers(self) -> int:
        return (self.taps - 1) * self.channels

    @property
    def state_numbers(self) -> int:
        return self.inner * self.state


@dataclass(frozen=True)
class Hyper:
    """Numbers of one model. Per-layer tuples have one entry per layer; `windows` are 0 where a layer sees
    everything, `n_kv_heads` where it does not attend (see `fitted`)."""

    architecture: str
    style: Style
    n_layers: int
    hidden: int
    n_heads: int
    n_kv_heads: tuple[int, ...]
    head_dim: int
    value_dim: int
    eps: float
    rotary: int
    windows: tuple[int, ...]
    max_context: int
    score_factor: float
    score_cap: float
    logit_cap: float
    n_experts: int
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
    metadata: dict[str, Any]

    @property
    def is_latent(self) -> bool:
        return self.kv_rank > 0

    @property
    def attends(self) -> tuple[bool, ...]:
        return tuple(n > 0 for n in self.n_kv_heads)


class _Keys:
    def __init__(self, metadata: dict[str, Any], name: str) -> None:
        self.metadata, self.name = metadata, name
        self.architecture = metadata.get("general.architecture", "")

    def get(self, key: str, default: Any = None) -> Any:
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        return default if value is None else value

    def number(self, key: str, default: float | None = None) -> Any:
        value = self.get(key, default)
        if isinstance(value, (list, tuple)) and value and all(v == value[0] for v in value):
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise BrokenFile(f"{self.name}: metadata key `{self.architecture}.{key}` is missing or no number")
        if value != value or abs(value) > 1e15:
            raise BrokenFile(f"{self.name}: metadata key `{self.architecture}.{key}` is {value}")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        value = self.number(key, default)
        if value != int(value) or not 0 <= value < 1 << 31:
            raise BrokenFile(f"{self.name}: metadata key `{self.architecture}.{key}` is {value}")
        return int(value)


def read(metadata: dict[str, Any], name: str) -> Hyper:
    """Raises UnsupportedModel for an architecture that the runner has no forward pass for, BrokenFile
    otherwise."""
    keys = _Keys(metadata, name)
    style = STYLES.get(str(keys.architecture))
    if style is None:
        if (
            not isinstance(keys.architecture, str)
            or not keys.architecture.isprintable()
            or not keys.architecture
        ):
            raise BrokenFile(f"{name}: metadata key `general.architecture` names no architecture")
        known = ", ".join(STYLES)
        raise UnsupportedModel(
            f"{name}: the runner has no `{keys.architecture}` architecture; it runs {known}"
        )
    if keys.get("rope.halves"):  # llama's matrices as Hugging Face stores them
        style = replace(style, halves=True)
    # layers that predict a token further (multi-token prediction) follow the others; they are not run
    n_layers = keys.count("block_count") - keys.count("nextn_predict_layers", 0)
    hidden = keys.count("embedding_length")
    n_heads = keys.count("attention.head_count")
    if not (0 < n_layers <= MAX_LAYERS and hidden and n_heads):
        raise BrokenFile(f"{name}: {n_layers} layers of width {hidden} with {n_heads} heads is not a model")
    head_dim = keys.count("attention.key_length", hidden // n_heads)
    if not 0 < head_dim <= 1 << 16:
        raise BrokenFile(f"{name}: attention heads of width {head_dim}")
    kv = keys.get("attention.head_count_kv", n_heads)
    n_kv = tuple(kv) if isinstance(kv, (list, tuple)) else (kv,) * n_layers
    least = 0 if style.recurrent else 1
    if len(n_kv) < n_layers or any(not isinstance(k, int) or k < least or (k and n_heads % k) for k in n_kv):
        raise BrokenFile(f"{name}: key-value heads {kv} do not divide {n_heads} heads")
    kv_rank = keys.count("attention.kv_lora_rank", 0)
    key_dim = keys.count("attention.key_length_mla", head_dim) if kv_rank else head_dim
    if kv_rank and not keys.get("attention.key_length_mla"):
        raise UnsupportedModel(
            f"{name}: latent attention with joined `attn_kv_b`; convert it with a newer llama.cpp"
        )
    rotates = style.rotates if style.rotates is not None else keys.get("rope.scaling.finetuned", True)
    rotary = keys.count("rope.dimension_count", head_dim) if rotates else 0
    if kv_rank and not 0 < rotary < key_dim <= 1 << 16:
        raise BrokenFile(f"{name}: {rotary} rotary channels in latent heads of width {key_dim}")
    _check_sections(keys, rotary)
    n_experts = keys.count("expert_count", 0)
    scaled = str(keys.architecture).startswith("granite")
    scale = lambda key: float(keys.number(key, 1.0) or 1.0) if scaled else 1.0  # noqa: E731
    return Hyper(
        architecture=keys.architecture,
        style=style,
        n_layers=n_layers,
        hidden=hidden,
        n_heads=n_heads,
        n_kv_heads=n_kv[:n_layers],
        head_dim=head_dim,
        value_dim=keys.count("attention.value_length", head_dim),
        eps=keys.number("attention.layer_norm_rms_epsilon", keys.get("attention.layer_norm_epsilon")),
        rotary=rotary,
        windows=_windows(keys, style, n_layers),
        max_context=keys.count("context_length", 0),
        score_factor=_score_factor(keys, n_layers, hidden, n_heads, key_dim),
        score_cap=keys.number("attn_logit_softcapping", 50.0) if keys.architecture == "gemma2" else 0.0,
        logit_cap=keys.number("final_logit_softcapping", 30.0 if keys.architecture == "gemma2" else 0.0),
        n_experts=n_experts,
        per_token=keys.count("expert_used_count", 0),
        expert_factor=keys.number("expert_weights_scale", 1.0) or 1.0,
        router="sigmoid" if keys.get("expert_gating_func", 1) == 2 else style.router,
        normalize=bool(keys.get("expert_weights_norm", style.normalize)),
        kv_rank=kv_rank,
        nope_dim=key_dim - rotary if kv_rank else 0,
        latent_value_dim=keys.count("attention.value_length_mla", 0) if kv_rank else 0,
        embedding_scale=float(np.float32(hidden) ** np.float32(0.5))
        if style.scaled_embedding
        else scale("embedding_scale"),
        residual_scale=scale("residual_scale"),
        logit_scale=scale("logit_scale"),
        recurrent=_recurrent(keys, style, hidden),
        recurs=(False,) * n_layers,
        metadata=metadata,
    )  # fmt: skip


def _check_sections(keys: _Keys, rotary: int) -> None:
    """Interleaved rotation over time, height and width equals plain rotation for text, where no pair is left over.
    Raises UnsupportedModel."""
    sections = keys.get("rope.dimension_sections")
    if not sections or not str(keys.architecture).startswith("qwen35"):
        return
    whole = (
        isinstance(sections, (list, tuple))
        and len(sections) >= 3
        and all(isinstance(s, int) for s in sections)
    )
    if not whole or any(k >= 3 * sections[k % 3] for k in range(min(sum(sections), rotary // 2))):
        raise UnsupportedModel(
            f"{keys.name}: rotation sections {sections!r:.60} are not supported by the runner"
        )


def _recurrent(keys: _Keys, style: Style, hidden: int) -> Recurrent | None:
    if not style.recurrent:
        return None
    if style.recurrent == "short_conv":
        found = Recurrent(keys.count("shortconv.l_cache"), hidden)
    else:
        inner, heads = keys.count("ssm.inner_size"), keys.count("ssm.time_step_rank")
        state, groups = keys.count("ssm.state_size"), keys.count("ssm.group_count")
        if not heads or not groups or not state or inner % heads or heads % groups or inner % groups:
            raise BrokenFile(
                f"{keys.name}: a state of {state} x {inner} in {heads} heads and {groups} groups is none"
            )
        found = Recurrent(
            keys.count("ssm.conv_kernel"), inner + 2 * groups * state, heads, inner // heads, state, groups
        )
    if not 2 <= found.taps <= 64:
        raise BrokenFile(f"{keys.name}: a convolution of {found.taps} taps")
    if found.state % 32 or found.head_rows % 4:
        raise UnsupportedModel(
            f"{keys.name}: states of {found.head_rows} x {found.state} are not supported by the runner "
            "(multiples of 4 x 32)"
        )
    return found


def fitted(h: Hyper, names: Collection[str]) -> Hyper:
    """With what the tensors' names say: which layers of a hybrid attend and which recur."""
    if not h.style.recurrent:
        return h
    own = "shortconv.conv.weight" if h.style.recurrent == "short_conv" else "ssm_conv1d.weight"
    kv = tuple(k if f"blk.{i}.attn_output.weight" in names else 0 for i, k in enumerate(h.n_kv_heads))
    return replace(h, n_kv_heads=kv, recurs=tuple(f"blk.{i}.{own}" in names for i in range(h.n_layers)))


def _windows(keys: _Keys, style: Style, n_layers: int) -> tuple[int, ...]:
    window = keys.count("attention.sliding_window", 4096 if keys.architecture == "gemma2" else 0)
    pattern = keys.get("attention.sliding_window_pattern", style.window_period)
    if keys.architecture == "lfm2":
        return (window,) * n_layers
    if not window or not (style.window_period or isinstance(pattern, list)):
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


def _score_factor(keys: _Keys, n_layers: int, hidden: int, n_heads: int, key_dim: int) -> float:
    stated = keys.number("attention.scale", 0.0)
    if stated:
        return float(stated)
    # Gemma 2 and 3 of 27B scale by the width per head instead (gemma_pytorch config.py)
    if (keys.architecture, n_layers) in (("gemma2", 46), ("gemma3", 62)):
        return 1 / sqrt(hidden / n_heads)
    log_mul = keys.number("rope.scaling.yarn_log_multiplier", 0.0)
    factor = keys.number("rope.scaling.factor", 1.0) or 1.0
    if keys.architecture == "deepseek2" and log_mul and factor > 1:
        # DeepSeek-V2 applies YaRN's magnitude to the scores: (1 + 0.1 m ln s)^2
        return (1 + log_mul * log(factor)) ** 2 / sqrt(key_dim)
    return 1 / sqrt(key_dim)


def rope_frequencies(
    h: Hyper, windowed: bool, tables: dict[str, np.ndarray], n_context: int
) -> tuple[np.ndarray, float]:
    """Angle per position of each rotary pair (float32), and the magnitude of the rotation.

    `tables` are the file's rope_freqs, rope_factors_long and rope_factors_short. YaRN: arXiv 2309.00071,
    section 3.
    """
    keys = _Keys(h.metadata, "model")
    base, scaled = keys.number("rope.freq_base", 10000.0), True
    if windowed:
        scaled = not h.style.local_rope
        base = keys.number("rope.freq_base_swa", 10000.0 if h.style.local_rope else base)
    if not 1 < base < 1e15:
        raise BrokenFile(f"rotary base {base} is not plausible")
    kind = keys.get("rope.scaling.type", "none") if scaled else "none"
    factor = float(keys.number("rope.scaling.factor", 1.0) or 1.0) if scaled else 1.0
    original = keys.count("rope.scaling.original_context_length", h.max_context)
    magnitude = float(keys.number("rope.scaling.attn_factor", 1.0))
    n = h.rotary // 2
    frequency = base ** (-2.0 * np.arange(n) / h.rotary)
    long = "rope_factors_long.weight" if n_context > original else "rope_factors_short.weight"
    divisors = tables.get(long, tables.get("rope_freqs.weight"))
    if divisors is not None:
        frequency = frequency / divisors[:n]
    if kind == "yarn" and original > 0 and factor > 0:
        edge = lambda beta: h.rotary * log(original / (beta * 2 * pi)) / (2 * log(base))  # noqa: E731
        low, high = max(0, floor(edge(32.0))), min(h.rotary - 1, ceil(edge(1.0)))
        kept = 1 - np.clip((np.arange(n) - low) / max(0.001, high - low), 0, 1)
        frequency = frequency * (kept + (1 - kept) / factor)
        if not keys.number("rope.scaling.yarn_log_multiplier", 0.0):
            magnitude *= 1 + 0.1 * log(factor)
    elif kind == "linear" and factor > 0:
        frequency = frequency / factor
    elif kind not in ("none", "longrope", "su", "llama3"):
        raise UnsupportedModel(f"rotary scaling {kind!r} is not supported by the runner")
    return frequency.astype(np.float32), magnitude
