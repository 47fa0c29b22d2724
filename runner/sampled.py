"""Sampled execution: some real layers of each kind at full width, and the head, stand for the whole model.

Layers are of one kind when their blocks and the formats of their tensors are equal. One stack holds some layers of
each kind, then the model's last layer and the head; their tensors share bytes (`runner.pool`). A step runs the stack
kind by kind and takes the time of each stretch by itself; whatever adds up over layers (bytes, FLOPs, seconds) is what
a layer of each kind has, times how many the model has, plus the rest. A step touches far more than a cache holds, as
the whole model's does. Prompts are in `runner.sampled_prompt`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from modeldb.model import Model
from modeldb.scheme import Scheme
from modeldb.sublayers import split
from runner import model_tensors
from runner.cache import TYPES
from runner.meter import Conditions, Watch
from runner.pool import Held, Pool
from runner.sampled_cache import fill_cache, layer_bytes
from runner.weights import Weights, row_bytes

if TYPE_CHECKING:
    from runner.engine import Engine
    from runner.hyper import Hyper
    from runner.program import Program

TARGET_BYTES = 320 << 20  # that a step touches in layers: several times what a cache holds
EXPERT_BYTES = 640 << 20  # of a layer's experts: of more, some stand for all
PREFILL_BYTES = 256 << 20  # of the layers that run for prompts: they are bound by arithmetic
EXPERTS_KEPT = 2  # least times those a token uses, where all would not fit
TABLES = ("token_embd.weight", "per_layer_token_embd.weight")  # looked up by token
BLOCK_NUMBERS = 32  # of a cache, that are stored together
STRIDE = 7919  # between the tokens of steps, so that they choose different experts


@dataclass(frozen=True)
class Kind:
    """Layers that are alike: their numbers, the bytes of one, and how many run (beside the model's last layer, which
    always runs) in a step and in a prompt."""

    layers: tuple[int, ...]
    n_bytes: int
    n_run: int
    n_run_prefill: int


@dataclass(frozen=True)
class Part:
    """Which layers run, and what was left out of them. The last kind has the model's last layer."""

    kinds: tuple[Kind, ...]
    n_layers: int
    n_experts: int  # 0: all, or none
    of_experts: int
    head_bytes: int

    @property
    def n_run(self) -> int:
        return 1 + sum(k.n_run for k in self.kinds)

    @property
    def share_of_experts(self) -> float:
        return self.n_experts / self.of_experts if self.n_experts else 1.0

    def times_experts(self, name: str) -> float:
        """How many times larger the whole model's tensor is, for experts that were left out of it."""
        return self.of_experts / self.n_experts if self.n_experts and _by_expert(name) else 1.0

    def chosen(self) -> list[int]:
        """Numbers of the layers in the order of the stack."""
        last = self.n_layers - 1
        found = [n for k in self.kinds for n in [n for n in k.layers if n != last][: k.n_run]]
        return [*found, last]


