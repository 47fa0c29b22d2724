"""Predictions beside measurements, line by line: values and reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from estimators import reference
from estimators.quantity import Quantity
from planner import units


@dataclass(frozen=True)
class Line:
    """One quantity, predicted and measured. `unit` is `count`, `bytes`, `s` or `FLOP`. Exact lines must be equal,
    the others lie in the interval."""

    name: str
    unit: str
    predicted: Quantity
    measured: float
    exact: bool

    @property
    def holds(self) -> bool:
        if self.exact:
            return self.predicted.best == self.measured
        return self.predicted.low <= self.measured <= self.predicted.high


@dataclass(frozen=True)
class Verification:
    """All lines of one model. `remarks` say why times should not be trusted, `notes` what was done."""

    subject: str
    mode: str  # full, sampled, or the name of another engine
    lines: tuple[Line, ...]
    remarks: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
    # rows as `llama-bench -o json` has them
    tests: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    measured: tuple[tuple[str, str, float], ...] = ()  # (name, unit, value) where nothing is predicted

    @property
    def holds(self) -> bool:
        return all(line.holds for line in self.lines)

    @property
    def not_judged(self) -> tuple[Line, ...]:
        """Times outside their interval in a contaminated run: they say nothing of the prediction."""
        timed = (line for line in self.lines if line.unit in ("s", "tok/s"))
        return tuple(line for line in timed if not line.holds) if self.remarks else ()

    @property
    def verdict(self) -> Literal["holds", "fails", "not judged"]:
        """`fails` when a line fails that contamination does not excuse."""
        if self.holds:
            return "holds"
        failed = sum(not line.holds for line in self.lines)
        return "fails" if failed > len(self.not_judged) else "not judged"


def exact_lines(want: reference.Counts, got: dict[str, Any], n_tokens: int) -> tuple[Line, ...]:
    """Predicted counts beside those found; a key that `got` lacks is left out."""

    def line(name: str, unit: str, predicted: float, measured: float) -> Line:
        return Line(name, unit, Quantity.exact(predicted), measured, True)

    lines = []
    if "params" in got:
        lines.append(line("parameters", "count", want.n_params, got["params"]))
        for name, size in want.class_bytes:
            if name in got["classes"] and (size or got["classes"][name]):
                lines.append(line(f"{name} weights", "bytes", size, got["classes"][name]))
    if "weights" in got:
        lines.append(line("all weights", "bytes", want.weight_bytes, got["weights"]))
    lines.append(line("cache allocated", "bytes", want.cache_allocated_bytes, got["allocated"]))
    if "step" in got:
        step = got["step"]
        lines += [
            line(f"cache of {n_tokens} tokens", "bytes", want.cache_bytes, step.cache_bytes),
            line("a step touches", "bytes", want.step_bytes, step.bytes_touched),
            line("a step computes", "FLOP", want.step_flops, step.flops),
        ]
    return tuple(lines)


# -- reports ----------------------------------------------------------------------------------------------


def shown(value: float, unit: str) -> str:
    """A value for people."""
    if unit == "bytes":
        return f"{value:,.0f}" if value < 1 << 20 else f"{units.format_bytes(value, 2)}"
    if unit == "s":
        return units.format_seconds(value)
    if unit == "tok/s":
        return f"{units.format_rate(value)} tok/s"
    if unit == "FLOP":
        return f"{value / 1e9:.3g} GFLOP"
    return units.format_parameters(value)


def _digits(value: float, unit: str) -> str:
    """All digits of an exact value."""
    return f"{value:,.0f}" + ("" if unit == "count" else f" {unit}")


def text(found: Verification) -> str:
    """Aligned lines, the verdict last."""
    if not found.lines:
        alone = (f"{name:10s}  {shown(value, unit):>11s}\n" for name, unit, value in found.measured)
        return "".join((f"{found.subject} ({found.mode})\n", *alone))
    rows = [("", "predicted", "interval", "measured", "")]
    for line in found.lines:
        p = line.predicted
        span = "exact" if line.exact else f"{shown(p.low, line.unit)} to {shown(p.high, line.unit)}"
        verdict = ("equal" if line.exact else f"{line.measured / p.best - 1:+.0%}") if p.best else ""
        if not line.holds:
            verdict = f"NO: {line.measured - p.best:+,.0f}" if line.exact else f"NO: {verdict}"
        if line in found.not_judged:
            verdict = verdict.replace("NO:", "not judged:")
        show = _digits if line.exact else shown
        rows.append((line.name, show(p.best, line.unit), span, show(line.measured, line.unit), verdict))
    widths = [max(len(r[i]) for r in rows) for i in range(5)]
    body = [
        f"{r[0]:{widths[0]}s}  {r[1]:>{widths[1]}s}  {r[2]:>{widths[2]}s}  {r[3]:>{widths[3]}s}  {r[4]}".rstrip()
        for r in rows
    ]
    good = sum(line.holds for line in found.lines)
    last = f"{good} of {len(found.lines)} lines hold"
    if found.not_judged:
        last += f", {len(found.not_judged)} not judged: the run was contaminated"
    return "\n".join([f"{found.subject} ({found.mode})", *body, last]) + "\n"


def document(found: Verification) -> dict[str, Any]:
    """As JSON values."""
    return {
        "schema_version": 1,
        "subject": found.subject,
        "mode": found.mode,
        "holds": found.holds,
        "verdict": found.verdict,
        "contaminated": bool(found.remarks),
        "remarks": list(found.remarks),
        "notes": list(found.notes),
        "measured": [dict(zip(("name", "unit", "value"), row, strict=True)) for row in found.measured],
        "lines": [{**asdict(line), "holds": line.holds} for line in found.lines],
    }
