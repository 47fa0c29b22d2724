"""`plan calibrate`: measurements of the user's own machine against predictions -> a calibration."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from estimators import efficiency
from estimators.deployment import Deployment
from estimators.personal import Phase, Residual, correction, label, told
from hwdb.device import Device
from planner import calibrations, imports, pricing
from planner.asks import Ask, Refusal
from planner.calibrations import Calibration, Kept
from planner.drafts import Hints
from planner.errors import UsageError
from planner.imports import Imported, Measured

PHASE_METRICS = ("prefill_tps", "ttft_ms", "decode_tps", "tpot_ms")
STRANGE = 8.0  # times off: another processor did the work, or the units are others
SLOWER = 0.97  # a measurement may be this much faster than the floor: clocks above the datasheet's


@dataclass(frozen=True)
class Outcome:
    """What one file taught, and what of it could not be used."""

    imported: Imported
    calibration: Calibration | None
    refused: tuple[tuple[str, str], ...]


def calibrate(paths: Sequence[Path], hints: Hints, keep: bool = True) -> tuple[Outcome, ...]:
    """Learn from these files and keep what they taught. Nothing is kept unless every file can be read.

    Errors: those of `imports.read`; UsageError where not one row of a file can be compared.
    """
    outcomes = [_learn(imports.read(path, hints)) for path in paths]
    for outcome in outcomes:
        if outcome.calibration is None:
            where, why = outcome.refused[0]
            more = f" (and {len(outcome.refused) - 1} more)" if len(outcome.refused) > 1 else ""
            raise UsageError(
                f"{outcome.imported.path}: no row can be compared: {where}: {why}{more}",
                "plan calibrate --help names what a file may lack",
            )
    known = [c for c in calibrations.read_all()[0] if c.basis == calibrations.basis()]
    new = {o.calibration.id: o.calibration for o in outcomes if o.calibration}
    known = [*(c for c in known if c.id not in new), *new.values()]
    rows = [row.residual for c in known for row in c.rows]
    finished = []
    for outcome in outcomes:
        assert outcome.calibration is not None
        done = replace(outcome.calibration, error_after=_error_after(outcome.calibration, rows))
        if keep:
            calibrations.write(done)
        finished.append(replace(outcome, calibration=done))
    return tuple(finished)


def _learn(imported: Imported) -> Outcome:
    kept: list[Kept] = []
    refused = list(imported.refused)
    for row in imported.rows:
        found = compare(row)
        if isinstance(found, Refusal):
            refused.append((f"{row.where} ({row.label})", found.reason))
        else:
            kept.append(found)
    if not kept:
        return Outcome(imported, None, tuple(refused))
    errors = [abs(row.predicted / row.measured - 1) for row in kept]
    made = Calibration(
        imported.sha256[:8], imported.path.name, imported.sha256, imported.tool, _today(),
        calibrations.basis(),
        _median(errors), _median(errors), tuple(kept),
    )  # fmt: skip
    return Outcome(imported, made, tuple(refused))


def compare(row: Measured) -> Kept | Refusal:
    """The row against its prediction, or why the two cannot be compared."""
    from estimators.errors import CannotPrice

    row = replace(row, ask=as_planned(measured_here(row.ask)))
    ask = row.ask
    if ask.metric not in PHASE_METRICS:
        return Refusal(f"{ask.metric} mixes prompt and answer: which was slow cannot be told")
    try:
        found = pricing.phases(ask.deployment)
    except CannotPrice as error:
        return Refusal(str(error))
    phase = cast(Phase, found.kind(ask.metric))
    work = ask.deployment.workload
    if found.n_sequences > 1 and ask.metric in ("ttft_ms", "prefill_tps"):
        return Refusal("first tokens of several requests at once depend on their order")
    predicted = found.printed(ask.metric, work, "best")
    if not (math.isfinite(predicted) and predicted > 0 and math.isfinite(row.value) and row.value > 0):
        return Refusal("no finite rate can be predicted for it")
    slower = ask.metric in pricing.SECONDS
    ratio = math.log(row.value / predicted if slower else predicted / row.value)
    if abs(ratio) > math.log(STRANGE):
        far = f"{math.exp(abs(ratio)):.0f} times {'slower' if ratio > 0 else 'faster'} than predicted"
        return Refusal(f"{far}: not this device, model or settings")
    if beaten := _beats_physics(row, found, ratio):
        return Refusal(beaten)
    device, labels = _labels(row)
    residual = Residual(
        label(device), ask.n_devices, labels.engine, labels.backend, phase, ratio, row.noise,
        row.settings, row.date or _today(), *_target(ask.deployment, phase),
    )  # fmt: skip
    return Kept(row.label, ask.metric, row.value, predicted, row.samples, residual)


def _target(d: Deployment, phase: Phase) -> tuple[str, float, float]:
    """The class of formats, the parameters and the size of what was measured."""
    from estimators import formats
    from estimators.deployed_walk import known_walk

    work = d.workload
    sizes = {"prefill": max(work.prompt_tokens, 1), "batch": work.n_sequences, "decode": 1}
    kind = formats.class_of(d.scheme, d.model.hidden_size)
    return kind, float(known_walk(d.model, d.scheme).total_params), float(sizes[phase])


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def as_planned(ask: Ask) -> Ask:
    """The ask without the date of its build where that is as new as what plans assume: a correction is to plans'."""
    from estimators.observation import build_year

    settings = ask.deployment.settings
    undated = ask.deployment.with_(settings=replace(settings, year=None))
    new = settings.year is not None and settings.year >= build_year(undated)
    return replace(ask, deployment=undated) if new else ask


