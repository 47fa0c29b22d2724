"""What one rank of an engine takes besides weights and cache: context, activation peak, graphs, workspaces.

llama.cpp's are in `estimators.llamacpp_memory`. Functions broadcast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from estimators.engine_memory import GIB, TRANSFORMERS, Line, constants, context_line, exact, spread
from estimators.walk import Number, Walk


@dataclass(frozen=True, slots=True)
class Rank:
    """What one rank of an engine runs. Counts and bytes may be arrays."""

    walk: Walk
    batch_tokens: Number  # most that one step takes
    prompt_tokens: Number
    context_tokens: Number
    n_sequences: Number
    cache_bytes: Number  # this rank's keys and values
    year: float | None = None
    n_ranks: int = 1  # of the group that it communicates with
    device_bytes: float | None = None
    last: bool = True  # holds the head
    eager: bool = False  # no CUDA graphs
    family: str = ""  # of the scheme
    max_context: int | None = None  # of the model


def overhead_lines(engine: str, backend: str, rank: Rank) -> list[Line]:
    """The lines of one rank of an engine that is not llama.cpp."""
    c = constants()
    if engine in ("vllm", "nano-vllm", "pegainfer", "deepspeed-mii", "tgi"):
        return _vllm(c["vllm"], rank)
    if engine == "sglang":
        return _sglang(c["sglang"], rank)
    if engine in ("trt-llm", "optimum-nvidia"):
        return _trtllm(c["trt-llm"], rank)
    if engine == "lmdeploy":
        held = c["lmdeploy"]
        return [spread("activations and workspaces", held["overhead"], held["source"], kind="compute")]
    if engine in TRANSFORMERS:
        return [context_line(backend), *_transformers(c["transformers"], rank, untied=engine == "litgpt")]
    if engine == "mlx":
        held = c["mlx"]
        return [spread("activations and buffer cache", held["workspace"], held["source"], kind="compute")]
    held = c["generic"]
    return [context_line(backend), spread("workspaces", held["workspace"], held["source"], kind="compute")]


def _vllm(c: dict[str, Any], rank: Rank) -> list[Line]:
    dense, moe = c["activation_per_token"]["dense"], c["activation_per_token"]["moe"]
    sparse = np.asarray(rank.walk.n_moe_layers) > 0
    per_token = {k: np.where(sparse, moe[k], dense[k]) * rank.batch_tokens for k in ("best", "low", "high")}
    lines = [
        Line(
            "compute", "activation peak", per_token["best"], per_token["low"], per_token["high"], c["source"]
        )
    ]
    if not rank.eager:
        lines.append(spread("CUDA graphs", c["graphs"], c["source"]))
    name = "context and NCCL" if rank.n_ranks > 1 else "context outside PyTorch"
    return [*lines, spread(name, c["nontorch_parallel" if rank.n_ranks > 1 else "nontorch"], c["source"])]


def _sglang(c: dict[str, Any], rank: Rank) -> list[Line]:
    graph_batch = c["graph_batch_small" if (rank.device_bytes or 0) < 35 * GIB else "graph_batch"]
    chunk = c["per_chunk_token"] * rank.batch_tokens
    lines = [
        spread("context and workspaces", c["static"], c["source"]),
        Line("compute", "chunk activations", chunk, 0.5 * chunk, 1.2 * chunk, c["source"]),
    ]
    if rank.n_ranks > 1:
        lines.append(exact("engine", "communication", c["per_rank"] * rank.n_ranks, c["source"]))
    if not rank.eager:
        graphs = c["per_graph_batch"] * graph_batch
        lines.append(Line("engine", "CUDA graphs", graphs, 0.5 * graphs, 3 * graphs, c["source"]))
    return lines


def _trtllm(c: dict[str, Any], rank: Rank) -> list[Line]:
    width = rank.walk.n_heads * rank.walk.head_dim
    activation = 2.0 * rank.batch_tokens * width * c["activation_factor"] / rank.n_ranks
    lines = [
        Line("compute", "activation peak", activation, 0.7 * activation, 1.4 * activation, c["source"]),
        spread("context, engine and workspaces", c["base"], c["source"]),
    ]
    if rank.n_ranks > 1:
        lines.append(spread("NCCL and all-reduce workspaces", c["parallel"], c["source"]))
    return lines


def _transformers(c: dict[str, Any], rank: Rank, untied: bool) -> list[Line]:
    """The peak above weights and the final cache, and what stays beside them. `untied`: as litgpt loads."""
    lines = [spread("workspaces", c["workspace"], c["source"], kind="compute"), *_rotary_tables(c, rank)]
    if untied:
        lines += _own_head(c, rank)
    if rank.family == "fp8":
        lines.append(exact("weights", "untied copy of the head", _tied_bytes(rank), c["source"]))
    name, peak = _prompt_peak(c, rank)
    above = np.maximum(peak - rank.cache_bytes, 0.0)
    return [Line("compute", name, above, 0.9 * above, 1.1 * above, c["source"]), *lines]


def _rotary_tables(c: dict[str, Any], rank: Rank) -> list[Line]:
    """Releases between two dates kept a table of the whole context in every layer."""
    years, w = (c["rotary_tables_since"], c["full_logits_before"]), rank.walk
    if rank.year is None or not years[0] <= rank.year < years[1] or not rank.max_context:
        return []
    tables = 4.0 * w.head_dim * rank.max_context * (w.n_full_layers + w.n_window_layers)
    return [exact("engine", "rotary tables of every layer", tables, c["source"])]


def _own_head(c: dict[str, Any], rank: Rank) -> list[Line]:
    """litgpt has a head of its own; bitsandbytes keeps it in 16 bit, beside the copy it converts."""
    w = rank.walk
    head = 2.0 * w.head_params * rank.last
    converted = rank.family in ("nf4", "fp4", "int8")
    own = head if converted else w.head_bytes * rank.last
    lines = [exact("weights", "untied head", own * (np.asarray(w.tied) > 0), c["source"])]
    if converted:
        copy = head + 2.0 * w.max_inner * w.hidden_size
        lines.append(Line("compute", "copy while converting", copy, 0.8 * copy, 1.2 * copy, c["source"]))
    return lines


def _tied_bytes(rank: Rank) -> Number:
    """Bytes of an embedding that is the head too, where the head is."""
    return rank.walk.embedding_bytes * (np.asarray(rank.walk.tied) > 0) * rank.last


def _prompt_peak(c: dict[str, Any], rank: Rank) -> tuple[str, Number]:
    """(what the peak consists of, its bytes): prompt logits, a cache while it is copied, or activations."""
    w, year, cache_bytes = rank.walk, rank.year, rank.cache_bytes
    tokens = rank.prompt_tokens * rank.n_sequences
    early = cache_bytes * np.minimum(rank.prompt_tokens / np.maximum(rank.context_tokens, 1), 1.0)
    activations = 2.0 * (3 * w.max_inner + 4 * w.hidden_size) * tokens
    name = "prompt activations"
    if year is not None and year >= c["activations_before"]:
        peak = cache_bytes
    elif year is None or year >= c["full_logits_before"]:
        peak = np.maximum(early + activations, cache_bytes)
    else:
        logits = w.vocab_size * tokens * rank.last
        peak = np.maximum(np.maximum(early + 6.0 * logits, 2 * early + 4.0 * logits), early + activations)
        peak, name = np.maximum(peak, 2 * cache_bytes), "float32 logits of the prompt, or a copied cache"
    if rank.family == "awq":  # loading unties the head for a moment
        peak = np.maximum(peak, _tied_bytes(rank))
    return name, peak
