"""Compile `modeldb/families/*.yaml` and the quality measurements to the JSON that `modeldb.catalogue` loads.

    python -m modeldb.compile

A family file holds `family`, what its models share (`licence`, `source`, `architecture`), and `models`.
Unknown keys, duplicate ids and names are refused. The result is deterministic; a test holds it equal to the
YAML.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from modeldb.errors import ModelError
from modeldb.shape import Shape

HERE = Path(__file__).parent
FAMILIES, DATA = HERE / "families", HERE / "data"
SHARED_KEYS = {"family", "licence", "source", "architecture", "models"}
MODEL_KEYS = {
    "id", "hf_id", "name", "ollama", "modality", "base", "licence", "released", "parameters", "verified",
    "unsourced",
    "note", "source", "aliases", "architecture", "evidence",
}  # fmt: skip
SHAPE_KEYS = {f.name for f in fields(Shape)}


def compile_families(folder: Path = FAMILIES) -> dict[str, Any]:
    """The catalogue as JSON-ready data: {"models": [...]} ordered by family file, then as written."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    models: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.yaml")):
        models += _family(path, yaml.load(path.read_text(encoding="utf-8"), Loader=loader))
    _refuse_duplicates(models)
    return {"models": models}


def compile_quality(path: Path = DATA / "quant_quality.yaml") -> dict[str, Any]:
    """The quantization quality measurements as JSON-ready data."""
    import yaml

    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def text(data: dict[str, Any]) -> str:
    """One model (or measurement set) per line, keys as written."""
    parts = []
    for key, rows in data.items():
        lines = ",\n".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows)
        parts.append(f"{json.dumps(key)}:[\n{lines}\n]")
    return "{" + ",\n".join(parts) + "}\n"


def _family(path: Path, data: dict[str, Any]) -> list[dict[str, Any]]:
    _known(path, data, SHARED_KEYS)
    compiled = []
    for model in data["models"]:
        _known(path, model, MODEL_KEYS)
        shape = {**data.get("architecture", {}), **model.get("architecture", {})}
        _known(path, shape, SHAPE_KEYS)
        entry = {k: v for k, v in model.items() if k not in ("architecture", "evidence", "licence", "source")}
        entry["family"] = data["family"]
        entry["licence"] = model.get("licence", data.get("licence", ""))
        entry["source"] = model.get("source", data.get("source", ""))
        entry["shape"] = shape
        entry["evidence"] = [e for group in model.get("evidence", ()) for e in _evidence(group)]
        compiled.append(entry)
    return compiled


def _evidence(group: dict[str, Any]) -> list[list[Any]]:
    """[benchmark, score, unit, kind, source, note] per score of one source."""
    source = group["source"] + (f" (via {group['via']})" if "via" in group else "")
    rows = []
    for benchmark, score in group["scores"].items():
        value, note = score if isinstance(score, list) else (score, "")
        rows.append([benchmark, value, group.get("unit", "fraction"), group["kind"], source, note])
    return rows


def _known(path: Path, data: dict[str, Any], allowed: set[str]) -> None:
    if unknown := set(data) - allowed:
        raise ModelError(f"{path.name}: unknown key `{min(unknown)}`")


def _refuse_duplicates(models: list[dict[str, Any]]) -> None:
    for key in ("id", "hf_id"):
        values = [m[key] for m in models]
        if twice := {v for v in values if values.count(v) > 1}:
            raise ModelError(f"two models have the {key} `{min(twice)}`")


def main() -> None:
    (DATA / "catalogue.json").write_text(text(compile_families()), encoding="utf-8")
    (DATA / "quant_quality.json").write_text(text(compile_quality()), encoding="utf-8")


if __name__ == "__main__":
    main()
