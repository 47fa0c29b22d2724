"""What of a machine was never measured, in sentences: predictions of it lean on its relatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from estimators import tiers
from estimators.efficiency import Efficiency, Situation, load
from estimators.observation import main_device
from estimators.peaks import family
from estimators.traits import traits
from hwdb.device import Device
from planner.machines import Target

if TYPE_CHECKING:
    from planner.candidates import Group


def sentences(target: Target, groups: Sequence[Group]) -> tuple[str, ...]:
    """One sentence per engine that was never measured on the machine, or on some machines of the class."""
    held = load()
    found = []
    for group in groups:
        device = main_device(group.machine, group.backend)
        if target.is_class:
            found.append(_of_class(held, target, group.engine))
        elif device is not None:
            found.append(_of_device(held, device, group.engine, group.backend))
    return tuple(words for words in dict.fromkeys(found) if words)


def _labels(device: Device, engine: str, backend: str) -> Situation:
    return Situation(engine, traits(engine).lineage, backend, family(device), device.id)


def _of_device(held: Efficiency, device: Device, engine: str, backend: str) -> str:
    labels = _labels(device, engine, backend)
    if device.basis == "measured" or tiers.device_label(labels) in held.provenance["measured"]:
        return ""
    never = f"{device.name} was never measured with {engine}'s kind of kernels"
    if tiers.family_label(labels) in held.provenance["families"]:
        return f"{never}: its speed is inferred from relatives, and its interval is as wide as they erred"
    return f"{never}, nor was a relative: its speed is inferred from other {backend} devices"


def _of_class(held: Efficiency, target: Target, engine: str) -> str:
    ids = {d.id for machine in target.machines for d in machine.devices[:1]}
    lineage = traits(engine).lineage
    known = {label.split("|")[2] for label in held.provenance["measured"] if label.split("|")[1] == lineage}
    if not ids - known:
        return ""
    return (
        f"{len(ids & known)} of {len(ids)} such devices were measured with {engine}'s kind of kernels; "
        "the speed of the others is inferred from relatives"
    )
