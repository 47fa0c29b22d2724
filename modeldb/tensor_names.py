"""Roles of tensors by their GGUF names, and the layer each belongs to."""

from __future__ import annotations

import re

from modeldb.tensor import Role

_LAYER = re.compile(r"^blk\.(\d{1,6})\.(.+)$")

# first match wins; on the name without `blk.N.`
_LAYER_ROLES: tuple[tuple[re.Pattern[str], Role], ...] = (
    (re.compile(r"^nextn\."), "draft"),
    (re.compile(r"^ssm_(?!.*norm\.)|^shortconv|^attn_qkv_ssm"), "linear"),
    (re.compile(r"(_norm|norm_\d)\.(weight|bias)$|^ffn_norm$|_norm$"), "norm"),
    (re.compile(r"_shexps?\b|_shexp\."), "shared_experts"),
    (re.compile(r"^ffn_(gate|up|down|gate_up)(_exps|\.\d+)"), "experts"),
    (re.compile(r"^ffn_gate_inp|^exp_probs_b|^ffn_latent"), "router"),
    (re.compile(r"^ffn_(gate|up|down)\b|^ffn_act"), "dense"),
    (re.compile(r"^(inp_gate|proj|laurel_[lr]|altup_\w+)\.weight$"), "dense"),
    (re.compile(r"^(attn|cross_attn|indexer)"), "attention"),
)
_OUTER_ROLES: tuple[tuple[re.Pattern[str], Role], ...] = (
    (re.compile(r"^(token_embd_norm|output_norm|enc\.output_norm)\."), "norm"),
    (re.compile(r"^rope_"), "other"),
    (re.compile(r"^(token_embd|position_embd|token_types|per_layer_token_embd)\."), "embedding"),
    (re.compile(r"^output\."), "head"),
    (re.compile(r"^(per_layer_model_proj|altup_(unembd_)?proj)\."), "dense"),
    (re.compile(r"^(v\.|mm\.|vision)"), "vision"),
    (re.compile(r"^(a\.|audio)"), "audio"),
)


def layer_of(name: str) -> int | None:
    """`blk.7.attn_q.weight` -> 7; None outside the layers."""
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def role_of(name: str) -> Role:
    """What a tensor is for; `other` where its name says nothing known."""
    match = _LAYER.match(name)
    table, rest = (_LAYER_ROLES, match[2]) if match else (_OUTER_ROLES, name)
    return next((role for pattern, role in table if pattern.search(rest)), "other")
