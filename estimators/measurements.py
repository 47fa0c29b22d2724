"""Measurements as arrays: what the roofline takes of each row, its labels and weight, and what it would print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from estimators import speed
from estimators.efficiency import CACHES, FIXED, HEADS, SHARES, STRUCTURES, Situation, packing
from estimators.metrics import METRICS, printed
from estimators.walk import Walk

TRUST = {"high": 1.0, "medium": 0.7, "low": 0.2}
SOURCE_ROWS = 60  # a source with more rows than this weighs as the root of its number


@dataclass(frozen=True)
class Rows:
    """Measurements as arrays, one entry per row. `prompt_tokens` and `output_tokens` are per sequence;
    peaks are operations per second of one device; `value` is the metric as printed."""

    situations: Sequence[Situation]
    formats: np.ndarray  # class names
    structure: np.ndarray  # index into STRUCTURES
    cache: np.ndarray  # index into CACHES
    heads: np.ndarray  # index into HEADS
    walk: Walk
    bandwidth_bytes_per_s: np.ndarray
    matrix_flops: np.ndarray
    vector_flops: np.ndarray
    attention_flops: np.ndarray
    link_bytes_per_s: np.ndarray
    expanded_bytes: np.ndarray
    n_tensor: np.ndarray
    n_stages: np.ndarray
    chunk_tokens: np.ndarray
    eager: np.ndarray
    pipelined: np.ndarray
    expert_launches: np.ndarray
    meeting: np.ndarray
    decoding_share: np.ndarray
    gathered: np.ndarray
    server: np.ndarray
    plain: np.ndarray
    absorbed: np.ndarray
    masked: np.ndarray
    vector_tokens: np.ndarray
    tile_tokens: np.ndarray
    n_sequences: np.ndarray
    prompt_tokens: np.ndarray
    output_tokens: np.ndarray
    cached_tokens: np.ndarray
    kv_bytes: np.ndarray
    metric: np.ndarray
    value: np.ndarray
    source: np.ndarray
    trust: np.ndarray
    model: np.ndarray

    def __len__(self) -> int:
        return len(self.value)

    def take(self, keep: np.ndarray) -> Rows:
        """The rows at these positions (or under this mask)."""
        positions = np.arange(len(self))[keep]
        taken: dict[str, Any] = {
            f.name: getattr(self, f.name)[positions]
            for f in fields(self)
            if f.name not in ("situations", "walk")
        }
        return Rows(
            situations=[self.situations[i] for i in positions], walk=self.walk.take(positions), **taken
        )


def log_prediction(rows: Rows, latents: dict[str, np.ndarray]) -> np.ndarray:
    """log of what the benchmark would print, given each row's latents on their own scale."""
    rates = _rates(rows, latents)
    kv = (rows.kv_bytes, rows.kv_bytes)
    prompt = np.maximum(rows.prompt_tokens, 1.0)
    start = rows.cached_tokens + rows.prompt_tokens
    prefill = speed.prefill(rows.walk, rates, prompt, rows.cached_tokens, rows.n_sequences, *kv).total_s
    step = speed.decode_step(
        rows.walk, rates, rows.n_sequences, start, start + rows.output_tokens, *kv
    ).total_s
    request = np.where(rows.server, np.exp(latents["request"]), 0.0)
    table = printed(prefill, step, request, rows.n_sequences, prompt, rows.output_tokens)
    return np.log(np.select([rows.metric == m for m in METRICS], [table[m] for m in METRICS]))


def _rates(rows: Rows, latents: dict[str, np.ndarray]) -> speed.Rates:
    """What each row's devices reach, given its latents."""
    share = {k: 1.0 / (1.0 + np.exp(-latents[k])) for k in SHARES}
    return speed.Rates(
        bandwidth_bytes_per_s=rows.bandwidth_bytes_per_s,
        matrix_flops=rows.matrix_flops,
        vector_flops=rows.vector_flops,
        attention_peak_flops=rows.attention_flops,
        weights_efficiency=share["weights"],
        experts_efficiency=share["experts"],
        cache_efficiency=share["cache"],
        compute_efficiency=share["compute"],
        experts_compute_efficiency=share["experts_compute"],
        attention_efficiency=share["attention"],
        unpack_efficiency=share["unpack"],
        reread_share=share["reread"],
        expert_half_params=np.exp(latents["half"]),
        sequence_overhead_s=np.exp(latents["sequence"]),
        activation_passes=np.exp(latents["passes"]),
        expanded_bytes=rows.expanded_bytes,
        expert_padding_tokens=np.exp(latents["padding"]),
        layer_overhead_s=np.exp(latents["layer"]),
        step_overhead_s=np.exp(latents["step"]),
        reduce_overhead_s=np.exp(latents["reduce"]),
        hop_overhead_s=np.exp(latents["hop"]),
        link_bytes_per_s=rows.link_bytes_per_s * share["link"],
        gathered=rows.gathered,
        n_tensor=rows.n_tensor,
        n_stages=rows.n_stages,
        chunk_tokens=rows.chunk_tokens,
        eager=rows.eager,
        pipelined=rows.pipelined,
        expert_launches=rows.expert_launches,
        meeting=rows.meeting,
        decoding_share=rows.decoding_share,
        plain=rows.plain,
        absorbed=rows.absorbed,
        masked=rows.masked,
        vector_tokens=rows.vector_tokens,
        tile_tokens=rows.tile_tokens,
    )


def features(rows: Rows) -> dict[str, np.ndarray]:
    """The features of every row, as labels."""
    found = {name: np.array([s.label(name) for s in rows.situations]) for name in FIXED}
    classes = [(s, str(c)) for s, c in zip(rows.situations, rows.formats, strict=True)]
    product = [s.product(c, e) for (s, c), e in zip(classes, rows.expanded_bytes, strict=True)]
    return found | {
        "library": np.array([s.library(c) for s, c in classes]),
        "product": np.array(product),
        "multiplied": np.array([packing(c) for c in product]),
        "format": rows.formats,
        "packed": np.array([packing(c) for _, c in classes]),
        "kernels": np.array([s.kernels(c) for s, c in classes]),
        "gemv": np.array([s.gemv(c) for s, c in classes]),
        "structure": np.array(STRUCTURES)[rows.structure],
        "cache": np.array(CACHES)[rows.cache],
        "heads": np.array(HEADS)[rows.heads],
    }


def joined(found: dict[str, np.ndarray], by: Sequence[str]) -> np.ndarray:
    """The labels of a term: its features joined by `|`."""
    labels = found[by[0]]
    for name in by[1:]:
        labels = np.char.add(np.char.add(labels, "|"), found[name])
    return labels


def row_weights(rows: Rows) -> np.ndarray:
    """What each row weighs in a fit."""
    return trust_weights(rows.source, rows.trust)


def trust_weights(source: np.ndarray, trust: Sequence[str] | np.ndarray) -> np.ndarray:
    """Trust in each row's source, times the root that keeps a large source from drowning the rest."""
    _, inverse, counts = np.unique(source, return_inverse=True, return_counts=True)
    return np.array([TRUST[t] for t in trust]) * np.minimum(1.0, (counts[inverse] / SOURCE_ROWS) ** -0.5)
