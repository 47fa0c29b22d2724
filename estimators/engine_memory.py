"""The constants of engines' memory, the kinds of engines, and the line of a bill.

Constants and their sources are in `data/engine_memory.yaml`, compiled to JSON; `estimators.engine_overhead`
makes lines of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from estimators.walk import Number

DATA = Path(__file__).parent / "data"
GIB = float(1 << 30)
CONTEXT = "context"
LLAMACPP = frozenset(
    {"llama.cpp", "ik_llama.cpp", "ollama", "llamafile", "ctransformers", "chatglm.cpp", "t-mac", "ipex-llm"}
)
POOLS = frozenset(
    {
        "vllm",
        "sglang",
        "trt-llm",
        "lmdeploy",
        "tgi",
        "nano-vllm",
        "pegainfer",
        "deepspeed-mii",
        "optimum-nvidia",
    }
)
TRANSFORMERS = frozenset(
    {"transformers", "autogptq", "autoawq", "litgpt", "llm-awq", "gpt-fast", "onnxruntime", "ctranslate2"}
)
BLOCK_TOKENS = {"vllm": 16, "nano-vllm": 256, "trt-llm": 32, "lmdeploy": 64, "tgi": 1, "sglang": 1}


@dataclass(frozen=True, slots=True)
class Line:
    """One item on one device: bytes, as an interval; each may be an array."""

    kind: Literal["weights", "cache", "compute", "engine", "reserve"]
    name: str
    best: Number
    low: Number
    high: Number
    source: str = ""


def exact(
    kind: Literal["weights", "cache", "compute", "engine", "reserve"],
    name: str,
    size: Number,
    source: str = "",
) -> Line:
    """A line whose bytes are known."""
    return Line(kind, name, size, size, size, source)


@cache
def constants() -> dict[str, Any]:
    """The compiled constants."""
    with open(DATA / "engine_memory.json", encoding="utf-8") as file:
        data: dict[str, Any] = json.load(file)
    return data


def compile_constants() -> dict[str, Any]:
    """The constants as the YAML source says them."""
    import yaml

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, str):
            try:
                return float(value)  # PyYAML reads 0.45e9 as text
            except ValueError:
                return value
        return value

    with open(DATA / "engine_memory.yaml", encoding="utf-8") as file:
        return plain(yaml.safe_load(file))


def spread(
    name: str, entry: dict[str, Any], source: str = "", times: Number = 1.0, kind: str = "engine"
) -> Line:
    """A line from a constant with `best`, `low` and `high` bytes."""
    text = source or entry.get("source", "")
    return Line(kind, name, entry["best"] * times, entry["low"] * times, entry["high"] * times, text)  # type: ignore[arg-type]


def context_line(backend: str) -> Line:
    """Driver context and kernels on one device."""
    known = constants()["context"]
    return spread(f"{backend} {CONTEXT}", known.get(backend, known["other"]))


def default_batch_tokens(engine: str, device_bytes: float | None) -> int:
    """max_num_batched_tokens, chunk size or max_num_tokens where the settings leave it open."""
    c = constants()
    size = device_bytes or 0.0
    if engine == "sglang":
        tiers = ("chunk_tokens_small", "chunk_tokens_middle", "chunk_tokens")
        return int(c["sglang"][tiers[(size >= 35 * GIB) + (size >= 60 * GIB)]])
    if engine in ("trt-llm", "optimum-nvidia"):
        return int(c["trt-llm"]["max_num_tokens"])
    if engine == "tgi":
        return int(c["tgi"]["prefill_tokens"])
    return int(c["vllm"]["batched_tokens_large" if size >= c["vllm"]["large_device"] else "batched_tokens"])


if __name__ == "__main__":
    text = json.dumps(compile_constants(), indent=1, sort_keys=True) + "\n"
    (DATA / "engine_memory.json").write_text(text, encoding="utf-8")