def measured_here(ask: Ask) -> Ask:
    """The ask on devices with the rates that `plan measure` found on this machine, as plans have them."""
    from hwdb import user_devices

    kept, _ = user_devices.read_all()
    machine = ask.deployment.machine
    machine = replace(
        machine,
        devices=tuple(user_devices.apply(d, kept) for d in machine.devices),
        host=user_devices.apply(machine.host, kept) if machine.host else None,
    )
    return replace(ask, deployment=ask.deployment.with_(machine=machine))


def _labels(row: Measured) -> tuple[Device, Any]:
    """The device, and the situation that predictions of this deployment are made in."""
    from estimators.observation import main_device, situation

    deployment = row.ask.deployment
    device = main_device(deployment.machine, deployment.backend)
    assert device is not None
    return device, situation(deployment, device)


def _beats_physics(row: Measured, found: pricing.Phases, ratio: float) -> str:
    """Why a row cannot be of this device: memory or arithmetic would have to be faster than they are."""
    from estimators.estimate import table_of
    from estimators.phases import floors
    from estimators.phases import plan as plan_of

    first, each = floors(plan_of(table_of(row.ask.deployment), efficiency.load()), slice(0, 1))
    prompt = row.ask.metric in ("prefill_tps", "ttft_ms")
    floor, predicted = (first, found.prefill_s) if prompt else (each, found.step_s)
    if predicted * math.exp(ratio) >= SLOWER * float(floor.item() if hasattr(floor, "item") else floor):
        return ""
    return "faster than the device's memory or arithmetic allow: it is another device, model or quantization"


def _error_after(c: Calibration, rows: Sequence[Residual]) -> float:
    """Median |predicted / measured - 1| of a calibration's rows with everything that is known."""
    errors = []
    for kept in c.rows:
        same = [r for r in rows if r.group == kept.residual.group]
        slow, fast = interval_of(kept.residual)
        found = correction(same, slow, fast, kept.residual.target)
        left = kept.residual.log_ratio - math.log(found.factor)
        errors.append(abs(math.expm1(-left)))
    return _median(errors)


