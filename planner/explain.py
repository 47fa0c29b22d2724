"""Why a row is in the answer, in a few words, from its place among the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from planner import units

if TYPE_CHECKING:
    from planner.answer import Row
    from planner.request import Request


def reasons(request: Request, rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """One tuple of short reasons per row; the first says why it stands where it stands."""
    if not rows:
        return []
    best = max(rows, key=lambda r: r.quality.low)
    fastest = min(rows, key=lambda r: r.turn_s)
    roomiest = max(rows, key=lambda r: r.capacity_bytes - r.device_bytes)
    found = []
    for i, row in enumerate(rows):
        said = []
        if i == 0:
            said.append(f"best balance for {request.task.name}")
        if row is best:
            said.append("highest quality that holds the limits" if len(rows) > 1 else "holds the limits")
        if row is fastest and len(rows) > 1:
            said.append("fastest")
        if row is roomiest and len(rows) > 1:
            said.append(f"leaves {units.format_bytes(row.capacity_bytes - row.device_bytes)} free")
        if i and not said:
            said.append(_against(row, rows[0]))
        said += placement_words(row)
        if row.tight:
            said.append("memory is tight")
        found.append(tuple(said))
    return found


def _against(row: Row, first: Row) -> str:
    """How a row differs from the first one where it differs most."""
    faster = first.turn_s / row.turn_s
    better = row.quality.low - first.quality.low
    if better > 0.5:
        if faster > 0.9:
            return "better, and as fast"
        return f"{_points(better)} better than the first, {1 / faster:.1f}x slower"
    if faster > 1.15:
        return f"{faster:.1f}x faster than the first" + (f" for {_points(-better)}" if better < -0.5 else "")
    freed = first.device_bytes - row.device_bytes
    return (
        f"needs {units.format_bytes(freed)} less than the first"
        if freed > 0
        else "an alternative of its size"
    )


def _points(quality: float) -> str:
    return units.counted(round(quality), "point")


def placement_words(row: Row) -> list[str]:
    """What a person must know about where the weights are; nothing when all are on one device."""
    place = row.placement
    said: list[str] = []
    if row.backend == "cpu":
        return said
    if place.n_cpu_expert_layers:
        said.append(f"experts of {place.n_cpu_expert_layers} layers in host memory")
    if place.n_gpu_layers is not None:
        said.append(f"{place.n_gpu_layers} of {row.model.n_layers} layers on the GPU, the rest on the CPU")
    if place.tensor_parallel > 1:
        said.append(f"each tensor over {place.tensor_parallel} GPUs")
    if place.pipeline_parallel > 1:
        said.append(f"layers over {place.pipeline_parallel} GPUs")
    return said
