"""Which candidates to show: those that hold the limits, one per base model, on the Pareto front, ordered
for the task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from estimators import quality
from planner.candidates import Group
from planner.request import Request
from planner.stock import Stock

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

#: A row leaves the list when another is better by QUALITY_STEP (log-odds) and neither slower nor larger by
#: more than these.
QUALITY_STEP, TURN_STEP, HEADROOM_STEP = 0.15, 1.1, 0.05
#: A publisher's models within this factor of size compete, unless one is so much faster.
SAME_SIZE, FASTER = 1.7, 1.6
RISK = 1.0  # models are ranked by the low end of their quality: so many deviations below the best estimate
#: Log-odds by which a quantized cache must earn its place: its harm is hardly measured.
LOSSY_CACHE_COST = 0.05
EXACT_CACHES = frozenset({"f32", "f16", "bf16"})
HOST_TIGHT_SHARE = 0.85  # of the host's memory; an operating system and a browser take 4 GiB of 32
TIGHT_SHARE, TIGHT_COST = 0.02, 0.15  # less of the capacity left is tight, and costs so many log-odds


@dataclass(frozen=True)
class Board:
    """All candidates of all groups side by side, with what the choice needs. One entry per candidate.

    `quality`, `quality_low` in log-odds; `turn_s` first token plus all output of one user; `utility` orders.
    """

    group: Integers
    row: Integers
    model: Integers
    scheme: Integers
    quality: Floats
    quality_low: Floats
    quality_high: Floats
    n_scores: Floats
    ttft_s: Floats
    tpot_s: Floats
    turn_s: Floats
    device_bytes: Floats
    free_bytes: Floats
    fits: Booleans
    fast: Booleans
    utility: Floats
    tight: Booleans

    def __len__(self) -> int:
        return len(self.row)

    @property
    def answers(self) -> Booleans:
        return self.fits & self.fast


def board(request: Request, stock: Stock, groups: Sequence[Group]) -> Board:
    """The groups' candidates with their quality and their place in the order."""
    mean, deviation, n_scores = _abilities(request, stock)
    low_loss, loss, high_loss = _losses(stock, groups)
    pair = np.concatenate([g.pair for g in groups])
    model = stock.model[pair]
    ttft = np.concatenate([np.asarray(g.price.ttft_s, dtype=float) for g in groups])
    tpot = np.concatenate([np.asarray(g.price.tpot_s, dtype=float) for g in groups])
    used = np.concatenate([np.asarray(g.price.device_bytes, dtype=float) for g in groups])
    free = np.concatenate([np.asarray(g.price.free_bytes, dtype=float) for g in groups])
    best = mean[model] - loss
    low = best - np.hypot(quality.Z90 * deviation[model], high_loss - loss)
    cautious = best - RISK * np.hypot(deviation[model], (high_loss - loss) / quality.Z90)
    high = best + np.hypot(quality.Z90 * deviation[model], loss - low_loss)
    turn = ttft + tpot * request.output
    task = request.task
    tight = (free < TIGHT_SHARE * (used + free)) | np.concatenate([_host_tight(g) for g in groups])
    lossy = np.concatenate([np.array([kv not in EXACT_CACHES for kv in g.kv_types])[g.kv] for g in groups])
    slow = task.slowness * np.log2(1 + turn / task.good_turn_s)
    rate = 1 / np.maximum(tpot, 1e-12)
    return Board(
        np.concatenate([np.full(len(g), i) for i, g in enumerate(groups)]),
        np.concatenate([np.arange(len(g)) for g in groups]),
        model,
        stock.scheme[pair],
        best,
        low,
        high,
        n_scores[model],
        ttft,
        tpot,
        turn,
        used,
        free,
        np.concatenate([np.asarray(g.price.fits, dtype=bool) for g in groups]),
        (rate >= request.min_tps) & (ttft <= request.max_ttft_s),
        cautious - slow - TIGHT_COST * tight - LOSSY_CACHE_COST * lossy,
        tight,
    )


def _host_tight(group: Group) -> Booleans:
    """True where the host would hold so much that the system and its programs are pressed out."""
    limit = HOST_TIGHT_SHARE * (group.machine.host_memory_bytes or 0)
    held = np.asarray(group.price.host_bytes, dtype=float)
    return (held > limit) & bool(limit)


