"""An answer as JSON: base SI units, nothing rounded, keys sorted, the same bytes for the same request."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner import columns

if TYPE_CHECKING:
    from estimators.quantity import Quantity
    from hwdb.device import Device, Machine
    from planner.answer import Answer, Row

SCHEMA_VERSION = 1


def text(found: Answer, shown: int, commands: bool) -> str:
    """The document, ending in a newline."""
    return json.dumps(document(found, shown, commands), sort_keys=True, indent=2, allow_nan=False) + "\n"


def document(found: Answer, shown: int, commands: bool) -> dict[str, Any]:
    """`schema_version`, `request`, `answer`, `provenance`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "request": request(found),
        "answer": {
            "rows": [row(found, r, commands) for r in found.rows[:shown]],
            "near_misses": [
                {
                    "model": miss.model.id,
                    "scheme": miss.scheme.id,
                    "engine": miss.engine,
                    "kv_type": miss.kv_type,
                    "lacks": miss.lacks,
                    "missing_bytes": miss.missing_bytes,
                    "tokens_per_s": miss.tokens_per_s,
                    "ttft_s": miss.ttft_s,
                    "fixes": list(miss.fixes),
                }
                for miss in found.near
            ],
            "n_candidates": found.n_candidates,
            "n_models": found.n_models,
            "left_out": dict(found.left_out),
            "notes": list(found.notes),
        },
        "provenance": provenance(found),
    }


def request(found: Answer) -> dict[str, Any]:
    """The request with every default filled in."""
    asked = asdict(found.request)
    asked["task"] = found.request.task.name
    del asked["mine"]
    asked["limits"] = {"min_tokens_per_s": asked.pop("min_tps"), "max_ttft_s": asked.pop("max_ttft_s")}
    return asked


def quantity(value: Quantity) -> dict[str, Any]:
    """An interval and where it comes from."""
    return {
        "low": value.low,
        "best": value.best,
        "high": value.high,
        "origin": value.origin,
        "note": value.note,
    }


def row(found: Answer, r: Row, commands: bool) -> dict[str, Any]:
    """One deployment of the answer."""
    return {
        "model": r.model.id,
        "hf_id": r.model.hf_id,
        "base": r.model.base,
        "licence": r.model.licence,
        "parameters": r.parameters,
        "active_parameters": r.active_parameters,
        "scheme": r.scheme.id,
        "engine": r.engine,
        "backend": r.backend,
        "kv_type": r.kv_type,
        "context_tokens": found.request.context,
        "placement": asdict(r.placement),
        "memory": {
            "device_bytes": r.device_bytes,
            "capacity_bytes": r.capacity_bytes,
            "host_bytes": r.host_bytes,
            "file_bytes": r.file_bytes,
        },
        "ttft_s": quantity(r.ttft_s),
        "tpot_s": quantity(r.tpot_s),
        "tokens_per_s": quantity(r.tokens_per_s),
        "throughput_tokens_per_s": r.throughput_tokens_per_s,
        "prefill_tokens_per_s": r.prefill_tokens_per_s,
        "turn_s": r.turn_s,
        "quality": quantity(r.quality),
        "bottleneck": {"decode": r.bottleneck, "prefill": r.prefill_bottleneck},
        "reasons": list(r.reasons),
        **({"command": columns.command_line(found, r)} if commands else {}),
    }


def provenance(found: Answer) -> dict[str, Any]:
    """The tool, the facts it used, and the machines with the source of their numbers."""
    from planner import __version__

    return {
        "tool": "llm-plan",
        "version": __version__,
        "catalogue_sha256": catalogue_hash(),
        "machine": machine(found.target.machine),
        "class": [m.name for m in found.target.machines] if found.target.is_class else [],
    }


def machine(m: Machine) -> dict[str, Any]:
    """A machine with the facts of its devices."""
    return {
        "name": m.name,
        "origin": m.origin,
        "devices": [device(d) for d in m.devices],
        "free_bytes": list(m.free_bytes),
        "host": device(m.host) if m.host else None,
        "host_memory_bytes": m.host_memory_bytes,
        "host_free_bytes": m.host_free_bytes,
        "operating_system": m.operating_system,
        "notes": list(m.notes),
    }


def device(d: Device) -> dict[str, Any]:
    """Every known fact of a device; what is unknown is left out."""
    return {k: v for k, v in asdict(d).items() if v not in (None, "", (), [], False)}


@cache
def catalogue_hash() -> str:
    """SHA-256 over the compiled facts, so that two answers can be compared."""
    import estimators
    import hwdb
    import modeldb

    digest = hashlib.sha256()
    for package in (hwdb, modeldb, estimators):
        for file in sorted(Path(package.__path__[0], "data").glob("*.json")):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()
