"""A Hugging Face `config.json` as a model. Remote code that it names (`auto_map`) is noted, never run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from modeldb.errors import BrokenFile, UnsupportedModel
from modeldb.hf_keys import Config
from modeldb.model import Model
from modeldb.shape import Shape, build

MAX_CONFIG_BYTES = 16 << 20
# where multimodal configurations keep their text model
TEXT_SECTIONS = ("text_config", "llm_config", "language_config", "thinker_config")
OTHER_SECTIONS = (
    "vision_config",
    "audio_config",
    "vision_tower_config",
    "mm_vision_config",
    "audio_encoder_config",
    "image_config",
    "projector_config",
    "quantization_config",
    "quantization",
    "compression_config",
    "processor_config",
    "speech_config",
)
# text models of multimodal configurations whose text section says nothing, or something general
TEXT_TYPES = {
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text",
    "mllama": "mllama_text_model",
    "gemma4_unified": "gemma4_unified_text",
    "llama4": "llama4_text",
    "mistral3": "mistral",
    "qwen2_vl": "qwen2_vl_text",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen3_vl": "qwen3_vl_text",
    "qwen3_vl_moe": "qwen3_vl_moe_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "kimi_k25": "deepseek_v3",
    "minimax_m3_vl": "minimax_m3_vl_text",
    "muse_glimmer": "muse_glimmer_text",
    "glm5_next": "glm5_next_text",
    "step3p7": "step3p5",
    "kimi_vl": "deepseek_v3",
}
# keys a saved file of its own must have: a class's default would describe some other model
REQUIRED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "n_embd",
    "n_layer",
    "n_head",
    "n_layers",
    "n_heads",
    "d_model",
    "num_layers",
    "decoder_layers",
    "moe_intermediate_size",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "num_experts_per_tok",
    "shared_expert_intermediate_size",
)


def load_json(text: str | bytes, name: str) -> dict[str, Any]:
    """A JSON object. Raises BrokenFile for anything else: deep nesting, huge numbers and repeated keys
    included."""
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise BrokenFile(f"{name}: JSON nested too deeply") from None
    except UnicodeDecodeError:
        raise BrokenFile(f"{name}: not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise BrokenFile(
            f"{name}: not JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from None
    except ValueError as error:
        raise BrokenFile(f"{name}: {error}") from None
    if not isinstance(value, dict):
        raise BrokenFile(f"{name}: not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [k for k, _ in pairs]
        repeated = next(k for k in names if names.count(k) > 1)
        raise ValueError(f"key `{repeated[:60]}` occurs twice")
    return found


@cache
def _defaults() -> dict[str, dict[str, Any]]:
    path = Path(__file__).parent / "data" / "hf_defaults.json"
    return json.loads(path.read_text(encoding="utf-8"))


def read_config(config: Mapping[str, Any], name: str) -> tuple[Shape, tuple[str, ...]]:
    """The shape that a configuration describes, and notes on what was left aside.

    Raises UnsupportedModel for a `model_type` or a size-bearing key that is not understood (named in the
    message), BrokenFile for values that cannot be.
    """
    from modeldb.hf_families import FAMILIES

    notes = []
    if config.get("auto_map"):
        notes.append("its remote code is not run")
    text, model_type, nested = text_section(config, name)
    if model_type not in FAMILIES:
        raise UnsupportedModel(
            f"{name}: model_type `{model_type[:60]}` is not supported yet; use a GGUF of it, whose "
            f"tensors say it all, "
            f"or one of {', '.join(sorted(FAMILIES))}"
        )
    defaults = dict(_defaults().get(model_type, {}))
    if not nested:
        defaults = {k: v for k, v in defaults.items() if k not in REQUIRED}
        defaults |= {k: v for k, v in _defaults().get(model_type, {}).items() if k == "head_dim"}
    c = Config(text, defaults, name)
    c.understood.update(TEXT_SECTIONS, OTHER_SECTIONS)
    try:
        fields = FAMILIES[model_type](c)
    except (ZeroDivisionError, OverflowError, TypeError):
        raise BrokenFile(f"{name}: its numbers contradict each other") from None
    if left := c.unknown():
        notes.append("not understood, and taken to be harmless: " + ", ".join(left)[:200])
    fields["tie_word_embeddings"] = _tied(config, nested, fields)
    if _headless(config):
        fields["has_lm_head"] = False
    if nested and any(s in config for s in ("vision_config", "audio_config")):
        notes.append("only the text model is counted: its vision and audio parts are not")
    return Shape(model_type=model_type, **fields), tuple(notes)


def text_section(config: Mapping[str, Any], name: str) -> tuple[Mapping[str, Any], str, bool]:
    """(the text model's keys, its model_type, whether they are nested in a multimodal configuration)."""
    outer = config.get("model_type")
    if not isinstance(outer, str) or not outer:
        raise BrokenFile(
            f"{name}: key `model_type` is missing; this is not a Hugging Face model configuration"
        )
    for key in TEXT_SECTIONS:
        inner = config.get(key)
        if isinstance(inner, dict):
            inner_type = inner.get("model_type")
            own = inner_type if isinstance(inner_type, str) and inner_type else TEXT_TYPES.get(outer, outer)
            return inner, TEXT_TYPES.get(own, own), True
    return config, TEXT_TYPES.get(outer, outer), False


def _headless(config: Mapping[str, Any]) -> bool:
    """Published as a bare encoder (`MistralModel`, `BertModel`): there is no head in the file."""
    names = config.get("architectures")
    first = names[0] if isinstance(names, list) and names else ""
    return (
        isinstance(first, str)
        and first.endswith("Model")
        and not first.endswith(("LMHeadModel", "ForCausalLM"))
    )


def _tied(config: Mapping[str, Any], nested: bool, fields: Mapping[str, Any]) -> bool:
    """Multimodal configurations may tie at the outer level."""
    outer = config.get("tie_word_embeddings") if nested else None
    return bool(fields.get("tie_word_embeddings")) if not isinstance(outer, bool) else outer


def model_from_config(config: Mapping[str, Any], name: str, title: str) -> Model:
    """The model of a configuration; `title` becomes its id and its name."""
    shape, notes = read_config(config, name)
    try:
        return build(
            shape,
            id=title,
            name=title,
            family=title,
            base=title,
            modality="embedding" if not shape.has_lm_head else "text",
            source="; ".join([f"configuration {name}", *notes]),
        )
    except (ZeroDivisionError, OverflowError, TypeError):
        raise BrokenFile(f"{name}: its numbers contradict each other") from None