def part_of(model: Model, scheme: Scheme, n_context: int = 0) -> Part:
    """Choose the layers; those with a long cache need be few. Raises UnsupportedModel for a format without a kernel."""
    model = split(model)
    by_layer: dict[int, list[Held]] = {}
    outside = 0
    for name, fmt, shape in tensors_of(model, scheme):
        if name.startswith("blk."):
            number, rest = name[4:].split(".", 1)
            by_layer.setdefault(int(number), []).append((rest, fmt, shape))
        else:
            outside += _bytes(fmt, shape)
    groups: dict[Any, list[int]] = {}
    for layer in sorted(by_layer):
        key = (model.blocks[layer] if layer < len(model.blocks) else None, tuple(by_layer[layer]))
        groups.setdefault(key, []).append(layer)
    members = sorted(groups.values(), key=lambda g: g[-1])
    per_token, of_experts = _experts(model)
    kept = _kept(max((_expert_bytes(by_layer[g[0]]) for g in members), default=0), per_token, of_experts)
    sizes = [sum(_bytes(f, s) for _, f, s in by_layer[g[0]]) for g in members]
    touched = [size - _idle(by_layer[g[0]], per_token, of_experts) + layer_bytes(model, g[0], n_context)
               for g, size in zip(members, sizes, strict=True)]  # fmt: skip
    whole = max(1, sum(len(g) * t for g, t in zip(members, touched, strict=True)))
    kinds = []
    for i, (group, each, own) in enumerate(zip(members, sizes, touched, strict=True)):
        share = len(group) * own / whole
        wanted = max(1, -(-int(share * TARGET_BYTES) // own))
        n = min(wanted, len(group) - (i == len(members) - 1))
        kinds.append(Kind(tuple(group), each, n, min(n, max(1, round(share * PREFILL_BYTES / each)))))
    return Part(tuple(kinds), len(by_layer), kept, of_experts, outside)


def _kept(layer_bytes: int, per_token: int, of_experts: int) -> int:
    """How many experts of a layer that has `layer_bytes` of them stand for all; 0: all do."""
    kept, least = of_experts, EXPERTS_KEPT * per_token
    while kept > least and layer_bytes * kept > EXPERT_BYTES * of_experts:
        kept = max(least, kept // 2)
    return 0 if kept == of_experts else kept


def _expert_bytes(tensors: list[Held]) -> int:
    return sum(_bytes(f, s) for n, f, s in tensors if "_exps." in n)


def tensors_of(model: Model, scheme: Scheme) -> list[Held]:
    """The model's tensors under the scheme. Raises UnsupportedModel for a format without a kernel."""
    return [(t.name, fmt, t.shape) for t, fmt in model_tensors.held(model, scheme)]


def _bytes(fmt: str, shape: tuple[int, ...]) -> int:
    return row_bytes(fmt, shape[0]) * int(np.prod(shape[1:], dtype=np.int64))


def _experts(model: Model) -> tuple[int, int]:
    """Experts that a token chooses, and those of a layer that have weights."""
    from modeldb.layers import Experts

    found = [
        (f.per_token, f.n_experts) for b in model.blocks for f in b.feed_forwards if isinstance(f, Experts)
    ]
    return max(found, default=(0, 0))


def cache_bytes(model: Model, scheme: Scheme, n_context: int, n_filled: int, cache_type: str) -> int:
    """Of the layers that would run (see `load`), with room for `n_context` tokens."""
    row = row_bytes(TYPES[cache_type], BLOCK_NUMBERS)
    layers, model = part_of(model, scheme, n_filled or n_context).chosen(), split(model)
    return sum(layer_bytes(model, layer, n_context) for layer in layers) * row // (2 * BLOCK_NUMBERS)


def _idle(tensors: list[Held], per_token: int, of_experts: int) -> int:
    """Bytes of a layer that one token leaves alone."""
    return round(_expert_bytes(tensors) * (1 - per_token / of_experts)) if of_experts else 0


def _by_expert(name: str) -> bool:
    """Whether a tensor has a part for each expert."""
    return "_exps." in name or "exp_probs" in name or "ffn_gate_inp." in name


def _cut(name: str, shape: tuple[int, ...], part: Part) -> tuple[int, ...]:
    """The shape with fewer experts, those without weights in proportion."""
    if part.n_experts and _by_expert(name):
        return (*shape[:-1], shape[-1] * part.n_experts // part.of_experts)
    return shape


# -- the stack -----------------------------------------------------------------------------------------------


def stack(model: Model, scheme: Scheme, part: Part, seed: int = 0, whole: Weights | None = None) -> Weights:
    """Weights of the chosen layers, in their order, and of what is outside the layers: synthetic, or those of `whole`
    where it is at hand and no experts are left out."""
    from modeldb import gguf_layout, gguf_metadata
    from runner import hyper

    arch, tensors = gguf_layout.graph(model), [t for t, _ in model_tensors.held(model, scheme)]
    metadata = gguf_metadata.header(split(model), arch, tensors)
    read = hyper.read(metadata, model.id)
    chosen = part.chosen()
    place = {number: i for i, number in enumerate(chosen)}
    wanted: dict[str, Held] = {}  # by the name in the stack
    for name, fmt, shape in tensors_of(model, scheme):
        if not name.startswith("blk."):
            wanted[name] = (name, fmt, shape)
            continue
        number, rest = name[4:].split(".", 1)
        if int(number) in place:
            wanted[f"blk.{place[int(number)]}.{rest}"] = (name, fmt, _cut(rest, shape, part))
    if whole is not None and not part.n_experts:
        made = {own: replace(whole.get(n, shape), name=own) for own, (n, _, shape) in wanted.items()}
    else:
        share = _experts(model)[0] / (part.n_experts or part.of_experts or 1)
        pool = Pool("output.weight" not in wanted, share or 1.0, seed)
        made = {own: replace(pool.tensor(*held), name=own) for own, held in wanted.items()}
    lengths = (part.n_layers, metadata[f"{arch}.block_count"])  # that counts layers which draft
    held = {k: [v[n] for n in chosen] if isinstance(v, list) and k.startswith(f"{arch}.") and len(v) in lengths
            else v for k, v in metadata.items()}  # fmt: skip
    held[f"{arch}.block_count"] = len(chosen)
    held[f"{arch}.nextn_predict_layers"] = 0
    held[f"{arch}.attention.sliding_window_pattern"] = [bool(read.windows[number]) for number in chosen]
    held[f"{arch}.rope.layers"] = [read.rotates[number] for number in chosen]
    held[f"{arch}.attention.cache_layers"] = _cache_layers(read, chosen)
    held[f"{arch}.embedding_layers"] = part.n_layers
    if part.n_experts:
        held[f"{arch}.expert_count"] = part.n_experts
        held[f"{arch}.expert_zero_count"] = read.n_zero * part.n_experts // part.of_experts
    return Weights(f"{model.id} (sampled)", held, made)


def _cache_layers(h: Hyper, chosen: list[int]) -> list[int]:
    """For each layer of the stack, the one whose cache it reads: its own or, where that was another's, one of the stack
    that keeps the like."""
    place = {number: i for i, number in enumerate(chosen)}
    like = {bool(h.windows[n]): i for n, i in place.items() if h.sources[n] == n}
    return [
        place[n] if h.sources[n] == n else place.get(h.sources[n], like[bool(h.windows[n])]) for n in chosen
    ]


# -- the run -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stretch:
    """Operations of a program that are timed together, and how often the model has them (1 / n_run of its layers)."""

    rows: tuple[int, int]
    times: float
    experts: bool = False  # to run with the share of tokens that the kept experts would get


@dataclass
class Sample:
    """The stack's engine, and how its figures add up to the model's."""

    part: Part
    engine: Engine
    apart_s: float = 0.0  # what a stretch costs beside its operations

    def whole(self, of_layer: Callable[[int], float], rest: float = 0.0) -> float:
        """A figure that adds up over layers, of the whole model. `of_layer` tells that of a layer of the stack."""
        total, first = rest, 0
        for kind in self.part.kinds:
            place = first if kind.n_run else len(self.part.chosen()) - 1
            total += len(kind.layers) * of_layer(place)
            first += kind.n_run
        return total

    def stretches(self, program: Program, n_run: Callable[[Kind], int], apart: bool = False) -> list[Stretch]:
        """Before the layers, each kind's, and the last layer with the head. `apart`: experts by themselves."""
        rows = [m.row for m in program.marks]
        found, first = [Stretch((0, rows[0]), 1.0)], 0
        for i, kind in enumerate(self.part.kinds):
            n = n_run(kind)
            others = len(kind.layers) - (i == len(self.part.kinds) - 1)
            if n and others:
                each = [(rows[first + j], rows[first + j + 1]) for j in range(n)]
                stretches = [(each[0][0], each[-1][1])] if not apart else each
                found += [s for e in stretches for s in _split(program, e, others / n, apart)]
            first += kind.n_run
        return [*found, Stretch((rows[first], len(program.rows)), 1.0)]

    @property
    def n_words(self) -> int:
        """Tokens whose embeddings are at hand."""
        tables = (self.engine.weights.tensors.get(name) for name in TABLES)
        return min(table.pieces()[0].rows for table in tables if table is not None)

    @property
    def activation_bytes(self) -> int:
        """Buffers of the whole model: the stack's, with room for the experts that were left out."""
        from runner.room import make_room

        engine, part = self.engine, self.part
        if not part.n_experts:
            return engine.room.n_bytes
        sizes = [make_room(replace(engine.hyper, n_experts=n), engine.weights, engine.n_batch, engine.n_threads).n_bytes
                 for n in (part.n_experts, part.of_experts)]  # fmt: skip
        scores = 4 * engine.n_batch * (part.of_experts - part.n_experts)
        return engine.room.n_bytes + sizes[1] - sizes[0] + scores

    def timed(self, program: Program, stretches: list[Stretch], n_tokens: int, position: int) -> float:
        """Seconds of the stretches, each as often as the model has it."""
        total, crew = self.apart_s, self.engine.crew
        for stretch in stretches:
            started = time.perf_counter()
            crew.run(program, n_tokens, position, stretch.rows)
            total += stretch.times * max(0.0, time.perf_counter() - started - self.apart_s)
        return total

    def close(self) -> None:
        self.engine.close()


def _split(program: Program, rows: tuple[int, int], times: float, apart: bool) -> list[Stretch]:
    """The stretch, or what lies before, within and behind its experts."""
    names = program.names[rows[0] : rows[1]]
    if not apart or "route" not in names:
        return [Stretch(rows, times)]
    first = rows[0] + names.index("route") + 1
    end = rows[0] + len(names) - names[::-1].index("experts")
    return [
        Stretch((rows[0], first), times),
        Stretch((first, end), times, True),
        Stretch((end, rows[1]), times),
    ]


def load(model: Model, scheme: Scheme, n_context: int, n_batch: int = 512, n_threads: int = 0,
         cache_type: str = "f16", n_filled: int = 0, whole: Weights | None = None) -> Sample:  # fmt: skip
    """The stack (see `stack`) and its engine, caches filled with `n_filled` tokens (0: full)."""
    from runner import engine as engines

    part = part_of(model, scheme, n_filled or n_context)
    weights = stack(model, scheme, part, whole=whole)
    engine = engines.load(
        weights, n_context=n_context, n_batch=n_batch, n_threads=n_threads, cache_type=cache_type
    )
    fill_cache(engine, n_filled)
    sample = Sample(part, engine)
    sample.apart_s = _apart_s(sample)
    return sample


def _apart_s(sample: Sample, rounds: int = 64) -> float:
    """What a stretch costs because it runs by itself: threads wake and wait, with nothing to do. (Steps in stretches
    less steps in one piece would tell more, but their difference is lost in what other load does to either.)"""
    times = []
    for _ in range(rounds):
        before = time.perf_counter()
        sample.engine.crew.run(sample.engine._one, 1, 0, (0, 0))
        times.append(time.perf_counter() - before)
    return float(np.median(times))


@dataclass(frozen=True)
class Timing:
    """Seconds of the whole model, by extrapolation: the median of the rounds. `spread` is their interquartile range
    over it."""

    seconds: float
    n_rounds: int
    spread: float
    conditions: Conditions
    note: str = ""


def decode(sample: Sample, depth: int, seconds: float = 4.0, least: int = 3, most: int = 60) -> Timing:
    """A decode step with `depth` tokens cached before it."""
    watch, started = Watch(), time.perf_counter()
    decode_once(sample, depth, 0)
    rows: list[float] = []
    while len(rows) < least or (len(rows) < most and time.perf_counter() - started < seconds):
        rows.append(decode_once(sample, depth, len(rows) + 1))
    return timing(rows, watch.conditions())


def decode_once(sample: Sample, depth: int, number: int = 0) -> float:
    """Seconds of the whole model's step, from one step of the stack. Steps of other `number` have other tokens."""
    engine = sample.engine
    engine.room.tokens[0] = (1 + STRIDE * number) % sample.n_words
    return sample.timed(engine._one, sample.stretches(engine._one, lambda k: k.n_run), 1, depth)


def timing(rows: list[float], conditions: Conditions, note: str = "") -> Timing:
    low, middle, high = np.percentile(rows, [25, 50, 75])
    return Timing(float(middle), len(rows), float((high - low) / middle), conditions, note)
