"""An answer as separated values: every number in base SI units, nothing rounded, nothing cut."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from planner import columns

if TYPE_CHECKING:
    from planner.answer import Answer

HEADERS = (
    "rank", "model", "quant", "engine", "backend", "kv_type", "context_tokens", "n_gpu_layers",
    "n_cpu_expert_layers",
    "tensor_parallel", "pipeline_parallel", "device_bytes", "capacity_bytes", "host_bytes", "file_bytes",
    "tokens_per_s", "tokens_per_s_low", "tokens_per_s_high", "ttft_s", "ttft_s_low", "ttft_s_high",
    "quality", "quality_low", "quality_high", "bottleneck", "licence", "reasons",
)  # fmt: skip


def text(found: Answer, shown: int, commands: bool, separator: str) -> str:
    """The table with its header, one line per row."""
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator, lineterminator="\n")
    writer.writerow([*HEADERS, *(["command"] if commands else [])])
    for rank, row in enumerate(found.rows[:shown], 1):
        place = row.placement
        layers = "all" if place.n_gpu_layers is None else place.n_gpu_layers
        writer.writerow(
            [
                rank, row.model.id, columns.scheme(row), row.engine, row.backend, row.kv_type,
                found.request.context,
                layers, place.n_cpu_expert_layers, place.tensor_parallel, place.pipeline_parallel,
                round(row.device_bytes), round(row.capacity_bytes), round(row.host_bytes),
                round(row.file_bytes),
                row.tokens_per_s.best, row.tokens_per_s.low, row.tokens_per_s.high,
                row.ttft_s.best, row.ttft_s.low, row.ttft_s.high,
                row.quality.best, row.quality.low, row.quality.high,
                row.bottleneck, row.model.licence, "; ".join(row.reasons),
                *([columns.command_line(found, row)] if commands else []),
            ]
        )  # fmt: skip
    return out.getvalue()
