"""Positions: which layers turn their heads, and by how much; what distance takes from scores."""

from __future__ import annotations

from math import ceil, floor, log, pi
from typing import TYPE_CHECKING

import numpy as np

from modeldb.errors import BrokenFile, UnsupportedModel
from runner.keys import Keys
from runner.styles import Style

if TYPE_CHECKING:
    from runner.hyper import Hyper

#: Whose scores have YaRN's magnitude in full, and whether the rotation has it less the file's part of it (llama.cpp
#: 0c1e57098, src/llama-context.cpp and the models' graphs).
TURNED_LESS = {"deepseek32": 1.0, "mistral4": 1.0, "glm-dsa": 0.0}


def layers(keys: Keys, style: Style, windows: tuple[int, ...]) -> tuple[bool, ...]:
    """Whether each layer rotates. `rope.layers` says so in the metadata of a sampled run, whose layers are not in the
    order of the model's."""
    for key in ("rope.layers", "attention.rope_pattern"):
        if keys.get(key) is not None:
            return tuple(bool(v) for v in keys.by_layer(key, len(windows)))
    if style.turns_near and any(windows):
        return tuple(w > 0 for w in windows)
    return tuple(not style.still_every or (i + 1) % style.still_every > 0 for i in range(len(windows)))


def slopes(n_heads: int, most: float) -> np.ndarray:
    """What a score loses per token of distance, by head (ALiBi, arXiv 2108.12409): powers of 2^(-most / n), n being the
    largest power of two that there are heads for; the heads beyond lie between the first of these."""
    n = 1 << (n_heads.bit_length() - 1)
    first = 2.0 ** (-most * np.arange(1, n + 1) / n)
    between = 2.0 ** (-most * np.arange(1, 2 * (n_heads - n), 2) / (2 * n))
    return np.concatenate([first, between]).astype(np.float32)


def check_sections(keys: Keys, rotary: int) -> None:
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


def sectioned(keys: Keys) -> bool:
    """Whether this is a Ling 3.0 that sees: its heads rotate by halves, in sections for time, height and width, which
    for text are all alike. Raises UnsupportedModel for a section of another kind."""
    sections = keys.get("rope.dimension_sections")
    if keys.architecture != "bailingmoe3" or not sections:
        return False
    plain = isinstance(sections, (list, tuple)) and all(isinstance(s, int) for s in sections)
    if not plain or len(sections) < 3 or any(sections[3:]):
        raise UnsupportedModel(
            f"{keys.name}: rotation sections {sections!r:.60} are not supported by the runner"
        )
    return bool(sections[0] > 0 and sections[1] > 0)


def frequencies(
    h: Hyper, windowed: bool, tables: dict[str, np.ndarray], n_context: int
) -> tuple[np.ndarray, float]:
    """Angle per position of each rotary pair (float32), and the magnitude of the rotation.

    `tables` are the file's rope_freqs, rope_factors_long and rope_factors_short. YaRN: arXiv 2309.00071, section 3.
    """
    keys, rotary = Keys(h.metadata, "model"), h.rotary_of(windowed)
    base, scaled = keys.number("rope.freq_base", 10000.0), True
    if h.compressed and not windowed:
        base = keys.number("attention.compress_rope_freq_base", base)
    if windowed:
        local = h.style.local_base
        scaled = local is None
        base = keys.number("rope.freq_base_swa", local or base)
    if not 1 < base < 1e15:
        raise BrokenFile(f"rotary base {base} is not plausible")
    kind = keys.get("rope.scaling.type", "none") if scaled else "none"
    factor = float(keys.number("rope.scaling.factor", 1.0) or 1.0) if scaled else 1.0
    original = keys.count("rope.scaling.original_context_length", h.max_context)
    strength = float(keys.number("rope.scaling.attn_factor", 1.0)) if scaled else 1.0
    n = rotary // 2
    frequency = base ** (-2.0 * np.arange(n) / rotary)
    long = "rope_factors_long.weight" if n_context > original else "rope_factors_short.weight"
    divisors = tables.get(long, tables.get("rope_freqs.weight"))
    if divisors is not None:
        frequency = frequency / divisors[:n]
    if kind == "yarn" and original > 0 and factor > 0:
        edge = lambda beta: rotary * log(original / (beta * 2 * pi)) / (2 * log(base))  # noqa: E731
        low, high = max(0, floor(edge(32.0))), min(rotary - 1, ceil(edge(1.0)))
        kept = 1 - np.clip((np.arange(n) - low) / max(0.001, high - low), 0, 1)
        frequency = frequency * (kept + (1 - kept) / factor)
        shared = keys.number("rope.scaling.yarn_log_multiplier", 0.0)  # what the scores have of it
        if not h.compressed and (not shared or h.architecture in TURNED_LESS):
            strength *= (1 + 0.1 * log(factor)) / (
                1 + TURNED_LESS.get(h.architecture, 0.0) * shared * log(factor)
            )
    elif kind == "linear" and factor > 0:
        frequency = frequency / factor
    elif kind not in ("none", "longrope", "su", "llama3"):
        raise UnsupportedModel(f"rotary scaling {kind!r} is not supported by the runner")
    return frequency.astype(np.float32), strength
