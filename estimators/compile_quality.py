"""Fit abilities and quantization losses once, offline: `python -m estimators.compile_quality` writes
data/quality.json.

Run it after a change of the model catalogue or of `benchmarks.yaml`; a test holds them equal.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from estimators.ability import Score, Subject, features, fit
from estimators.quality import DATA, LOG_ODDS_PER_NAT
from estimators.walk import Walk
from modeldb.model import Model
from modeldb.scheme import Scheme

SKILLS = ("general", "instruct", "code", "reasoning", "multilingual", "agent", "vision")
EPOCH = date(2024, 1, 1)
REFERENCE = "Llama-3-8B (base)"  # on which llama.cpp publishes the divergence of every mix
CODER, THINKER = re.compile(r"code|devstral"), re.compile(r"-r1|qwq|think|reason|-z1")
CALIBRATED = frozenset({"awq", "gptq", "exl2", "i-quant"})  # methods that see data while quantizing
#: Mixes that are almost one block type, most bits first; the second list was made with an importance matrix.
ROUNDED = ("Q8_0", "Q6_K", "Q5_K_S", "Q4_K_S", "Q3_K_S", "Q2_K")
SEEN_DATA = tuple(
    f"{m}+imatrix" for m in ("Q4_K_S", "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M")
)
MEASURED_FACTOR, INTERPOLATED_FACTOR = 1.7, 2.5  # half widths of the loss, as factors


def years(text: str) -> float | None:
    """Years since 2024 of `2025-04-29`, `2025-04` or `2025`; None when the date is unknown."""
    match = re.match(r"(\d{4})(?:-(\d{2}))?(?:-(\d{2}))?", text)
    if match is None:
        return None
    day = date(int(match[1]), int(match[2] or 7), int(match[3] or 15))
    return (day - EPOCH).days / 365.25


def _month_in_name(name: str) -> str:
    """`2025-12` of `ministral-3-8b-instruct-2512`, the publisher's own dating; "" where there is none."""
    match = re.search(r"-(2[3-9])(0[1-9]|1[0-2])(?:-|$)", name)
    return f"20{match[1]}-{match[2]}" if match else ""


def subjects(
    models: Sequence[Model], sizes: dict[str, tuple[float, float]], thinkers: Sequence[str]
) -> tuple[list[Subject], float]:
    """Rated and unrated language models with their features, and the year of the newest evidence. An unknown
    date is that of the family, else the start of 2024."""
    dated = {m.id: years(m.release_date or _month_in_name(m.id)) for m in models}
    families: dict[str, list[float]] = {}
    for model in models:
        if (when := dated[model.id]) is not None:
            families.setdefault(model.family, []).append(when)
    last = max((dated[m.id] or 0.0 for m in models if len(_scored(m)) >= 4), default=0.0)
    found = []
    for model in models:
        when = dated[model.id]
        if when is None:
            when = float(np.mean(families.get(model.family, [0.0])))
        name = model.id.lower()
        thinks = THINKER.search(name) or any(re.fullmatch(pattern, name) for pattern in thinkers)
        kinds = ["coder"] * bool(CODER.search(name)) + ["thinker"] * bool(thinks)
        total, active = sizes[model.id]
        row = features(total, active, when, last, "base" in name.split("-"))
        found.append(Subject(model.id, model.hf_id.split("/")[0], model.family, row, tuple(kinds)))
    return found, last


def skill_of(benchmark: str, patterns: dict[str, list[str]]) -> str:
    """The skill a benchmark measures, by the first pattern that matches its whole name."""
    for skill, words in patterns.items():
        if any(re.fullmatch(word, benchmark) for word in words):
            return skill
    return "skip"


def _scored(model: Model) -> list[tuple[str, float]]:
    return [(e.benchmark, e.score) for e in model.evidence if e.unit == "fraction"]


