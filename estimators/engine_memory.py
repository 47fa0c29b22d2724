"""What each engine takes besides weights and cache: contexts, activation peaks, graphs, workspaces, pools.

Constants and their sources are in `data/engine_memory.yaml`, compiled to JSON. Functions broadcast.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from estimators.walk import Number, Walk

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


def _line(
    name: str, entry: dict[str, Any], source: str = "", times: Number = 1.0, kind: str = "engine"
) -> Line:
    text = source or entry.get("source", "")
    return Line(kind, name, entry["best"] * times, entry["low"] * times, entry["high"] * times, text)  # type: ignore[arg-type]


def context_line(backend: str) -> Line:
    """Driver context and kernels on one device."""
    known = constants()["context"]
    return _line(f"{backend} {CONTEXT}", known.get(backend, known["other"]))


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


def overhead_lines(
    engine: str,
    walk: Walk,
    backend: str,
    *,
    batch_tokens: Number,
    prompt_tokens: Number,
    cache_bytes: Number,
    context_tokens: Number = 0,
    n_sequences: Number = 1,
    last: bool = True,
    family: str = "",
    max_context: int | None = None,
    n_ranks: int = 1,
    device_bytes: float | None = None,
    eager: bool = False,
    year: float | None = None,
) -> list[Line]:
    """Lines of one rank of an engine that is not llama.cpp. `cache_bytes` are this rank's keys and values."""
    c = constants()
    if engine in ("vllm", "nano-vllm", "pegainfer", "deepspeed-mii"):
        return _vllm(c["vllm"], walk, batch_tokens, n_ranks, eager)
    if engine == "sglang":
        return _sglang(c["sglang"], batch_tokens, n_ranks, device_bytes, eager)
    if engine in ("trt-llm", "optimum-nvidia"):
        return _trtllm(c["trt-llm"], walk, batch_tokens, n_ranks)
    if engine == "lmdeploy":
        return [
            _line(
                "activations and workspaces",
                c["lmdeploy"]["overhead"],
                c["lmdeploy"]["source"],
                kind="compute",
            )
        ]
    if engine == "tgi":
        return _vllm(c["vllm"], walk, batch_tokens, n_ranks, eager)
    if engine in TRANSFORMERS:
        return [
            context_line(backend),
            *_transformers(
                c["transformers"],
                walk,
                prompt_tokens,
                context_tokens,
                cache_bytes,
                n_sequences,
                year,
                last,
                family,
                max_context,
                engine == "litgpt",
            ),
        ]
    if engine == "mlx":
        return [
            _line("activations and buffer cache", c["mlx"]["workspace"], c["mlx"]["source"], kind="compute")
        ]
    return [
        context_line(backend),
        _line("workspaces", c["generic"]["workspace"], c["generic"]["source"], kind="compute"),
    ]


def _vllm(c: dict[str, Any], walk: Walk, batch_tokens: Number, n_ranks: int, eager: bool) -> list[Line]:
    dense, moe = c["activation_per_token"]["dense"], c["activation_per_token"]["moe"]
    sparse = np.asarray(walk.n_moe_layers) > 0
    per_token = {k: np.where(sparse, moe[k], dense[k]) * batch_tokens for k in ("best", "low", "high")}
    lines = [
        Line(
            "compute", "activation peak", per_token["best"], per_token["low"], per_token["high"], c["source"]
        )
    ]
    if not eager:
        lines.append(_line("CUDA graphs", c["graphs"], c["source"]))
    name = "context and NCCL" if n_ranks > 1 else "context outside PyTorch"
    return [*lines, _line(name, c["nontorch_parallel" if n_ranks > 1 else "nontorch"], c["source"])]


