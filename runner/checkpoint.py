"""Weights of a Hugging Face folder: `config.json` and safetensors, under the names of GGUF.

Matrices stay where the files hold them (F32, F16 or BF16); only experts stored one by one are gathered, and Gemma's
norms get the one that its code adds. Rotary pairs stand half a head apart here, in every family.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import log, pi, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from modeldb.errors import BrokenFile, UnsupportedModel
from modeldb.layers import Attention
from modeldb.model import Model
from runner.dequantize import dequantize
from runner.weights import Weight, Weights, contents

# Hugging Face model_type -> llama.cpp's architecture, whose graph the runner follows
ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "mixtral": "llama", "qwen2": "qwen2", "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe", "gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3", "phi3": "phi3",
    "opt": "opt",
}  # fmt: skip
DTYPES = ("F32", "F16", "BF16")
# quant_method of checkpoints whose FP8 (E4M3) weights the PyTorch backend runs; others of compressed-tensors and
# ModelOpt are refused by the types of their tensors
FP8_METHODS = ("fp8", "fbgemm_fp8", "compressed-tensors", "modelopt")
_PREFIX = re.compile(
    r"^(language_model\.model\.|model\.language_model\.|language_model\.|model\.decoder\.|model\.)?"
)
_ELSEWHERE = re.compile(r"^(model\.)?(vision_tower|multi_modal_projector|visual)\.|rotary_emb\.inv_freq$")
_LAYER = re.compile(r"^layers\.(\d{1,6})\.(.+)\.(weight|bias|weight_scale(?:_inv)?)$")
# activations get scales as they come
_UNUSED = re.compile(r"\.(input_scale|activation_scale|k_scale|v_scale)$")
_EXPERT = re.compile(r"^(?:mlp|block_sparse_moe)\.experts\.(\d{1,6})\.(\w+)$")
_OUTER = {
    "embed_tokens.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "embed_positions.weight": "position_embd.weight",
    "final_layer_norm.weight": "output_norm.weight",
    "final_layer_norm.bias": "output_norm.bias",
}
_STEMS = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.gate_up_proj": "ffn_up",
    "mlp.gate": "ffn_gate_inp", "block_sparse_moe.gate": "ffn_gate_inp",
}  # fmt: skip
_GEMMA_STEMS = {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
_OPT_STEMS = {
    "self_attn_layer_norm": "attn_norm", "final_layer_norm": "ffn_norm", "self_attn.out_proj": "attn_output",
    "fc1": "ffn_up", "fc2": "ffn_down",
}  # fmt: skip
_OWN_STEMS = {"gemma2": _GEMMA_STEMS, "gemma3": _GEMMA_STEMS, "opt": _OPT_STEMS}
_EXPERT_STEMS = {
    "gate_proj": "gate",
    "w1": "gate",
    "up_proj": "up",
    "w3": "up",
    "down_proj": "down",
    "w2": "down",
}


def open_folder(path: str | Path, fp8: bool = False) -> Weights:
    """The weights of a folder (or of a `config.json` or `*.safetensors` file in it). Raises BrokenFile, or
    UnsupportedModel naming what is not supported. `fp8`: whoever asks can run FP8 weights, which then keep their codes
    (format F8_E4M3) beside a tensor of scales, `NAME_scale`."""
    from modeldb.hf_config import MAX_CONFIG_BYTES, load_json, model_from_config, text_section
    from modeldb.hf_quantization import quantization
    from modeldb.safetensors_file import open_folder as stored_in

    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    file, name = folder / "config.json", str(folder)
    if not file.is_file():
        raise BrokenFile(f"{folder}: has no config.json")
    config = load_json(file.read_bytes()[:MAX_CONFIG_BYTES], str(file))
    text, model_type, _ = text_section(config, name)
    if model_type not in ARCHITECTURES:
        raise UnsupportedModel(
            f"{name}: the runner has no `{model_type[:60]}` architecture for safetensors; it runs "
            + ", ".join(ARCHITECTURES)
        )
    if (table := quantization(config)) is not None:
        method = str(table.get("quant_method") or table.get("quant_algo") or "mlx")[:40]
        packed = not (fp8 and method in FP8_METHODS)
    else:
        packed = fp8 = False
    if packed:
        raise UnsupportedModel(
            f"{name}: safetensors packed as `{method}` are not supported by the runner; F32, F16 and BF16 are"
        )
    stored = stored_in(folder)
    if not stored:
        raise BrokenFile(f"{folder}: holds no safetensors")
    architecture = ARCHITECTURES[model_type]
    tensors = _tensors(stored, folder, architecture, name, (*DTYPES, "F8_E4M3") if fp8 else DTYPES)
    model = model_from_config(config, str(file), folder.name)
    rope = _rope(text, model)
    for key, values in rope.pop("tables", {}).items():
        tensors[key] = Weight(key, "F32", (len(values),), np.asarray(values, np.float32).view(np.uint8))
    metadata = _metadata(text, model, architecture, rope)
    if (folder / "tokenizer.json").is_file():
        metadata["tokenizer.file"] = str(folder / "tokenizer.json")
    return Weights(name, metadata, tensors)


def _tensors(
    stored: tuple[Any, ...], folder: Path, architecture: str, name: str, dtypes: tuple[str, ...]
) -> dict[str, Weight]:
    maps = {file: contents(folder / file) for file in {t.file for t in stored}}
    found: dict[str, Weight] = {}
    experts: dict[str, dict[int, Weight]] = {}
    for t in stored:
        if _ELSEWHERE.search(t.name) or (len(dtypes) > len(DTYPES) and _UNUSED.search(t.name)):
            continue
        own, expert = _named(t.name, architecture, name)
        if t.dtype not in dtypes:
            raise UnsupportedModel(
                f"{name}: tensor `{t.name[:80]}` is {t.dtype}; of safetensors the runner reads {', '.join(dtypes)}"
            )
        shape = tuple(reversed(t.shape)) or ((1,) if own.endswith("_scale") else ())
        weight = Weight(own, t.dtype, shape, maps[t.file][t.offset : t.offset + t.nbytes])
        if weight.data.nbytes != t.nbytes or not weight.shape:
            raise BrokenFile(f"{name}: truncated: tensor `{t.name[:80]}` ends beyond its file")
        if expert is not None:
            experts.setdefault(own, {})[expert] = weight
            continue
        if own in found:
            raise BrokenFile(f"{name}: two tensors would be `{own}`")
        if architecture.startswith("gemma") and own.endswith("norm.weight"):
            values = dequantize(weight.format, weight.data) + np.float32(1)
            weight = Weight(own, "F32", weight.shape, values.view(np.uint8))
        found[own] = weight
    return found | {own: _stacked(own, parts, name) for own, parts in experts.items()}


def _named(stored: str, architecture: str, name: str) -> tuple[str, int | None]:
    """(GGUF's name, number of the expert or None) of a stored tensor."""
    bare = _PREFIX.sub("", stored, count=1)
    if bare in _OUTER:
        return _OUTER[bare], None
    if match := _LAYER.match(bare):
        layer, module, kind = match.groups()
        kind = kind.removesuffix("_inv")  # a name only: it multiplies (DeepSeek-V3's modeling and vLLM's FP8)
        if (expert := _EXPERT.match(module)) and expert[2] in _EXPERT_STEMS:
            return f"blk.{layer}.ffn_{_EXPERT_STEMS[expert[2]]}_exps.{kind}", int(expert[1])
        stems = _STEMS | _OWN_STEMS.get(architecture, {})
        if module in stems:
            return f"blk.{layer}.{stems[module]}.{kind}", None
    raise UnsupportedModel(f"{name}: tensor `{stored[:80]}` is not one that the runner has a place for")


def _stacked(own: str, parts: dict[int, Weight], name: str) -> Weight:
    """Experts stored one by one, as one tensor."""
    first = parts.get(0)
    if first is None or set(parts) != set(range(len(parts))):
        raise BrokenFile(f"{name}: experts of `{own}` are missing")
    if any((w.shape, w.format) != (first.shape, first.format) for w in parts.values()):
        raise BrokenFile(f"{name}: experts of `{own}` differ in shape or type")
    data = np.concatenate([parts[i].data for i in range(len(parts))])
    return Weight(own, first.format, (*first.shape, len(parts)), data)


def _metadata(
    text: Mapping[str, Any], model: Model, architecture: str, rope: dict[str, Any]
) -> dict[str, Any]:
    """What a GGUF file would say, and what only the configuration knows."""
    from modeldb import gguf_metadata

    found = gguf_metadata.header(model, architecture, ())
    own: dict[str, Any] = {
        "attention.layer_norm_rms_epsilon": _number(
            text, "rms_norm_eps", 1e-5 if architecture in ("phi3", "opt") else 1e-6
        ),
        "rope.halves": True,
        **rope,
    }
    windows = [max((m.window_tokens or 0 for m in b.mixers if isinstance(m, Attention)), default=0)
               for b in model.blocks]  # fmt: skip
    own["attention.sliding_window"] = max(windows)
    own["attention.sliding_window_pattern"] = [w > 0 for w in windows]
    if architecture in ("gemma2", "gemma3"):
        own["attention.scale"] = 1 / sqrt(_number(text, "query_pre_attn_scalar", 256))
        caps = (50.0, 30.0) if architecture == "gemma2" else (0.0, 0.0)
        own["attn_logit_softcapping"] = _number(text, "attn_logit_softcapping", caps[0])
        own["final_logit_softcapping"] = _number(text, "final_logit_softcapping", caps[1])
        if architecture == "gemma3" and any(own[f"{k}_logit_softcapping"] for k in ("attn", "final")):
            raise UnsupportedModel(f"{model.name}: Gemma 3 with soft caps is not supported by the runner")
    if "expert_count" in {k.partition(".")[2] for k in found}:
        # Mixtral always normalizes
        own["expert_weights_norm"] = bool(text.get("norm_topk_prob", architecture == "llama"))
    act = text.get("hidden_activation") or text.get("hidden_act") or text.get("activation_function")
    usual = ("gelu_pytorch_tanh", "gelu") if architecture.startswith("gemma") else ("silu",)
    usual = ("relu",) if architecture == "opt" else usual
    if act not in (None, *usual):
        raise UnsupportedModel(f"{model.name}: activation `{str(act)[:40]}` is not supported by the runner")
    return found | {f"{architecture}.{key}": value for key, value in own.items()}


def _number(text: Mapping[str, Any], key: str, default: float) -> float:
    """A number of the configuration; null counts as 0, absence as `default`."""
    value = text.get(key, default)
    value = 0.0 if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e12:
        raise BrokenFile(f"config.json: `{key}` is {str(value)[:40]!r}, not a number")
    return float(value)


def _rope(text: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """Rotation as GGUF metadata keys, with `tables` of divisors. Source: modeling_rope_utils.py of Transformers."""
    stated = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not isinstance(stated, Mapping):
        raise BrokenFile("config.json: its rotary scaling is not a table")
    own: dict[str, Any] = {}
    local = stated.get("sliding_attention")
    if isinstance(local, Mapping):
        own["rope.freq_base_swa"] = _number(local, "rope_theta", 10000.0)
        stated = stated.get("full_attention") or {}
    elif "rope_local_base_freq" in text:
        own["rope.freq_base_swa"] = _number(text, "rope_local_base_freq", 10000.0)
    usual = {"gemma3_text": 1e6, "mixtral": 1e6}.get(model.model_type, 10000.0)
    own["rope.freq_base"] = _number(
        stated, "rope_theta", _number(text, "rope_theta", model.rope_theta or usual)
    )
    kind = str(stated.get("rope_type", stated.get("type", "default")) or "default")
    if kind == "default":
        return own
    trained = _number(text, "max_position_embeddings", 0)
    original = _number(stated, "original_max_position_embeddings",
                       _number(text, "original_max_position_embeddings", trained))  # fmt: skip
    factor = _number(stated, "factor", trained / original if original else 1.0)
    if not original > 0 or not factor > 0:
        raise BrokenFile("config.json: its rotary scaling has no length or no factor")
    if kind == "llama3":
        low, high = _number(stated, "low_freq_factor", 1.0), _number(stated, "high_freq_factor", 4.0)
        return own | {
            "tables": {
                "rope_freqs.weight": _llama3(own["rope.freq_base"], model, factor, low, high, original)
            }
        }
    if kind in ("longrope", "su"):
        tables = {
            f"rope_factors_{n}.weight": _factors(stated, f"{n}_factor", model) for n in ("short", "long")
        }
        usual = sqrt(1 + log(factor) / log(original)) if factor > 1 else 1.0
        return own | {"tables": tables, "rope.scaling.type": "longrope",
                      "rope.scaling.original_context_length": int(original),
                      "rope.scaling.attn_factor": _number(stated, "attention_factor", usual)}  # fmt: skip
    plain = all(stated.get(k) in (None, v) for k, v in (("beta_fast", 32), ("beta_slow", 1), ("mscale", 1),
                ("mscale_all_dim", 0), ("attention_factor", None), ("truncate", True)))  # fmt: skip
    if kind == "linear" or (kind == "yarn" and plain):
        return own | {"rope.scaling.type": kind, "rope.scaling.factor": factor,
                      "rope.scaling.original_context_length": int(original)}  # fmt: skip
    raise UnsupportedModel(
        f"{model.name}: rotary scaling `{kind[:40]}` (as stated) is not supported by the runner"
    )


def _factors(stated: Mapping[str, Any], key: str, model: Model) -> list[float]:
    values = stated.get(key)
    if not isinstance(values, list) or len(values) != model.rotary_dim // 2:
        raise BrokenFile(f"config.json: `{key}` has not {model.rotary_dim // 2} numbers")
    return [_number({key: v}, key, 1.0) for v in values]


def _llama3(base: float, model: Model, factor: float, low: float, high: float, original: float) -> np.ndarray:
    """Llama 3.1's divisors: none for short waves, `factor` for long ones, and a blend between."""
    n = model.rotary_dim // 2
    turns = original * base ** (-np.arange(n) / n) / (2 * pi)  # in the trained context
    blend = np.clip((turns - low) / max(high - low, 1e-9), 0, 1)
    return np.asarray(1 / ((1 - blend) / factor + blend), np.float32)


__all__ = ["ARCHITECTURES", "open_folder"]
