"""How well a deployment is known to the calibration: what of it was measured, nearest first.

A prediction is the better the more of it was measured: the device with this very model, the device with
others of its structure, relatives of the device, or nothing of the kind. Widths of predictions differ
accordingly (`estimators.folds` learns them by leaving exactly that out).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from estimators.walk import Number

if TYPE_CHECKING:
    from estimators.efficiency import Situation

STRUCTURES = ("dense", "moe", "mla", "hybrid", "hybrid-moe", "sparse")
TIERS = ("seen", "model", "structure", "kin", "kin-model", "backend", "unseen")
#: What residuals of a tier stand for: a row, a whole model or a whole device that nobody measured. Backends,
#: families and devices are easier or harder than others alike in all tiers of one of these.
LACKS = {
    "seen": "row", "model": "model", "structure": "model",
    "kin": "device", "kin-model": "device", "backend": "device", "unseen": "device",
}  # fmt: skip
#: What each tier is, for a person; `{device}`, `{engine}` and `{structure}` are filled in.
MEANING = {
    "seen": "",
    "model": "no model of this size was measured on {device} with {engine}, others of its structure were",
    "structure": "hardly any {structure} model was measured on {device} with {engine}",
    "kin": "{device} was never measured with {engine}, relatives of it were",
    "kin-model": "{device} was never measured with {engine}, nor its relatives with a model of about this size",
    "backend": "{device} was never measured with {engine}, nor was a relative with a {structure} model; "
    "devices of other families were",
    "unseen": "{device} was never measured with {engine}, nor were devices like it with a {structure} model",
}
#: Models of a structure from which a device counts as measured with that structure (cross-validated errors
#: halve from one to four of them).
ENOUGH_MODELS = 2
#: Families of a backend that make its kernels known to another family: two say little about a third (a backend of
#: one or two devices is predicted as badly as one that was never measured).
ENOUGH_FAMILIES = 3
#: Models whose sizes differ by less than this factor are alike to a device whose relatives ran one of them
#: (devices and models left out together: median error 13% beside a model of nearly its size, 11% beside its
#: own, 30% beside others).
ABOUT = 1.1


def shape(total_params: Number) -> Number:
    """What identifies a model's shape: millions of parameters. Fine-tunes share it, and their speed."""
    return np.rint(np.asarray(total_params) / 1e6)


def device_label(s: Situation) -> str:
    """The device on its backend under its lineage of engines."""
    return f"{s.backend}|{s.lineage}|{s.device}"


def family_label(s: Situation) -> str:
    """The device's family on its backend under its lineage of engines."""
    return f"{s.backend}|{s.lineage}|{s.family}"


def backend_label(s: Situation) -> str:
    """The backend under its lineage of engines."""
    return f"{s.backend}|{s.lineage}"


def tier(known: Mapping[str, Any], s: Situation, structure: Number, total_params: Number) -> Number:
    """Positions in TIERS of deployments that share a situation: their `structure` (positions in STRUCTURES)
    and parameters are arrays or scalars.

    `known["measured"]` has, per device label and structure, the shapes measured; `known["families"]` the
    same per family label; `known["backends"]` per backend label and structure how many families were measured.
    """
    kinds = np.asarray(structure, dtype=int)
    held = known["measured"].get(device_label(s))
    if held is not None:
        enough = np.array([len(held.get(name, ())) >= ENOUGH_MODELS for name in STRUCTURES])
        others = np.where(enough[kinds], TIERS.index("model"), TIERS.index("structure"))
        return np.where(_among(held, total_params), TIERS.index("seen"), others)
    related = known["families"].get(family_label(s), {})
    near = np.array([name in related for name in STRUCTURES])
    families = known.get("backends", {}).get(backend_label(s), {})
    usual = np.array([families.get(name, 0) >= ENOUGH_FAMILIES for name in STRUCTURES])
    others = np.where(usual[kinds], TIERS.index("backend"), TIERS.index("unseen"))
    others = np.where(near[kinds], TIERS.index("kin-model"), others)
    return np.where(_about(related, kinds, total_params), TIERS.index("kin"), others)


def _among(held: Mapping[str, Any], total_params: Number) -> Number:
    """Whether models of this shape were measured."""
    shapes = np.array([x for group in held.values() for x in group], dtype=float)
    return np.isin(shape(total_params), shapes)


def _about(held: Mapping[str, Any], structure: Number, total_params: Number) -> Number:
    """Whether models of this structure and of about this size were measured."""
    found = np.zeros(np.broadcast(structure, total_params).shape, dtype=bool)
    size = np.log(np.maximum(np.asarray(total_params) / 1e6, 1e-3))[..., None]
    for name, shapes in held.items():
        close = np.abs(size - np.log(np.maximum(shapes, 1e-3))).min(axis=-1) < np.log(ABOUT)
        found = found | (close & (np.asarray(structure) == STRUCTURES.index(name)))
    return found


def sentence(position: int, s: Situation, structure: int) -> str:
    """What was never measured of a deployment, in one sentence; "" where all of it was."""
    return MEANING[TIERS[position]].format(device=s.device, engine=s.engine, structure=STRUCTURES[structure])
