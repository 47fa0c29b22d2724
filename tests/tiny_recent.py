"""Tiny models of families that came in 2025 and 2026, each said in a line."""

from __future__ import annotations

import gguf
from tiny_families import SANDWICH, SIGMOID, Family, gate, routed, window
from tiny_parts import HEADS, Tiny, scaled


def _hy3(t: Tiny) -> None:
    t.w.add_expert_gating_func(SIGMOID)
    t.w.add_expert_weights_scale(2.826)
    t.w.add_expert_weights_norm(True)


def _granite_swa(t: Tiny) -> None:
    window(t)
    scaled(t)
    t.w.add_sliding_window_pattern([False, True, True, True])
    t.w.add_array("granite_swa.attention.rope_pattern", [False, True, True, True])


def _muse(t: Tiny) -> None:
    window(t)
    t.w.add_logit_scale(0.5)
    t.w.add_final_logit_softcapping(3.0)


def _ministral(t: Tiny) -> None:
    t.w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    t.w.add_rope_scaling_factor(16.0)
    t.w.add_rope_scaling_orig_ctx_len(32)
    t.w.add_rope_scaling_yarn_log_mul(1.0)
    t.w.add_attn_temperature_scale(0.1)


def _sinks(t: Tiny, p: str) -> None:
    t.vector(p + "attn_sinks.weight", HEADS, 0.0, 1.0)


RECENT: dict[str, tuple[str, Family]] = {
    "hy3": ("hy_v3", Family(heads="head", **routed(_hy3, bias="exp_probs_b", shared=256, leading=1))),
    "muse-glimmer": ("muse-glimmer", Family(SANDWICH, behind=0.25, heads="head", more=gate, n_layers=4, keys=_muse)),
    "granite-swa": ("granite_swa", Family(more=_sinks, n_layers=4, keys=_granite_swa)),
    "ministral": ("mistral3", Family(keys=_ministral)),
}  # fmt: skip
