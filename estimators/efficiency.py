"""What kernels reach of a device's peaks: calibrated effects added up on a logit or logarithmic scale.

`estimators/data/efficiency.yaml` (read compiled) holds, for each latent quantity, a base per lineage of
engines and terms; a term has an effect per label, and a label is the values of a few features (`engine`,
`backend`, `family`, `format` ...) joined by `|`. A label without an effect adds nothing: it takes its
parents' value. Shares go through a logistic function, so they stay in (0, 1); overheads through an
exponential, so they stay positive.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from estimators import tiers
from estimators.cpu_kernels import PROMPTS_ONLY, kernels
from estimators.formats import SIXTEEN_BIT
from estimators.tiers import LACKS, STRUCTURES, TIERS
from estimators.traits import traits
from estimators.walk import Number, Walk

COMPILED = Path(__file__).parent / "data" / "efficiency.json"

SHARES = (
    "weights", "experts", "cache", "compute", "experts_compute", "attention", "unpack", "link", "reread",
)  # fmt: skip
OVERHEADS = ("layer", "step", "request", "reduce", "hop", "padding", "half", "sequence", "passes")
LATENTS = (*SHARES, *OVERHEADS)

FIXED = (
    "engine", "lineage", "backend", "family", "device", "flash", "split", "toolchain", "era", "tier", "rows",
)  # fmt: skip
CACHES = ("cache16", "cache8")
HEADS = ("narrow", "wide")  # head dimension up to 128, and above: kernels are tuned for the former
#: The backend of llama.cpp without kernels of its own for one vector and 16-bit weights: a general product of oneDNN
#: reads them at 90-150 GB/s on cards of 608 and 3,277 GB/s (kyuz0-toolboxes, argonne-llm-inference-bench).
LIBRARY = "sycl"
#: The backend whose library (cuBLAS) multiplies expanded weights as it does stored FP16. What rocBLAS was measured
#: on is BF16, mostly, with other kernels.
EXPANDED_AS_FP16 = "cuda"
ERAS = (2024.0, 2024.6, 2025.4)  # of engine builds
REFERENCE_YEAR = 2025.0
#: A latent that a calibration is too old to know: a share and an overhead of nothing.
ABSENT: dict[str, Any] = {"base": {"*": -30.0}, "terms": []}
MOST_SITUATIONS = 1024  # remembered evaluations, of some 60 kB each
YEARS = (2023.0, 2026.8)  # of the measurements: an engine is not extrapolated beyond them
#: Likewise, of llama.cpp's backends.
FIRST_BUILDS = {"cpu": 2024.2, "rocm": 2024.5, "sycl": 2024.5, "vulkan": 2025.5}


@dataclass(frozen=True, slots=True)
class Situation:
    """What all deployments of a table share, as labels; `year` dates the engine's build."""

    engine: str
    lineage: str
    backend: str
    family: str
    device: str
    flash: str = "flash"
    split: str = "one"  # or "many" devices, or "rows" where llama.cpp shares matrices by their rows
    toolchain: str = ""
    tier: str = "gddr"
    year: float = REFERENCE_YEAR
    isa: tuple[str, ...] = ()  # of a CPU

    def kernels(self, format_class: str) -> str:
        """Which kernels of a CPU multiply weights of this class; "" elsewhere."""
        if self.lineage != "ggml":
            return ""
        kind = kernels(self.engine, self.backend, format_class, self.isa, self.year)
        return "repack" if kind == "amx" else kind  # no processor with it was measured: as repacked

    def gemv(self, format_class: str) -> str:
        """Those that multiply them by one vector: register tiles are for prompts."""
        kind = self.kernels(format_class)
        return "dot" if kind in PROMPTS_ONLY else kind

    def library(self, format_class: str) -> str:
        """Whether a general library reads weights of this class even for one vector."""
        return "library" if self.backend == LIBRARY and format_class in SIXTEEN_BIT else "one"

    def product(self, format_class: str, expanded_bytes: float) -> str:
        """The class that products of matrices run in, where kernels expand weights to so many bytes first."""
        return "f16" if expanded_bytes and self.backend == EXPANDED_AS_FP16 else format_class

    def label(self, feature: str) -> str:
        """The value of a feature; engines that run another's kernels share its effects, and ggml's kernels for CPUs
        share none with those for accelerators."""
        if feature == "engine":
            name = traits(self.engine).kernels or self.engine
            return f"{name} on CPUs" if self.backend == "cpu" and self.lineage == "ggml" else name
        return str(getattr(self, feature))

    @property
    def era(self) -> str:
        """Which period the build is from."""
        return f"era{sum(self.year >= start for start in ERAS)}"

    @property
    def rows(self) -> str:
        """How llama.cpp's devices share a model: each matrix by its "rows", or layers in turn ("staged")."""
        if self.lineage != "ggml" or self.split == "one":
            return "one"
        return "rows" if self.split == "rows" else "staged"

    @property
    def age(self) -> float:
        """Years of the build after the reference, within the years measured."""
        first = FIRST_BUILDS.get(self.backend, YEARS[0])
        return min(max(self.year, first), YEARS[1]) - REFERENCE_YEAR