def _abilities(request: Request, stock: Stock) -> tuple[Floats, Floats, Floats]:
    """Mean, deviation and number of scores per model of the stock."""
    first = {int(m): i for i, m in reversed(list(enumerate(stock.model.tolist())))}
    total = np.asarray(stock.walk.total_params)
    active = np.asarray(stock.walk.active_params)
    names = [m.base if m.file_tensors else m.id for m in stock.models]
    models = [
        (name, float(total[first[i]]), float(active[first[i]])) if i in first else (name, 1e9, 1e9)
        for i, name in enumerate(names)
    ]
    return quality.ability(models, dict(request.task.quality))


def _losses(stock: Stock, groups: Sequence[Group]) -> tuple[Floats, Floats, Floats]:
    """(low, best, high) log-odds lost by each candidate's scheme and cache; none in the format a model
    came in."""
    native = np.array([native_family(m.native_dtype) for m in stock.models])
    family = np.array([s.family for s in stock.schemes])
    parts = []
    for group in groups:
        scheme, model = stock.scheme[group.pair], stock.model[group.pair]
        ids = [stock.schemes[i].id for i in range(len(stock.schemes))]
        kinds = list(group.kv_types)
        walked = np.asarray(stock.walk.total_params)[group.pair]
        exact = quality.loss(ids, ["f16"] * len(ids), np.full(len(ids), quality.REFERENCE_PARAMETERS))
        cache = quality.loss(["F16"] * len(kinds), kinds, np.full(len(kinds), quality.REFERENCE_PARAMETERS))
        size = (quality.REFERENCE_PARAMETERS / np.maximum(walked, 1e7)) ** quality.SIZE_EXPONENT
        kept = native[model] != family[scheme]
        parts.append([size * (e[scheme] * kept + c[group.kv]) for e, c in zip(exact, cache, strict=True)])
    low, best, high = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return low, best, high


def native_family(dtype: str) -> str:
    """The family of schemes that stores a model as its publisher does."""
    from modeldb.errors import UnknownScheme
    from modeldb.schemes import get

    try:
        return get(dtype).family
    except UnknownScheme:
        return dtype


def choose(found: Board, stock: Stock) -> list[int]:
    """Positions on the board, best first: one candidate per base model, one model per publisher and size, and
    of those the front over quality, speed and headroom."""
    usable = np.flatnonzero(found.answers)
    if not len(usable):
        return []
    order = usable[np.lexsort((found.row[usable], found.group[usable], -found.utility[usable]))]
    bases = _bases(stock)[found.model[order]]
    _, first = np.unique(bases, return_index=True)
    return front(found, _apart(stock, found, order[np.sort(first)]))


def nearest(found: Board) -> int:
    """The best answer, or else the best that fits, or else the one that needs least memory."""
    for allowed in (found.answers, found.fits):
        rows = np.flatnonzero(allowed)
        if len(rows):
            return int(rows[np.argmax(found.utility[rows])])
    return int(np.argmax(found.free_bytes))


def _apart(stock: Stock, found: Board, ordered: Integers) -> list[int]:
    """`ordered` without a publisher's further models of about the same size and speed."""
    size = {
        m: float(s) for m, s in zip(stock.model.tolist(), np.asarray(stock.walk.total_params), strict=True)
    }
    kept: dict[str, list[tuple[float, float]]] = {}
    left = []
    for here in ordered.tolist():
        model, turn = int(found.model[here]), float(found.turn_s[here])
        others = kept.setdefault(stock.models[model].hf_id.split("/")[0] or stock.models[model].id, [])
        if not any(
            max(size[model] / s, s / size[model]) <= SAME_SIZE and turn * FASTER > t for s, t in others
        ):
            others.append((size[model], turn))
            left.append(here)
    return left


def front(found: Board, ordered: list[int]) -> list[int]:
    """Those of `ordered` that no other of them beats: clearly better, about as fast, about as much room."""
    here = np.array(ordered, dtype=np.int64)
    capacity = np.maximum(found.device_bytes + found.free_bytes, 1.0)[here]
    good, turn, free = found.quality_low[here], found.turn_s[here], found.free_bytes[here]
    better = good[:, None] >= good[None, :] + QUALITY_STEP
    as_fast = turn[:, None] <= turn[None, :] * TURN_STEP
    as_small = free[:, None] >= free[None, :] - HEADROOM_STEP * capacity[None, :]
    beaten: Booleans = np.any(better & as_fast & as_small, axis=0)
    return here[~beaten].tolist()


def _bases(stock: Stock) -> Integers:
    """A number per model that its fine-tunes and duplicates share."""
    names = [m.base or m.id for m in stock.models]
    known = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([known[name] for name in names], dtype=np.int64)
