"""Builds what the hot path loads: `python -m estimators.compile` writes `data/walks.npz` and
`data/efficiency.json`."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from estimators import efficiency, intervals
from estimators.calibration import compact
from estimators.walk import TABLE_FILE, Walk, walk
from modeldb.model import Model

SOURCE = Path(__file__).parent / "data" / "efficiency.yaml"

#: Schemes that a candidate may have, per container. The others are walked when asked for.
USUAL = (
    "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q4_0", "IQ4_XS", "Q3_K_M",
    "IQ3_M", "Q2_K", "MXFP4_MOE", "bf16", "fp8-per-tensor", "fp8-block128x128", "awq-4bit-g128",
    "gptq-4bit-g128", "gptq-8bit-g128", "mxfp4-hf", "nvfp4-hf", "mlx-4bit-g64", "mlx-6bit-g64",
    "mlx-8bit-g64",
)  # fmt: skip


def pairs(models: tuple[Model, ...]) -> list[tuple[int, int]]:
    """(position in `models`, position in USUAL) of every pair worth a walk: GGUF only where llama.cpp knows
    the architecture."""
    from modeldb.schemes import get

    gguf = [get(name).container == "gguf" for name in USUAL]
    return [(i, j) for i, m in enumerate(models) for j in range(len(USUAL)) if m.architecture or not gguf[j]]


def compile_walks(models: tuple[Model, ...]) -> dict[str, np.ndarray]:
    """The arrays of `walks.npz`: `walks` (field, pair), `pairs` (pair, 2) of positions in `models` and
    `schemes`."""
    from modeldb.schemes import get

    schemes = [get(name) for name in USUAL]
    chosen = pairs(models)
    walks = [walk(models[i], schemes[j]) for i, j in chosen]
    return {
        "walks": np.array([[getattr(w, f.name) for w in walks] for f in fields(Walk)], dtype=float),
        "pairs": np.array(chosen, dtype=np.int16),
        "models": np.array([m.id for m in models]),
        "schemes": np.array([s.id for s in schemes]),
    }


def compile_efficiency() -> dict[str, Any]:
    """What `efficiency.json` holds: the effects of `efficiency.yaml` without their evidence."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    raw = yaml.load(SOURCE.read_text(encoding="utf-8"), loader)
    return {
        "latents": compact(raw["latents"]),
        "intervals": intervals.compact(raw["intervals"]),
        "provenance": raw["provenance"],
    }


def main() -> None:
    """Writes both files."""
    from modeldb import catalogue

    np.savez(TABLE_FILE, **compile_walks(tuple(catalogue.load().models)))  # type: ignore[arg-type]
    if SOURCE.exists():
        text = json.dumps(compile_efficiency(), separators=(",", ":"), sort_keys=True)
        efficiency.COMPILED.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
