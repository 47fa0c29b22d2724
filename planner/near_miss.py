"""What almost answers: what it lacks, and the cheapest change that would let it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from modeldb.model import Model
from modeldb.scheme import Scheme
from planner import candidates, units
from planner.candidates import Group, Integers
from planner.choice import Board
from planner.machines import Target
from planner.request import Request
from planner.stock import Stock

SHOWN = 4
USUAL_BITS = (4.0, 5.0)  # the quantization people mean when none is named
MOST_OVER = 1.0  # a model that needs more than twice the memory is not near


@dataclass(frozen=True)
class NearMiss:
    """A model that does not answer. `lacks` says what is missing, `fixes` what would help, cheapest first."""

    model: Model
    scheme: Scheme
    engine: str
    kv_type: str
    lacks: str
    missing_bytes: float  # 0 when memory suffices
    tokens_per_s: float
    ttft_s: float
    fixes: tuple[str, ...]


def find(
    request: Request,
    stock: Stock,
    groups: Sequence[Group],
    found: Board,
    shown: Sequence[int],
    target: Target,
) -> tuple[NearMiss, ...]:
    """The best models without any answering candidate, nearest quantization first, at most SHOWN."""
    answering = set(found.model[found.answers].tolist())
    floor = max((float(found.quality_low[i]) for i in shown), default=-np.inf)
    bits = np.array([s.nominal_bits for s in stock.schemes])[found.scheme]
    usual = (
        (bits >= USUAL_BITS[0]) & (bits <= USUAL_BITS[1]) if not request.quants else np.ones(len(found), bool)
    )
    first_kv = np.concatenate([g.kv == 0 for g in groups])
    over = -found.free_bytes / np.maximum(found.device_bytes + found.free_bytes, 1.0)
    near = (over <= MOST_OVER) & usual & first_kv & ~np.isin(found.model, list(answering))
    if not request.models:
        near &= found.quality_low > floor
    rows = np.flatnonzero(near)
    if not len(rows):
        rows = _nearest(found, over) if not answering else rows
    shortfall = np.maximum(over, 0) + np.maximum(
        0, 1 - 1 / np.maximum(found.tpot_s, 1e-12) / max(request.min_tps, 1e-9)
    )
    shortfall += np.maximum(0, 1 - request.max_ttft_s / np.maximum(found.ttft_s, 1e-12))
    order = rows[np.lexsort((shortfall[rows], found.model[rows]))]
    _, first = np.unique(found.model[order], return_index=True)
    best = order[first]
    # beside answers a better model is of interest, without any the nearest is
    worth = 0.3 if answering else 0.0
    best = best[np.argsort(shortfall[best] - worth * found.quality_low[best], kind="stable")]
    publishers = [stock.models[found.model[i]].hf_id.split("/")[0] or str(i) for i in best]
    _, one_each = np.unique(publishers, return_index=True)
    best = best[np.sort(one_each)][:SHOWN] if not request.models else best[:SHOWN]
    return tuple(_explained(request, stock, groups, found, int(i), target) for i in best)


def _nearest(found: Board, over: np.ndarray) -> Integers:
    """When nothing answers: whatever needs least."""
    return np.argsort(over, kind="stable")[:SHOWN]


def _explained(
    request: Request, stock: Stock, groups: Sequence[Group], found: Board, here: int, target: Target
) -> NearMiss:
    group, row = groups[found.group[here]], int(found.row[here])
    missing = max(0.0, -float(found.free_bytes[here])) if not found.fits[here] else 0.0
    rate = 1 / float(found.tpot_s[here])
    one = group.take(np.array([row]))
    if missing or not found.fits[here]:
        lacks = f"misses by {units.format_bytes(missing)}"
        fixes = _memory_fixes(request, stock, one, target, missing)
    else:
        lacks, fixes = _speed_words(request, rate, float(found.ttft_s[here]))
    return NearMiss(
        stock.models[found.model[here]], stock.schemes[found.scheme[here]], group.engine,
        group.kv_types[group.kv[row]],
        lacks, missing, rate, float(found.ttft_s[here]), tuple(fixes),
    )  # fmt: skip


def _memory_fixes(request: Request, stock: Stock, one: Group, target: Target, missing: float) -> list[str]:
    """Changes of context, cache, quantization and machine that make one candidate fit, tried by pricing
    them."""
    machine, fixes = target.machine, []
    context = _longest_context(request, stock, one, target)
    if context:
        fixes.append(f"fits at {units.format_tokens(context)} context")
    for kv in ("q8_0", "fp8", "q4_0"):
        other = _with_kv(one, kv)
        if other is not None and bool(np.all(candidates.reprice(request, stock, other, machine).fits)):
            fixes.append(f"with a {kv} cache")
            break
    smaller = _fewer_bits(request, stock, one, target)
    if smaller:
        fixes.append(f"at {smaller}")
    if not machine.host_memory_bytes and one.engine == "llama.cpp":
        fixes.append(f"with {units.format_bytes(missing)} of it in host memory (--ram SIZE), slower")
    capacity = float(np.asarray(one.price.device_bytes)[0])
    kind = "GPU memory" if machine.devices else "memory"
    fixes.append(f"on {units.format_bytes(capacity)} of {kind}")
    return fixes


def _longest_context(request: Request, stock: Stock, one: Group, target: Target) -> int:
    """The longest context, in steps of 1024, at which the candidate fits; 0 if none of use."""
    least = min(request.prompt + request.output, 2048)
    steps = np.arange(1024, request.context, 1024)
    if not len(steps):
        return 0
    many = one.take(np.zeros(len(steps), dtype=np.int64))
    fits = np.asarray(candidates.reprice(replace(request, cached=0), stock, many, target.machine, steps).fits)
    longest = int(steps[fits].max(initial=0))
    return longest if longest >= least else 0


def _with_kv(one: Group, kv: str) -> Group | None:
    from planner import engines

    if kv == one.kv_types[one.kv[0]] or kv not in getattr(engines.get(one.engine), "KV_TYPES", ()):
        return None
    return Group(
        one.machine, one.engine, one.backend, (kv,), one.pair, np.zeros_like(one.kv), one.place, one.price
    )


def _fewer_bits(request: Request, stock: Stock, one: Group, target: Target) -> str:
    """The largest smaller scheme of the same model and container that fits."""
    here = stock.schemes[stock.scheme[one.pair[0]]]
    mine = np.flatnonzero(stock.model == stock.model[one.pair[0]])
    options = [
        int(i)
        for i in mine
        if stock.schemes[stock.scheme[i]].container == here.container
        and stock.schemes[stock.scheme[i]].nominal_bits < here.nominal_bits
    ]
    if not options or request.quants:
        return ""
    many = one.take(np.zeros(len(options), dtype=np.int64))
    other = Group(
        many.machine,
        many.engine,
        many.backend,
        many.kv_types,
        np.array(options),
        many.kv,
        many.place,
        many.price,
    )
    fits = np.asarray(candidates.reprice(request, stock, other, target.machine).fits)
    fitting = [stock.schemes[stock.scheme[i]] for i, ok in zip(options, fits, strict=True) if ok]
    return max(fitting, key=lambda s: s.nominal_bits).id if fitting else ""


def _speed_words(request: Request, rate: float, ttft_s: float) -> tuple[str, list[str]]:
    if rate < request.min_tps:
        lacks = f"{units.format_rate(rate)} tok/s, below {units.format_rate(request.min_tps)}"
        return lacks, [f"accepted with --min-tps {rate * 0.95:.2g}", "a faster device"]
    lacks = (
        f"first token after {units.format_seconds(ttft_s)}, above {units.format_seconds(request.max_ttft_s)}"
    )
    return lacks, [f"accepted with --max-ttft {ttft_s * 1.05:.2g}", "a shorter --prompt", "a faster device"]
