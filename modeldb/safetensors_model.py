"""The tensors of a Hugging Face checkpoint under GGUF names and roles, with the bytes that the files hold.

Packed weights become one tensor of the logical shape (`packed-4` and the like); scales, zeros and indices
stay tensors of their own beside them (`.scales`, `.zeros`), so that the sum is exactly the files' content.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from modeldb.errors import UnsupportedModel
from modeldb.safetensors_file import DTYPE_BITS, StoredTensor
from modeldb.tensor import Role, Tensor
from modeldb.tensor_names import role_of

FORMATS = {
    "F32": "F32", "F16": "F16", "BF16": "BF16", "F64": "F64", "I64": "I64", "U64": "I64", "I32": "I32",
    "U32": "I32", "I16": "I16", "U16": "I16", "I8": "I8", "U8": "I8", "BOOL": "I8", "F4": "packed-4",
    "F6_E2M3": "packed-6", "F6_E3M2": "packed-6", "C64": "I64",
}  # fmt: skip

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer)\.(\d{1,6})\.(.+)$")
_EXPERT = re.compile(r"(?:^|\.)experts\.(\d{1,6})\.(.+)$")
# suffixes of packed weights and of what belongs to them
_PACKED = (".qweight", ".weight_packed", "_blocks", ".qweight_packed", ".q_weight")
_BESIDE = {
    ".scales": "scales",
    ".qzeros": "zeros",
    ".g_idx": "index",
    ".biases": "zeros",
    ".weight_scale": "scales",
    ".weight_scale_inv": "scales",
    ".weight_scale_2": "scale",
    ".weight_zero_point": "zeros",
    ".weight_shape": "shape",
    ".weight_g_idx": "index",
    "_scales": "scales",
    ".input_scale": "input_scale",
    ".weight_global_scale": "scale",
    ".input_global_scale": "input_scale",
    ".k_scale": "k_scale",
    ".v_scale": "v_scale",
    ".scale": "scales",
    ".absmax": "scales",
    ".quant_map": "map",
    ".nested_absmax": "nested",
    ".nested_quant_map": "nested_map",
    ".SCB": "scales",
    ".weight_format": "format",
    ".q_scale": "scales",
    ".q_invperm": "index",
    ".q_groups": "groups",
    ".q_group_map": "index",
    ".q_scale_max": "scale",
    ".weight_scale_inv_2": "scale",
    ".prescale": "scales",
}
# words in a module's name -> GGUF stem; first match wins
_STEMS: tuple[tuple[str, str], ...] = (
    (r"(self_attn|attention|attn|mixer)\.(q_proj|wq|query|q)$", "attn_q"),
    (r"(self_attn|attention|attn|mixer)\.(k_proj|wk|key|k)$", "attn_k"),
    (r"(self_attn|attention|attn|mixer)\.(v_proj|wv|value|v)$", "attn_v"),
    (r"(self_attn|attention|attn|mixer)\.(o_proj|wo|out_proj|dense|c_proj|proj)$", "attn_output"),
    (r"(qkv_proj|query_key_value|W_pack|wqkv|c_attn|Wqkv)$", "attn_qkv"),
    (r"q_a_proj$", "attn_q_a"),
    (r"q_b_proj$", "attn_q_b"),
    (r"kv_a_proj_with_mqa$", "attn_kv_a_mqa"),
    (r"kv_b_proj$", "attn_kv_b"),
    (r"q_a_layernorm$", "attn_q_a_norm"),
    (r"kv_a_layernorm$", "attn_kv_a_norm"),
    (r"(q_norm|q_layernorm|query_layernorm)$", "attn_q_norm"),
    (r"(k_norm|k_layernorm|key_layernorm)$", "attn_k_norm"),
    (r"sinks$", "attn_sinks"),
    (r"indexer\.", "indexer"),
    (r"shared_expert_gate$", "ffn_gate_inp_shexp"),
    (r"shared_experts?\.gate_proj$|shared_mlp\.gate_proj$", "ffn_gate_shexp"),
    (r"shared_experts?\.up_proj$|shared_mlp\.up_proj$", "ffn_up_shexp"),
    (r"shared_experts?\.down_proj$|shared_mlp\.(down_proj|output_linear)$", "ffn_down_shexp"),
    (r"shared_mlp\.input_linear$", "ffn_gate_up_shexp"),
    (
        r"(mlp|block_sparse_moe|feed_forward|ffn|mixer)\.(gate|router)(\.wg|\.layer)?$|router$|router\.layer$",
        "ffn_gate_inp",
    ),
    (r"e_score_correction_bias$|expert_bias$", "exp_probs_b"),
    (r"experts\.(gate_proj|w1)$", "ffn_gate_exps"),
    (r"experts\.(up_proj|w3)$", "ffn_up_exps"),
    (r"experts\.(down_proj|w2)$|output_linear$", "ffn_down_exps"),
    (r"experts\.gate_up_proj$|input_linear$", "ffn_gate_up_exps"),
    (r"(gate_proj|w1)$", "ffn_gate"),
    (r"(up_proj|w3|fc1|dense_h_to_4h|c_fc|fc_in|intermediate\.dense)$", "ffn_up"),
    (r"(down_proj|w2|fc2|dense_4h_to_h|fc_out|output\.dense|mlp\.c_proj)$", "ffn_down"),
    (r"gate_up_proj$", "ffn_gate_up"),
    (r"(linear_attn|mamba|mixer|ssm)\.(in_proj\w*)$", "ssm_in"),
    (r"(linear_attn|mamba|mixer|ssm)\.conv1d$", "ssm_conv1d"),
    (r"(linear_attn|mamba|mixer|ssm)\.out_proj$", "ssm_out"),
    (r"(linear_attn|mamba|mixer|ssm)\.(\w+)$", "ssm"),
    (r"conv\.(in_proj|out_proj|conv)$", "shortconv"),
    (r"(input_layernorm|ln_1|ln1|attention_norm|operator_norm)$", "attn_norm"),
    (r"(post_attention_layernorm|ln_2|ln2|ffn_norm)$", "ffn_norm"),
    (r"norm\w*$|layernorm\w*$", "norm"),
)
_COMPILED = tuple((re.compile(pattern), stem) for pattern, stem in _STEMS)
_OUTER = (
    (
        re.compile(r"(embed_tokens|wte|word_embeddings|tok_embeddings|embedding|embeddings)(\.weight)?$"),
        "token_embd",
    ),
    (re.compile(r"(wpe|position_embeddings|embed_positions)(\.weight)?$"), "position_embd"),
    (re.compile(r"token_type_embeddings(\.weight)?$"), "token_types"),
    (re.compile(r"(^|\.)(lm_head|embed_out|output)(\.weight)?$"), "output"),
    (re.compile(r"norm|(^|\.)ln_f(\.|$)"), "output_norm"),
)
_OTHER_TOWERS: tuple[tuple[re.Pattern[str], Role], ...] = (
    (re.compile(r"(^|\.)(visual|vision\w*|multi_modal_projector|image\w*|vit|vpm|merger|mlp1)\."), "vision"),
    (re.compile(r"(^|\.)(audio\w*|speech\w*)\."), "audio"),
    (re.compile(r"(^|\.)(mtp|nextn|eh_proj|enorm|hnorm)\b"), "draft"),
)


@dataclass(frozen=True, slots=True)
class Packing:
    """How the checkpoint packs weights: bits per weight, and whether along the outputs (AWQ) or the
    inputs."""

    bits: int
    method: str = ""


def packing(table: Mapping[str, Any] | None) -> Packing | None:
    """What `quantization_config` says of packed weights; None where it says nothing."""
    if table is None:
        return None
    method = table.get("quant_method")
    groups = table.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = first.get("weights") if isinstance(first, Mapping) else None
    bits = weights.get("num_bits") if isinstance(weights, Mapping) else table.get("bits", table.get("w_bit"))
    if isinstance(bits, bool) or not isinstance(bits, int) or bits not in (2, 3, 4, 5, 6, 8):
        bits = 4
    return Packing(bits, method if isinstance(method, str) else "mlx" if "group_size" in table else "")


def tensors(stored: tuple[StoredTensor, ...], packed: Packing | None, n_layers: int) -> tuple[Tensor, ...]:
    """Every stored tensor as one of the model's; experts of one layer with the same shape become one
    stack."""
    names = {t.name for t in stored}
    stacks: dict[tuple[str, tuple[int, ...], str], list[int]] = defaultdict(list)
    singles: dict[str, Tensor] = {}
    roles: dict[str, tuple[Role, int | None]] = {}
    for t in stored:
        tensor = _tensor(t, packed, n_layers, names)
        expert = _EXPERT.search(t.name)
        if expert is None:
            singles[t.name] = tensor
            continue
        stacks[(tensor.name, tensor.shape, tensor.format or "")].append(int(expert[1]))
        roles[tensor.name] = (tensor.role, tensor.layer)
    found = list(singles.values())
    for (name, shape, fmt), members in stacks.items():
        role, layer = roles[name]
        found.append(Tensor(name, (*shape, len(members)), role, layer, fmt))
    return tuple(found)


def _tensor(t: StoredTensor, packed: Packing | None, n_layers: int, names: set[str]) -> Tensor:
    base, part = _split(t.name, names)
    fmt, shape = FORMATS.get(t.dtype, "packed-8"), tuple(reversed(t.shape)) or (1,)
    if part == "weight" and _is_packed(t, base, names):
        bits = _bits(t, packed)
        fmt, shape = f"packed-{bits}", _logical(t, bits, packed)
    name, role, layer = _named(base, n_layers)
    if role == "norm" and len([d for d in shape if d > 1]) > 1 and part == "weight":
        role = "other"
    return Tensor(f"{name}.{part}", shape, role, layer, fmt)


def _split(name: str, names: set[str]) -> tuple[str, str]:
    """(module, part): `...q_proj.qweight` -> (`...q_proj`, `weight`)."""
    for suffix in _PACKED:
        if name.endswith(suffix):
            return name[: -len(suffix)], "weight"
    for suffix, part in _BESIDE.items():
        if name.endswith(suffix):
            return name[: -len(suffix)].removesuffix(".weight"), part
    head, _, tail = name.rpartition(".")
    if tail in ("weight", "bias"):
        return head, tail
    if ".weight.quant_state" in name:
        return name.split(".weight.quant_state")[0], "state"
    return name, "weight"


def _is_packed(t: StoredTensor, base: str, names: set[str]) -> bool:
    if t.dtype in ("F8_E4M3", "F8_E5M2", "BF16", "F16", "F32", "F4", "I8"):
        return False
    if any(t.name.endswith(s) for s in _PACKED):
        return True
    beside = (".scales", ".weight.absmax", ".weight_scale", ".weight_scale_inv", ".weight_scale_2")
    return t.dtype in ("U8", "U32", "I32") and any(f"{base}{s}" in names for s in beside)


def _bits(t: StoredTensor, packed: Packing | None) -> int:
    if t.name.endswith("_blocks") or t.dtype == "U8":
        return 4  # MXFP4, NF4, NVFP4: two in a byte
    if packed is None:
        raise UnsupportedModel(
            f"{t.file}: `{t.name[:80]}` is packed, and no config.json with `quantization_config` says how; "
            "give the folder that holds both"
        )
    return packed.bits


def _logical(t: StoredTensor, bits: int, packed: Packing | None) -> tuple[int, ...]:
    """(inputs, outputs) of a packed matrix, whatever axis is packed; the product is what matters to size."""
    per_word = DTYPE_BITS[t.dtype] / bits
    n_weights = round(prod(t.shape) * per_word)
    if t.name.endswith("_blocks") and len(t.shape) == 4:  # gpt-oss: experts, outputs, groups, 16 bytes
        experts, outputs, groups, width = t.shape
        return (round(groups * width * per_word), outputs, experts)
    if len(t.shape) != 2 or min(t.shape) == 1 or not n_weights:
        return (max(n_weights, 1),)
    method = packed.method if packed else ""
    rows, columns = t.shape
    outputs = columns if t.name.endswith(".qweight") and method != "awq" else rows
    if method == "awq" and t.name.endswith(".qweight"):
        return (rows, n_weights // rows)
    return (n_weights // outputs, outputs)


def _named(base: str, n_layers: int) -> tuple[str, Role, int | None]:
    """(GGUF-like name, role, layer) of a module."""
    for pattern, role in _OTHER_TOWERS:
        if pattern.search(base):
            return base, role, None
    match = _LAYER.search(base)
    if match is None:
        stem = next((stem for pattern, stem in _OUTER if pattern.search(base)), base)
        return stem, role_of(f"{stem}.weight"), None
    layer, rest = int(match[1]), _EXPERT.sub(lambda m: f".experts.{m[2]}", match[2])
    if layer >= n_layers:
        return base, "draft", layer
    stem = next((stem for pattern, stem in _COMPILED if pattern.search(rest)), rest)
    if stem in ("norm", "ssm", "indexer", "shortconv", "ssm_in"):
        stem = f"{stem}.{rest.rpartition('.')[2]}" if stem != "norm" else f"{rest.rpartition('.')[2]}_norm"
    return f"blk.{layer}.{stem}", role_of(f"blk.{layer}.{stem}.weight"), layer


def renamed_once(found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Two modules may map to one name (several norms): number the later ones."""
    seen: dict[str, int] = {}
    out = []
    for t in found:
        n = seen[t.name] = seen.get(t.name, 0) + 1
        out.append(t if n == 1 else replace(t, name=f"{t.name}#{n}"))
    return tuple(out)