def interval_of(residual: Residual) -> tuple[float, float]:
    """(slow, fast) of the prediction that a row of this group corrects, for a dense model that nobody
    measured on the device."""
    from estimators import tiers
    from estimators.efficiency import Situation
    from estimators.peaks import family
    from estimators.traits import traits
    from hwdb import catalogue

    name = residual.device.removesuffix(" (measured)")
    devices = [d for d in catalogue.load().devices if d.id == name]
    kind = family(devices[0]) if devices else ""
    lineage = traits(residual.engine).lineage
    labels = Situation(residual.engine, lineage, residual.backend, kind, name)
    held = efficiency.load()
    slow, fast = efficiency.interval(
        held, labels, residual.phase, tiers.tier(held.provenance, labels, 0, 0.0)
    )
    return float(slow), float(fast)


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def text(outcomes: Sequence[Outcome], kept: bool) -> str:
    """What was learnt, for a person."""
    lines = []
    for outcome in outcomes:
        c = outcome.calibration
        assert c is not None
        lines += [
            f"{c.file}: {len(c.rows)} of {len(c.rows) + len(outcome.refused)} rows of {c.tool}, "
            f"median error {c.error_before:.1%} before, {c.error_after:.1%} after",
            *(f"  left out: {where}: {why}" for where, why in outcome.refused[:8]),
            *([f"  and {len(outcome.refused) - 8} more"] if len(outcome.refused) > 8 else []),
            *groups(c),
        ]
        lines.append(
            f"  kept as {c.id}; plan calibrate --undo {c.id} forgets it" if kept else "  not kept (--dry-run)"
        )
    return "\n".join(lines) + "\n"


def groups(c: Calibration) -> list[str]:
    """One line per machine, engine and phase: how much slower or faster than predicted its rows were."""
    found: dict[Any, list[Kept]] = {}
    for row in c.rows:
        found.setdefault(row.residual.group, []).append(row)
    lines = []
    for (device, n, engine, backend, phase), rows in found.items():
        slow, fast = interval_of(rows[0].residual)
        new = correction([r.residual for r in rows], slow, fast)
        shown = f"{n} x {device}" if n > 1 else device
        measured = math.exp(sum(r.residual.log_ratio for r in rows) / len(rows))
        lines.append(
            f"  {shown} {engine} ({backend}) {phase}: {_words(measured)} in {len(rows)} "
            f"row{'s' * (len(rows) > 1)}, predictions now {_words(new.factor)}, interval of the time "
            f"{fast - 1:+.0%} to {slow - 1:+.0%} becomes {new.fast / new.factor - 1:+.0%} to "
            f"{new.slow / new.factor - 1:+.0%}"
        )
        if len(rows) > 2 and new.scatter > 0.5 * math.log(slow / fast):
            lines.append(
                f"    these rows disagree by {math.expm1(new.scatter):.0%}: were they all undisturbed?"
            )
    return lines


def _words(factor: float) -> str:
    """`12% slower` for a factor of 1.12 on seconds."""
    if abs(factor - 1) < 0.005:
        return "as predicted"
    return f"{factor - 1:.0%} slower" if factor > 1 else f"{1 / factor - 1:.0%} faster"


def listing() -> str:
    """Every calibration kept, for a person."""
    found, remarks = calibrations.read_all()
    lines = [f"note: {remark}" for remark in remarks]
    for c in found:
        aside = "" if c.basis == calibrations.basis() else ", left aside: made with other predictions"
        date = max((row.residual.date for row in c.rows), default="") or c.made
        lines.append(f"{c.id}  {c.file} ({c.tool}, sha256 {c.sha256[:12]}), {told(date, len(c.rows))}{aside}")
        lines.append(f"  median error {c.error_before:.1%} before, {c.error_after:.1%} after")
        lines += groups(c)
    return "\n".join(lines or ["no calibration is kept: plan calibrate --from FILE"]) + "\n"