def _sglang(
    c: dict[str, Any], batch_tokens: Number, n_ranks: int, device_bytes: float | None, eager: bool
) -> list[Line]:
    graph_batch = c["graph_batch_small" if (device_bytes or 0) < 35 * GIB else "graph_batch"]
    chunk = c["per_chunk_token"] * batch_tokens
    lines = [
        _line("context and workspaces", c["static"], c["source"]),
        Line("compute", "chunk activations", chunk, 0.5 * chunk, 1.2 * chunk, c["source"]),
    ]
    if n_ranks > 1:
        lines.append(exact("engine", "communication", c["per_rank"] * n_ranks, c["source"]))
    if not eager:
        graphs = c["per_graph_batch"] * graph_batch
        lines.append(Line("engine", "CUDA graphs", graphs, 0.5 * graphs, 3 * graphs, c["source"]))
    return lines


def _trtllm(c: dict[str, Any], walk: Walk, batch_tokens: Number, n_ranks: int) -> list[Line]:
    width = walk.n_heads * walk.head_dim
    activation = 2.0 * batch_tokens * width * c["activation_factor"] / n_ranks
    lines = [
        Line("compute", "activation peak", activation, 0.7 * activation, 1.4 * activation, c["source"]),
        _line("context, engine and workspaces", c["base"], c["source"]),
    ]
    return (
        [*lines, _line("NCCL and all-reduce workspaces", c["parallel"], c["source"])]
        if n_ranks > 1
        else lines
    )


def _transformers(
    c: dict[str, Any],
    walk: Walk,
    prompt: Number,
    context: Number,
    cache_bytes: Number,
    n_sequences: Number,
    year: float | None,
    last: bool,
    family: str,
    max_context: int | None,
    untied: bool = False,
) -> list[Line]:
    """The peak above weights and the final cache: prompt logits, a cache while it is copied, activations.

    `cache_bytes` is this device's final cache, `context` its tokens per sequence; `last` holds the head.
    """
    tokens = prompt * n_sequences
    early = cache_bytes * np.minimum(prompt / np.maximum(context, 1), 1.0)  # after the prompt
    activations = 2.0 * (3 * walk.max_inner + 4 * walk.hidden_size) * tokens
    lines = [_line("workspaces", c["workspace"], c["source"], kind="compute")]
    tied = walk.embedding_bytes * (np.asarray(walk.tied) > 0) * last
    if year is not None and c["rotary_tables_since"] <= year < c["full_logits_before"] and max_context:
        tables = 4.0 * walk.head_dim * max_context * (walk.n_full_layers + walk.n_window_layers)
        lines.append(exact("engine", "rotary tables of every layer", tables, c["source"]))
    if untied:  # litgpt has a head of its own; bitsandbytes keeps it in 16 bit, beside the copy it converts
        head = 2.0 * walk.head_params * last
        converted = family in ("nf4", "fp4", "int8")
        own = head if converted else walk.head_bytes * last
        lines.append(exact("weights", "untied head", own * (np.asarray(walk.tied) > 0), c["source"]))
        if converted:
            copy = head + 2.0 * walk.max_inner * walk.hidden_size
            lines.append(Line("compute", "copy while converting", copy, 0.8 * copy, 1.2 * copy, c["source"]))
    if family == "fp8":
        lines.append(exact("weights", "untied copy of the head", tied, c["source"]))
    if year is not None and year >= c["activations_before"]:
        peak, name = cache_bytes, "prompt activations"
    elif year is None or year >= c["full_logits_before"]:
        peak, name = np.maximum(early + activations, cache_bytes), "prompt activations"
    else:
        logits = walk.vocab_size * tokens * last
        peak = np.maximum(np.maximum(early + 6.0 * logits, 2 * early + 4.0 * logits), early + activations)
        peak, name = np.maximum(peak, 2 * cache_bytes), "float32 logits of the prompt, or a copied cache"
    if family == "awq":  # loading unties the head for a moment
        peak = np.maximum(peak, tied)
    above = np.maximum(peak - cache_bytes, 0.0)
    return [Line("compute", name, above, 0.9 * above, 1.1 * above, c["source"]), *lines]


if __name__ == "__main__":
    text = json.dumps(compile_constants(), indent=1, sort_keys=True) + "\n"
    (DATA / "engine_memory.json").write_text(text, encoding="utf-8")