@dataclass(frozen=True)
class Efficiency:
    """The calibrated effects. `latents[name]` has `base` and `terms`; `intervals` the widths of
    predictions."""

    latents: dict[str, Any]
    intervals: dict[str, Any]
    provenance: dict[str, Any]
    evaluated: dict[Any, dict[str, np.ndarray]] = field(default_factory=dict, repr=False, compare=False)


@cache
def load(path: Path = COMPILED) -> Efficiency:
    """The compiled calibration."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    return Efficiency(raw["latents"], raw["intervals"], raw["provenance"])


def structure_index(walk: Walk) -> Number:
    """Position in STRUCTURES: what the layers are made of."""
    moe, linear, latent = walk.n_moe_layers > 0, walk.n_linear_layers > 0, walk.latent > 0
    usual = np.where(latent, 2, np.where(linear, np.where(moe, 4, 3), np.where(moe, 1, 0)))
    return np.where(walk.top_k_tokens > 0, 5, usual)


def heads_index(walk: Walk) -> Number:
    """Position in HEADS."""
    return np.where(walk.head_dim > 128, 1, 0)


def place(kind: Number, walk: Walk, kv_bytes: Number) -> Number:
    """Position in a flattened array of (class, structure, cache, heads)."""
    cached = np.where(np.asarray(kv_bytes) < 1.5, 1, 0)
    return ((kind * len(STRUCTURES) + structure_index(walk)) * 2 + cached) * 2 + heads_index(walk)


def evaluate(
    efficiency: Efficiency, situation: Situation, classes: Sequence[str], products: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Each latent as an array of (class, structure, cache, heads): shares in (0, 1), overheads in seconds.

    `products` are the classes that products of matrices run in, where kernels expand weights first.
    Remembered per situation: files of measurements ask for few of them, many times.
    """
    key = (situation, tuple(classes), tuple(products))
    if key not in efficiency.evaluated:
        if len(efficiency.evaluated) >= MOST_SITUATIONS:
            efficiency.evaluated.clear()
        efficiency.evaluated[key] = _evaluate(efficiency, situation, classes, products or classes)
    return efficiency.evaluated[key]


def _evaluate(
    efficiency: Efficiency, situation: Situation, classes: Sequence[str], products: Sequence[str]
) -> dict[str, np.ndarray]:
    fixed = {f: situation.label(f) for f in FIXED}
    varying: dict[str, tuple[int, Sequence[str]]] = {
        "format": (0, classes),
        "packed": (0, [packing(c) for c in classes]),
        "kernels": (0, [situation.kernels(c) for c in classes]),
        "gemv": (0, [situation.gemv(c) for c in classes]),
        "library": (0, [situation.library(c) for c in classes]),
        "product": (0, products),
        "multiplied": (0, [packing(c) for c in products]),
        "structure": (1, STRUCTURES),
        "cache": (2, CACHES),
        "heads": (3, HEADS),
    }
    found = {}
    for name in LATENTS:
        latent = efficiency.latents.get(name, ABSENT)
        base = latent["base"]
        total = np.full(
            (len(classes), len(STRUCTURES), len(CACHES), len(HEADS)), base.get(situation.lineage, base["*"])
        )
        for term in latent["terms"]:
            weight = situation.age if term.get("per_year") else 1.0
            total += weight * _term(term, fixed, varying)
        found[name] = 1.0 / (1.0 + np.exp(-total)) if name in SHARES else np.exp(total)
    return found