def measured_losses(published: dict[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """From `modeldb/data/quant_quality.json`: nats lost by GGUF mixes of REFERENCE, and log-odds lost by MLX
    schemes on MMLU-Pro."""
    divergences: dict[str, float] = {}
    for row in published["divergence"]:
        calibration = row.get("imatrix", "")
        if row["model"] != REFERENCE or "kl_divergence_mean" not in row or calibration not in ("", "WT 10m"):
            continue
        name = row["scheme"] + ("+imatrix" if calibration else "")
        divergences.setdefault(name, row["kl_divergence_mean"])
    tasks = [r for r in published["tasks"] if r["benchmark"] == "MMLU-Pro" and "Qwen3-4B" in r["hf_id"]]
    lost: dict[str, float] = {}
    for row in tasks:
        found = re.fullmatch(r"mlx (\d)-bit (g\d+)", row["quantization"])
        if found:
            after = row["score_percent"]
            before = after - row["change_from_bf16"]
            lost[f"mlx-{found[1]}bit-{found[2]}"] = _log_odds(before) - _log_odds(after)
    return divergences, lost


def _log_odds(percent: float) -> float:
    return math.log(percent / (100 - percent))


def scheme_losses(schemes: Sequence[Scheme], published: dict[str, Any]) -> dict[str, list[Any]]:
    """[nats, factor of the interval, origin] of every scheme: measured, or read off the measured curve of
    nats over the bits of the blocks, which knows two kinds: rounding alone, and rounding that has seen
    data."""
    table, lost = measured_losses(published)
    bits = {scheme.id: scheme.nominal_bits for scheme in schemes}
    curves = {
        data: [(bits[name.removesuffix("+imatrix")], table[name]) for name in names]
        for data, names in ((False, ROUNDED), (True, (*ROUNDED[:3], *SEEN_DATA)))
    }
    losses: dict[str, list[Any]] = {}
    for scheme in schemes:
        if scheme.family in ("f32", "f16", "bf16"):
            losses[scheme.id] = [0.0, 1.0, "derived"]
        elif scheme.id in table:
            losses[scheme.id] = [table[scheme.id], MEASURED_FACTOR, "measured"]
        elif scheme.id in lost:
            losses[scheme.id] = [round(lost[scheme.id] / LOG_ODDS_PER_NAT, 5), MEASURED_FACTOR, "measured"]
        else:
            mix = scheme.id.removesuffix("+imatrix")
            nats = table.get(mix, table.get(f"{mix}+imatrix"))
            if nats is None:
                curve = curves[scheme.imatrix or scheme.family in CALIBRATED]
                nats = _on_curve(curve, scheme.nominal_bits)
            losses[scheme.id] = [round(nats, 5), INTERPOLATED_FACTOR, "assumed"]
    return losses


def _on_curve(curve: list[tuple[float, float]], bits: float) -> float:
    """Log-linear between measured bits; beyond the ends, the end."""
    ordered = sorted(curve)
    return float(np.exp(np.interp(bits, [b for b, _ in ordered], np.log([n for _, n in ordered]))))


def compiled() -> dict[str, Any]:
    """The content of quality.json."""
    import yaml

    import modeldb
    from estimators.walk import walk
    from modeldb import catalogue, schemes

    folder = Path(__file__).parent / "data"
    patterns = yaml.safe_load((folder / "benchmarks.yaml").read_text(encoding="utf-8"))
    published = json.loads(
        (Path(modeldb.__path__[0]) / "data" / "quant_quality.json").read_text(encoding="utf-8")
    )
    models = [m for m in catalogue.load().models if m.modality.startswith("text")]
    sizes = {m.id: _billions(walk(m, schemes.get("bf16"))) for m in models}
    rated, last = subjects(models, sizes, patterns.pop("thinkers"))
    scores = [
        Score(i, benchmark, skill, fraction)
        for i, model in enumerate(models)
        for benchmark, fraction in _scored(model)
        if (skill := skill_of(benchmark, patterns)) != "skip"
    ]
    fitted = fit(rated, scores, SKILLS)
    rows = {
        subject.id: {
            "mean": [round(float(x), 3) for x in fitted.mean[i]],
            "deviation": [round(float(x), 3) for x in fitted.deviation[i]],
            "n_scores": int(fitted.n_scores[i]),
        }
        for i, subject in enumerate(rated)
    }
    return {
        "skills": list(SKILLS),
        "n_scores": len(scores),
        "residual": round(fitted.residual, 3),
        "last_evidence_year": round(2024 + last, 2),
        "by_size": [round(float(x), 3) for x in fitted.regression],
        "by_size_deviation": 0.8,
        "models": rows,
        "schemes": scheme_losses(tuple(schemes.SCHEMES.values()), published),
    }


def _billions(sums: Walk) -> tuple[float, float]:
    return sums.total_params / 1e9, sums.active_params / 1e9


def text() -> str:
    """quality.json, one model per line."""
    content = compiled()
    lines = [
        f"{json.dumps(k)}: {json.dumps(v)}" for k, v in content.items() if k not in ("models", "schemes")
    ]
    for table in ("models", "schemes"):
        rows = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in content[table].items())
        lines.append(f"{json.dumps(table)}: {{\n{rows}\n}}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    DATA.write_text(text(), encoding="utf-8")
