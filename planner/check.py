"""The CI gate: are the promises of a spec kept? Each requirement holds, is violated, or cannot be decided."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

from estimators.deployment import Bill, Deployment, Estimate
from estimators.quantity import Quantity

if TYPE_CHECKING:
    from estimators.personal import Corrections
    from planner.spec import DeploymentSpec, Require, Spec

Verdict = Literal["holds", "violated", "undecided"]
STATED = 0.90  # the confidence of every interval that an estimator returns


@dataclass(frozen=True, slots=True)
class Finding:
    """One requirement, judged. `line` and `column` are where the spec states it (1-based)."""

    deployment: str
    requirement: str
    verdict: Verdict
    message: str
    line: int
    column: int
    predicted: float | None = None
    low: float | None = None
    high: float | None = None
    limit: float | None = None


@dataclass(frozen=True)
class Outcome:
    """All findings of one spec."""

    file: str
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        """Violated if any is; else undecided if any is; else holds."""
        verdicts = {f.verdict for f in self.findings}
        return "violated" if "violated" in verdicts else "undecided" if "undecided" in verdicts else "holds"

    @property
    def exit_code(self) -> int:
        return {"holds": 0, "violated": 1, "undecided": 3}[self.verdict]


def narrowed(quantity: Quantity, confidence: float) -> Quantity:
    """The interval at another confidence: residuals are normal in the logarithm on each side of `best`.

    At confidence 0 both ends are `best`; at 0.90 the interval is the stated one.
    """
    if quantity.best <= 0 or quantity.low <= 0 or quantity.low == quantity.high:
        return quantity
    normal = NormalDist()
    scale = normal.inv_cdf((1 + confidence) / 2) / normal.inv_cdf((1 + STATED) / 2)
    low = quantity.best * (quantity.low / quantity.best) ** scale
    high = quantity.best * (quantity.high / quantity.best) ** scale
    return Quantity(low, quantity.best, high, quantity.origin, quantity.note)


def at_least(quantity: Quantity, limit: float) -> Verdict:
    """Holds when the low end reaches the limit, is violated when the high end does not."""
    return "holds" if quantity.low >= limit else "violated" if quantity.high < limit else "undecided"


def at_most(quantity: Quantity, limit: float) -> Verdict:
    """Holds when the high end stays within the limit, is violated when the low end does not."""
    return "holds" if quantity.high <= limit else "violated" if quantity.low > limit else "undecided"


def _range(quantity: Quantity, show: Callable[[float], str]) -> str:
    if quantity.low == quantity.high:
        return show(quantity.best)
    return f"{show(quantity.best)} ({show(quantity.low)} to {show(quantity.high)})"


def _memory(spec: DeploymentSpec, bill: Bill, confidence: float) -> Iterable[Finding]:
    from planner.units import format_bytes

    wanted = spec.require.headroom_bytes or 0
    name = "headroom" if spec.require.headroom_bytes else "fits"
    for device in bill.devices:
        total = narrowed(device.total(), confidence)
        if device.capacity_bytes is None:
            message = f"{device.device}: needs {_range(total, format_bytes)}, memory unknown"
            say = "; add `ram` to the machine" if device.device == "host" else ""
            yield spec.finding(name, "undecided", message + say)
            continue
        verdict = at_most(total, device.capacity_bytes - wanted)
        spare = f" with {format_bytes(wanted)} to spare" if wanted else ""
        capacity = format_bytes(device.capacity_bytes)
        message = f"{device.device}: needs {_range(total, format_bytes)}{spare} of {capacity}"
        numbers = {
            "predicted": total.best,
            "low": total.low,
            "high": total.high,
            "limit": device.capacity_bytes - wanted,
        }
        yield spec.finding(name, verdict, message, **numbers)


def _speed(spec: DeploymentSpec, estimate: Estimate, confidence: float) -> Iterable[Finding]:
    from planner.units import format_rate, format_seconds

    def _per_s(rate: float) -> str:
        return f"{format_rate(rate)} tok/s"

    require: Require = spec.require
    per_sequence = Quantity(
        1 / estimate.tpot_s.high, 1 / estimate.tpot_s.best, 1 / estimate.tpot_s.low, estimate.tpot_s.origin
    )
    asked: tuple[
        tuple[str, float | None, Quantity, Callable[[float], str], Callable[[Quantity, float], Verdict]], ...
    ]
    asked = (
        ("max_ttft", require.max_ttft_s, estimate.ttft_s, format_seconds, at_most),
        ("max_tpot", require.max_tpot_s, estimate.tpot_s, format_seconds, at_most),
        ("min_tps", require.min_tokens_per_s, per_sequence, _per_s, at_least),
        (
            "min_throughput",
            require.min_total_tokens_per_s,
            estimate.decode_tokens_per_s,
            _per_s,
            at_least,
        ),
    )
    for name, limit, quantity, show, judge in asked:
        if limit is None:
            continue
        interval = narrowed(quantity, confidence)
        word = "at most" if judge is at_most else "at least"
        message = f"{_range(interval, show)}, wanted {word} {show(limit)}; bound by {_bound(name, estimate)}"
        numbers = {"predicted": interval.best, "low": interval.low, "high": interval.high, "limit": limit}
        yield spec.finding(name, judge(interval, limit), message, **numbers)


def _bound(name: str, estimate: Estimate) -> str:
    return estimate.prefill_bottleneck if name == "max_ttft" else estimate.bottleneck


def _context(spec: DeploymentSpec, deployment: Deployment) -> Iterable[Finding]:
    from dataclasses import replace

    from estimators.memory import bill

    wanted = spec.require.min_context_tokens
    if wanted is None:
        return
    trained = deployment.model.max_context
    if trained is not None and wanted > trained:
        message = f"{wanted} tokens wanted, {deployment.model.id} was trained for {trained}"
        yield spec.finding("min_context", "violated", message, predicted=trained, limit=wanted)
        return
    longer = deployment.with_(settings=replace(deployment.settings, context_tokens=wanted))
    verdicts = [
        at_most(d.total(), d.capacity_bytes) if d.capacity_bytes else "undecided"
        for d in bill(longer).devices
    ]
    verdict: Verdict = (
        "violated" if "violated" in verdicts else "undecided" if "undecided" in verdicts else "holds"
    )
    said = {"holds": "fits", "violated": "does not fit", "undecided": "may not fit"}[verdict]
    yield spec.finding("min_context", verdict, f"a context of {wanted} tokens {said}", limit=wanted)


def _licence(spec: DeploymentSpec, deployment: Deployment) -> Iterable[Finding]:
    if not spec.require.licenses:
        return
    licence, allowed = deployment.model.licence, [name.lower() for name in spec.require.licenses]
    if not licence:
        yield spec.finding("licenses", "undecided", f"the licence of {deployment.model.id} is not known")
        return
    verdict: Verdict = "holds" if licence.lower() in allowed else "violated"
    yield spec.finding("licenses", verdict, f"{licence}; allowed: {', '.join(spec.require.licenses)}")


def _quality(spec: DeploymentSpec, deployment: Deployment, confidence: float) -> Iterable[Finding]:
    from planner.rating import rate

    floor = spec.require.min_quality
    if floor is None:
        return
    score = rate(deployment.model, deployment.scheme, spec.task, deployment.settings.kv_type_k)
    interval = narrowed(score, confidence)
    message = f"{_range(interval, lambda x: f'{x:.1f}')} for {spec.task}, wanted at least {floor:g}"
    numbers = {"predicted": interval.best, "low": interval.low, "high": interval.high, "limit": floor}
    yield spec.finding("min_quality", at_least(interval, floor), message, **numbers)


def _engine(spec: DeploymentSpec, deployment: Deployment) -> Iterable[Finding]:
    from planner import engines

    if deployment.engine in engines.names():
        reason = engines.get(deployment.engine).refuses(deployment)
        if reason:
            yield spec.finding("engine", "violated", reason)


def judge(
    spec: DeploymentSpec, deployment: Deployment, confidence: float, mine: Corrections | None = None
) -> tuple[Finding, ...]:
    """Every requirement of one deployment of a spec; with `mine`, by the user's own measurements."""
    from estimators.estimate import estimate

    price = estimate(deployment, mine)
    return (
        *_engine(spec, deployment),
        *_memory(spec, price.bill, confidence),
        *_context(spec, deployment),
        *_speed(spec, price, confidence),
        *_licence(spec, deployment),
        *_quality(spec, deployment, confidence),
    )


def check(spec: Spec, mine: Corrections | None = None) -> Outcome:
    """Judge a whole spec, in its order. Without `mine` the verdict is the same on every machine."""
    findings: list[Finding] = []
    for item in spec.deployments:
        findings += judge(item, item.deployment(), item.require.confidence, mine)
    return Outcome(spec.file, tuple(findings))