def packing(format_class: str) -> str:
    """Whether weights of this class are stored as the 16-bit floats that are multiplied, or packed."""
    return "16bit" if format_class in SIXTEEN_BIT else "packed"


def effect_value(effect: Any) -> float:
    """The number of an effect, with its evidence beside it or without."""
    return float(effect["value"]) if isinstance(effect, dict) else float(effect)


def _term(term: dict[str, Any], fixed: dict[str, str], varying: dict[str, tuple[int, Sequence[str]]]) -> Any:
    """The effects of one term, broadcastable to (class, structure, cache, heads)."""
    by, effects = term["by"], term["effects"]
    axes = sorted({varying[f][0] for f in by if f in varying})
    if not axes:
        return effect_value(effects.get("|".join(fixed[f] for f in by), 0.0))
    sizes = [len(next(v for a, v in varying.values() if a == axis)) for axis in axes]
    values = np.zeros(sizes)
    for place in np.ndindex(*sizes):
        at = dict(zip(axes, place, strict=True))
        label = "|".join(fixed[f] if f in fixed else varying[f][1][at[varying[f][0]]] for f in by)
        values[place] = effect_value(effects.get(label, 0.0))
    shape = [1, 1, 1, 1]
    for axis, size in zip(axes, sizes, strict=True):
        shape[axis] = size
    return values.reshape(shape)


def tier(efficiency: Efficiency, situation: Situation, walk: Walk) -> Number:
    """Positions in TIERS: how much of these deployments was measured."""
    return tiers.tier(efficiency.provenance, situation, structure_index(walk), walk.total_params)


def interval(efficiency: Efficiency, situation: Situation, kind: str, known: Number) -> tuple[Number, Number]:
    """(slow, fast): factors on seconds at the ends of the 90% interval of `kind` (`decode`, `prefill`,
    `batch`), from the cross-validated residuals of rows of which as much was known (`known`: positions in
    TIERS), stretched as the nearest group's are."""
    key = (situation, kind)
    if key not in efficiency.evaluated:
        if len(efficiency.evaluated) >= MOST_SITUATIONS:
            efficiency.evaluated.clear()
        efficiency.evaluated[key] = widths(efficiency.intervals[kind], situation)
    found = efficiency.evaluated[key]
    return found["slow"][known], found["fast"][known]


#: Tiers that know no more than another: none of them is narrower.
WIDER = (
    ("model", "seen"), ("structure", "model"), ("kin", "seen"), ("kin-model", "kin"), ("kin-model", "model"),
    ("backend", "kin-model"), ("unseen", "backend"), ("unseen", "structure"),
)  # fmt: skip
NARROWEST = 0.02  # no end is nearer, in logs


def widths(held: dict[str, Any], situation: Situation) -> dict[str, np.ndarray]:
    """The factors `slow` and `fast` of a situation, one per tier: a tier's ends, in logs, times what its groups
    stretch them by."""
    found = {}
    for name in TIERS:
        by = nearest(held["stretch"].get(LACKS[name], {}), situation)
        slow, fast = (by * math.log(end) for end in held["tiers"][name])
        found[name] = math.exp(max(slow, NARROWEST)), math.exp(min(fast, -NARROWEST))
    for wide, narrow in WIDER:
        (slow, fast), (slower, faster) = found[narrow], found[wide]
        found[wide] = max(slow, slower), min(fast, faster)
    slow, fast = np.array([found[name] for name in TIERS]).T
    return {"slow": slow, "fast": fast}


#: Groups of situations whose widths differ, nearest first.
GROUPS = (
    ("backend", "lineage", "device"),
    ("backend", "lineage", "family"),
    ("backend", "lineage"),
    ("backend",),
)


def nearest(stretch: dict[str, float], situation: Situation) -> float:
    """What the smallest group that holds this situation stretches ends by; 1 without one."""
    labels = ("|".join(getattr(situation, f) for f in by) for by in GROUPS)
    return next((stretch[label] for label in labels if label in stretch), 1.0)


def measured(efficiency: Efficiency, situation: Situation) -> bool:
    """Whether this device was measured on this backend under this lineage of engines."""
    return tiers.device_label(situation) in efficiency.provenance["measured"]
