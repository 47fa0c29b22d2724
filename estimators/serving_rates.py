"""What servers reach under load: calibrated latents of `serving_model`, as a base plus effects of groups.

`estimators/data/serving.yaml` (read compiled) has the same shape as the roofline's `efficiency.yaml`: each latent has
a base and terms; a term has an effect per label, the values of a few features joined by `|`. A label without an effect
adds nothing. Shares go through a logistic function and stay in (0, 1), the others through an exponential and stay
positive.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from estimators import efficiency, formats
from estimators.traits import traits

COMPILED = Path(__file__).parent / "data" / "serving.json"

#: Shares of peaks (bandwidth: weights, experts, cache; arithmetic: compute, experts_compute, attention; links);
#: `speculates`: of the servers of which nobody says whether they speculate, and that could.
SHARES = (
    "weights", "experts", "cache", "compute", "experts_compute", "prefill_attention", "decode_attention", "link",
    "speculates",
)  # fmt: skip
#: Seconds, counts and positive factors:
#: `layer`, `moe_layer`, `step`: seconds per layer, per MoE layer, per decode step; `eager`: per layer of a batch that
#: is larger than any captured graph; `sequence`: per sequence of a step;
#: `reduce`, `exchange`: seconds of an empty all-reduce and expert exchange, per doubling of the ranks; `padding`:
#: tokens that each touched expert computes in vain; `interference`: how much of another's prefill a decode step waits;
#: `burst`, `crowding`: how far prompts wait for those before them, at the start and later; `sharing`: how much decode
#: steps slow a prompt's own prefill; `waiting`: how much of an answer's time those wait whose cache does not fit;
#: `partial_step`: decode steps before the first token shows; `request`, `admission`: seconds per request and per
#: user; `drafts`: tokens accepted per step beyond the first where speculation is on; `fill`: share of a cache in
#: use; `worker_*`, `prefill_power`: how many workers there are where nobody says.
FACTORS = (
    "layer", "eager", "moe_layer", "step", "sequence", "reduce", "exchange", "padding", "interference", "burst",
    "crowding", "sharing", "waiting", "partial_step", "request", "admission", "drafts", "fill", "worker_users",
    "worker_power", "worker_tokens", "prefill_power",
)  # fmt: skip
LATENTS = (*SHARES, *FACTORS)

#: Where intervals are looked up, nearest first. Experimental builds are far less certain than releases.
INTERVAL_GROUPS = (
    ("mode", "stated", "client", "engine", "version"),
    ("mode", "stated", "client", "engine", "structure"),
    ("mode", "stated", "client", "engine"),
    ("mode", "stated", "client"),
    ("mode", "stated"),
    ("mode",),
)
#: How far a server is from those measured: its model by this engine on devices of this family; the engine on such
#: devices; neither.
TIERS = ("seen", "model", "device")

Labels = Mapping[str, str]
MEASURED_MEMORY = "hbm"  # of the devices measured under load
FAMILY_TERM = ["family", "format"]  # of `compute`: whose labels need no help from single streams

#: More devices than share one matrix in practice: such "tensor" sizes, and those that are no power of two, are all
#: devices of a deployment whose experts lie over them, with attention per device.
MOST_TENSOR = 16


def shares_matrices(n_devices: int) -> bool:
    """Whether that many devices split each matrix."""
    return n_devices <= MOST_TENSOR and n_devices & (n_devices - 1) == 0


@dataclass(frozen=True, eq=False)
class Calibration:
    """The effects (`latents`), the widths of predictions (`intervals`) and where they come from. Equal only to
    itself, so that what is worked out from it can be remembered."""

    latents: dict[str, Any]
    intervals: dict[str, Any]
    provenance: dict[str, Any]


@cache
def load(path: Path = COMPILED) -> Calibration:
    """The compiled calibration."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    return Calibration(raw["latents"], raw["intervals"], raw["provenance"])


def scaled(name: str, value: Any) -> Any:
    """A latent on its own scale: a share or a positive number."""
    return 1.0 / (1.0 + np.exp(-value)) if name in SHARES else np.exp(value)


def label(labels: Labels, by: tuple[str, ...] | list[str]) -> str:
    """The label of a term or a group."""
    return "|".join(labels[feature] for feature in by)


def shape_label(n_layers: float, hidden_size: float) -> str:
    """Models of one architecture: what their layers cost besides bytes and arithmetic is alike."""
    return f"{n_layers:.0f}x{hidden_size:.0f}"


@cache
def shapes(held: Calibration) -> frozenset[str]:
    """The architectures that have an effect of their own."""
    found: set[str] = set()
    for entry in held.latents.values():
        for term in entry["terms"]:
            if "shape" in term["by"]:
                at = list(term["by"]).index("shape")
                found.update(name.split("|")[at] for name in term["effects"])
    return frozenset(found)


def latents(held: Calibration, labels: Labels) -> dict[str, float]:
    """Each latent for a server with these labels."""
    found = {}
    for name in LATENTS:
        entry = held.latents[name]
        total = float(entry["base"])
        for term in entry["terms"]:
            total += float(term["effects"].get(label(labels, term["by"]), 0.0))
        if name == "compute":
            total += _from_single_streams(
                held, *(labels[x] for x in ("engine", "family", "memory", "format"))
            )
        found[name] = float(scaled(name, total))
    return found


@cache
def _from_single_streams(held: Calibration, engine: str, family: str, memory: str, kind: str) -> float:
    """What a family of devices that nobody measured with this format reaches of its arithmetic beyond those measured
    under load, on the logit scale: as prompts of single streams say. 0 for families with an effect. (Small tensor
    cores are easier to keep busy: GeForce cards reach twice the share of an H100.)"""
    terms = (term["effects"] for term in held.latents["compute"]["terms"] if term["by"] == FAMILY_TERM)
    measured = sorted({str(name).split("|")[1] for name in held.provenance["families"]})
    if any(f"{family}|{kind}" in effects for effects in terms) or family in measured or not measured:
        return 0.0
    known, at = efficiency.load(), formats.INDEX[formats.unblocked(kind)]

    def reached(family: str, memory: str) -> float:
        where = efficiency.Situation(engine, traits(engine).lineage, "cuda", family, "", tier=memory)
        share = efficiency.evaluate(known, where, formats.CLASSES)["compute"][at, 0, 0, 0]
        return float(np.log(share / (1.0 - share)))

    others = [reached(name, MEASURED_MEMORY) for name in measured]
    return reached(family, memory) - sum(others) / len(others)


def interval(held: Calibration, labels: Labels, metric: str) -> tuple[float, float]:
    """(fast, slow): factors on seconds at the ends of the 90% interval of `ttft` or `tpot`, from the cross-validated
    residuals of the nearest group of this server's tier: other configurations, whole models, or whole devices left
    out."""
    groups = held.intervals[metric][tier(held, labels)]
    for by in INTERVAL_GROUPS:
        if found := groups.get(label(labels, by)):
            return float(found["fast"]), float(found["slow"])
    return float(groups["*"]["fast"]), float(groups["*"]["slow"])


def seen(held: Calibration, labels: Labels) -> bool:
    """Whether this engine was measured serving this model on a device of this family."""
    return label(labels, ("engine", "model", "family")) in held.provenance["measured"]


def tier(held: Calibration, labels: Labels) -> str:
    """One of TIERS."""
    if seen(held, labels):
        return "seen"
    return "model" if label(labels, ("engine", "family")) in held.provenance["families"] else "device"
