"""A model: its blocks of layers, from which its tensors and caches follow."""

from __future__ import annotations

from dataclasses import dataclass, field

from modeldb.layers import Block
from modeldb.tensor import Cache, Tensor


@dataclass(frozen=True, slots=True)
class Evidence:
    """One published score: `score` in `unit` on `benchmark`, by whom (`kind`), where and when."""

    benchmark: str
    score: float
    unit: str
    kind: str
    source: str
    date: str = ""


@dataclass(frozen=True)
class Model:
    """An architecture with its identity. Everything about size follows from `blocks`, `hidden_size` and
    `vocab_size`; nothing here is a formula of the parameter count.

    Attributes:
        id: catalogue slug (`qwen3-8b`); for a file, its stem.
        base: id of the model this one is tuned from (itself when it is a base), for folding in answers.
        architecture: llama.cpp's name (`llama`, `qwen3moe`), or "" where llama.cpp has none.
        model_type: Hugging Face `model_type`.
        file_tensors: the exact tensors when the model was read from a GGUF or safetensors header.
    """

    id: str
    name: str
    hf_id: str
    family: str
    base: str
    architecture: str
    model_type: str
    modality: str
    hidden_size: int
    vocab_size: int
    tied_embeddings: bool
    max_context: int | None
    blocks: tuple[Block, ...]
    has_head: bool = True
    native_dtype: str = "bf16"
    licence: str = ""
    release_date: str = ""
    ollama_tag: str = ""
    evidence: tuple[Evidence, ...] = ()
    non_text_params: int = 0  # vision and audio towers, projectors
    extra: tuple[tuple[str, float], ...] = ()  # size-bearing oddities of one family, by name
    file_tensors: tuple[Tensor, ...] = field(default=(), repr=False)
    source: str = ""
    encoder_blocks: tuple[Block, ...] = ()  # Whisper
    norm_width: int = 1  # parameters per channel of a norm
    rotary_dim: int = 0  # channels of a head that rotate
    rope_theta: float = 0.0
    rope_scaling: str = ""  # its type (`llama3`, `longrope`, `yarn`)
    causal: bool = True  # False: an encoder, which keeps no cache
    aliases: tuple[str, ...] = ()
    verified: str = ""  # how the parameter count was checked; `exact`, or in words
    unsourced: tuple[str, ...] = ()  # fields without a public copy behind them

    def extra_value(self, name: str, default: int = 0) -> int:
        """The oddity of this name in `extra`."""
        return next((int(v) for k, v in self.extra if k == name), default)

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor of the model, in file order (those of the file when it was read from one)."""
        from modeldb.walk import tensors

        return self.file_tensors or tensors(self)

    def caches(self) -> tuple[Cache, ...]:
        """One cache per layer that keeps one, in layer order."""
        from modeldb.walk import caches

        return caches(self)
