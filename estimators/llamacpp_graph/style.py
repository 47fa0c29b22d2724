"""How llama.cpp writes each architecture's graph, where that moves memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Style:
    """What one architecture does otherwise than llama."""

    # where rows are selected for the logits, when not in the last layer
    late_outputs: Literal["", "before norm", "after norm"] = ""
    residual_first: Literal["", "feed-forward", "both"] = ""  # sums that name the residual first
    post_norm: bool = False
    norm_twice: bool = False
    early_states: bool = False  # a layer's states are gathered before the layer before it has ended
    weigh_input: bool = False  # experts' inputs are weighted, not their outputs
    no_rope: bool = False
    no_rope_in_full_layers: bool = False
    carried: bool = False  # the normed input, scaled, goes on beside mixer and feed-forward


SECTIONED_POSITIONS = frozenset({"qwen2vl", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe"})  # four per token

STYLES = {
    "cohere2": Style(no_rope_in_full_layers=True),
    "phi3": Style(residual_first="feed-forward"),
    "lfm2": Style(residual_first="both"),
    "lfm2moe": Style(residual_first="both"),
    "gpt-oss": Style(late_outputs="before norm"),
    "falcon-h1": Style(norm_twice=True),
    "gemma2": Style(post_norm=True),
    "gemma3": Style(post_norm=True),
    "glm4": Style(post_norm=True),
    "gpt2": Style(no_rope=True),
    "starcoder": Style(no_rope=True),
    "bloom": Style(no_rope=True),
    "mpt": Style(no_rope=True),
    "jais": Style(no_rope=True),
    "bailingmoe3": Style(late_outputs="after norm", early_states=True),
    "qwen3next": Style(late_outputs="after norm"),
    "qwen35": Style(late_outputs="after norm"),
    "qwen35moe": Style(late_outputs="after norm"),
    "minimax-01": Style(carried=True, early_states=True),
    "llama4": Style(weigh_input=True),
    "jamba": Style(no_rope=True, residual_first="both"),
    "nemotron_h": Style(no_rope=True, late_outputs="after norm"),
    "nemotron_h_moe": Style(no_rope=True, late_outputs="after norm"),
    "granitehybrid": Style(no_rope=True),
}
