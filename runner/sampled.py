"""Sampled execution: a few real layers of each kind at full width, and the head, stand for the whole model.

Layers are of one kind when their blocks and the formats of their tensors are equal. One stack holds a layer of
each kind; for each kind another stack holds some layers more. Whatever adds up over layers (bytes, FLOPs, seconds)
is that of the first stack, plus what a layer more of each kind adds, times how many more the model has. Stacks take
turns, so that other load hits all of them alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from modeldb.model import Model
from modeldb.scheme import Scheme
from runner.dequantize import FORMATS
from runner.meter import Conditions, Watch
from runner.weights import Weight, Weights, row_bytes

if TYPE_CHECKING:
    from runner.engine import Engine

TARGET_BYTES = 256 << 20  # of the layers that a stack adds: far more than a cache holds
BUDGET_BYTES = 3 << 30
PREFILL_BYTES = 256 << 20  # of the layers that a stack adds for prompts: they are bound by arithmetic
SHORTEST = 128  # tokens of a batch that stands for a longer one
EXPERTS_KEPT = 2  # times those a token uses, where all would not fit


@dataclass(frozen=True)
class Kind:
    """Layers that are alike: their numbers, the bytes of one, and how many more than one its stack has (and its
    stack for prompts)."""

    layers: tuple[int, ...]
    n_bytes: int
    n_more: int
    n_more_prefill: int


@dataclass(frozen=True)
class Part:
    """Which layers run, and what was left out of them."""

    kinds: tuple[Kind, ...]
    n_layers: int
    n_experts: int  # 0: all, or none
    head_bytes: int

    @property
    def n_run(self) -> int:
        return len(self.kinds) + sum(k.n_more for k in self.kinds)


def part_of(model: Model, scheme: Scheme, budget_bytes: int = BUDGET_BYTES) -> Part:
    """Choose the layers. Raises UnsupportedModel for a format without a kernel."""
    tensors = _tensors(model, scheme)
    by_layer: dict[int, list[tuple[str, str, tuple[int, ...]]]] = {}
    outside = 0
    for name, fmt, shape in tensors:
        if name.startswith("blk."):
            number, rest = name[4:].split(".", 1)
            by_layer.setdefault(int(number), []).append((rest, fmt, shape))
        else:
            outside += _bytes(fmt, shape)
    groups: dict[Any, list[int]] = {}
    for layer in sorted(by_layer):
        key = (model.blocks[layer] if layer < len(model.blocks) else None, tuple(by_layer[layer]))
        groups.setdefault(key, []).append(layer)
    per_token = _per_token(model)
    room = max(budget_bytes - outside, 1)
    n_experts = 0
    sizes = [sum(_bytes(f, s) for _, f, s in by_layer[g[0]]) for g in groups.values()]
    if per_token and sum(sizes) + max(sizes) > room:
        n_experts = EXPERTS_KEPT * per_token
        sizes = [sum(_bytes(f, _cut(n, s, n_experts)) for n, f, s in by_layer[g[0]]) for g in groups.values()]
    share = max(room - sum(sizes), 0) // max(1, len(sizes))
    kinds = []
    for layers, size in zip(groups.values(), sizes, strict=True):
        wanted = max(1, min(-(-TARGET_BYTES // size), max(1, share // size)))
        more = min(wanted, len(layers) - 1)
        kinds.append(Kind(tuple(layers), size, more, min(more, max(1, PREFILL_BYTES // size))))
    return Part(tuple(kinds), len(by_layer), n_experts, outside)


def _tensors(model: Model, scheme: Scheme) -> list[tuple[str, str, tuple[int, ...]]]:
    from modeldb.errors import UnsupportedModel
    from modeldb.schemes import assign

    pairs = [(t.name, f.id, t.shape) for t, f in assign(scheme, model) if t.role != "draft"]
    for name, fmt, _ in pairs:
        if fmt not in FORMATS:
            raise UnsupportedModel(
                f"{model.id} as {scheme.id}: the runner has no kernel for {fmt} (`{name}`)"
            )
    return pairs


def _bytes(fmt: str, shape: tuple[int, ...]) -> int:
    return row_bytes(fmt, shape[0]) * int(np.prod(shape[1:], dtype=np.int64))


def _per_token(model: Model) -> int:
    from modeldb.layers import Experts

    found = [f.per_token for b in model.blocks for f in b.feed_forwards if isinstance(f, Experts)]
    return max(found, default=0)


def _cut(name: str, shape: tuple[int, ...], n_experts: int) -> tuple[int, ...]:
    """The shape with fewer experts."""
    if not n_experts:
        return shape
    if "_exps." in name or name.startswith("exp_probs") or name.startswith("ffn_gate_inp."):
        return (*shape[:-1], min(shape[-1], n_experts))
    return shape


# -- stacks --------------------------------------------------------------------------------------------------


def stacks(model: Model, scheme: Scheme, part: Part, seed: int = 0) -> list[Weights]:
    """The weights of the first stack, of one stack per kind, and of one per kind for prompts. They share the
    tensors that they have in common."""
    from modeldb import gguf_layout, gguf_metadata
    from modeldb.schemes import assign
    from runner import hyper, synthetic

    arch = gguf_layout.architecture(model)
    metadata = gguf_metadata.header(model, arch, [t for t, _ in assign(scheme, model) if t.role != "draft"])
    windows = hyper.read(metadata, model.id).windows
    rng = np.random.default_rng(seed)
    tensors = _tensors(model, scheme)
    common = {n: synthetic.tensor(n, f, s, rng) for n, f, s in tensors if not n.startswith("blk.")}

    def layer(number: int) -> dict[str, Weight]:
        prefix = f"blk.{number}."
        found = [(n[len(prefix) :], f, s) for n, f, s in tensors if n.startswith(prefix)]
        return {n: synthetic.tensor(n, f, _cut(n, s, part.n_experts), rng) for n, f, s in found}

    first = [(k.layers[-1], layer(k.layers[-1])) for k in sorted(part.kinds, key=lambda k: k.layers[-1])]
    more = [[(number, layer(number)) for number in k.layers[: k.n_more]] for k in part.kinds]
    short = [m[: k.n_more_prefill] for m, k in zip(more, part.kinds, strict=True)]
    return [
        _weights(model, arch, metadata, windows, common, [*added, *first], part)
        for added in ([], *more, *short)
    ]


def _weights(model: Model, arch: str, metadata: dict[str, Any], windows: tuple[int, ...], common: dict[str, Weight],
             chosen: list[tuple[int, dict[str, Weight]]], part: Part) -> Weights:  # fmt: skip
    own = dict(metadata)
    own[f"{arch}.block_count"] = len(chosen)
    own[f"{arch}.attention.sliding_window_pattern"] = [bool(windows[number]) for number, _ in chosen]
    kv = own.get(f"{arch}.attention.head_count_kv")
    if isinstance(kv, list):
        own[f"{arch}.attention.head_count_kv"] = [kv[number] for number, _ in chosen]
    if part.n_experts:
        own[f"{arch}.expert_count"] = min(part.n_experts, own[f"{arch}.expert_count"])
    tensors = dict(common)
    for i, (_, layer) in enumerate(chosen):
        for name, weight in layer.items():
            tensors[f"blk.{i}.{name}"] = replace(weight, name=f"blk.{i}.{name}")
    return Weights(f"{model.id} (sampled)", own, tensors)


def fill_cache(engine: Engine, seed: int = 0) -> None:
    """Random keys and values in every slot, in the cache's own format."""
    from runner import synthetic

    rng = np.random.default_rng(seed)
    for c in engine.cache.layers:
        c.keys[:] = synthetic.blocks(engine.cache.key_format, c.key_width, c.n_slots, rng, 0.5)
        if c.values is not c.keys:
            c.values[:] = synthetic.blocks(engine.cache.value_format, c.value_width, c.n_slots, rng, 0.5)


# -- the run -------------------------------------------------------------------------------------------------


@dataclass
class Sample:
    """Engines of all stacks, and how their figures add up to the model's."""

    part: Part
    engines: list[Engine]  # the first stack, one per kind
    short: list[Engine]  # the first stack, one per kind: for prompts

    def whole(self, figure: Callable[[Engine], float]) -> float:
        """A figure that adds up over layers, of the whole model."""
        values = [figure(e) for e in self.engines]
        return self.add_up(values[0], [v - values[0] for v in values[1:]])

    def add_up(self, first: float, differences: list[float], prefill: bool = False) -> float:
        total = first
        for kind, difference in zip(self.part.kinds, differences, strict=True):
            more = kind.n_more_prefill if prefill else kind.n_more
            if more:
                total += (len(kind.layers) - 1) / more * difference
        return total

    @property
    def active(self) -> list[int]:
        """The stacks that are timed: a kind of one layer adds nothing."""
        return [0, *(i + 1 for i, k in enumerate(self.part.kinds) if k.n_more)]

    def close(self) -> None:
        for engine in {id(e): e for e in (*self.engines, *self.short)}.values():
            engine.close()


def load(model: Model, scheme: Scheme, n_context: int, n_batch: int = 512, n_threads: int = 0,
         cache_type: str = "f16", budget_bytes: int = BUDGET_BYTES) -> Sample:  # fmt: skip
    """Generate the stacks and their engines, caches filled."""
    from runner import engine as engines

    part = part_of(model, scheme, budget_bytes)
    made = []
    for weights in stacks(model, scheme, part):
        one = engines.load(
            weights, n_context=n_context, n_batch=n_batch, n_threads=n_threads, cache_type=cache_type
        )
        fill_cache(one)
        made.append(one)
    n = len(part.kinds)
    return Sample(part, made[: n + 1], [made[0], *made[n + 1 :]])


@dataclass(frozen=True)
class Timing:
    """Seconds of the whole model, by extrapolation. `spread` is the interquartile range of the first stack's times
    over their median."""

    seconds: float
    n_rounds: int
    spread: float
    conditions: Conditions
    note: str = ""


def decode(sample: Sample, depth: int, seconds: float = 4.0, least: int = 7, most: int = 60) -> Timing:
    """A decode step with `depth` tokens cached before it: medians over rounds in which the stacks take turns."""
    return _rounds(sample, sample.engines, lambda e: _decode_once(e, depth), seconds, least, most)


def _decode_once(engine: Engine, depth: int) -> float:
    engine.n_tokens = depth
    started = time.perf_counter()
    engine.decode(1)
    return time.perf_counter() - started


def prefill(sample: Sample, n_tokens: int, seconds: float = 6.0, least: int = 2, most: int = 9) -> Timing:
    """A prompt of `n_tokens`: its first and its last batch are timed (attention grows evenly between). Batches that
    would take too long are cut, and their time scaled."""
    batch = min(sample.engines[0].n_batch, n_tokens)
    tokens = np.arange(batch) % 1000
    timed = [sample.short[i] for i in sample.active]
    probe = min(SHORTEST, batch)
    _prefill_once(timed[0], tokens[: min(32, batch)], 0)  # compiles
    first = _prefill_once(timed[0], tokens[:probe], 0) * batch / probe
    ends = [0] if n_tokens <= batch else [0, n_tokens - batch]
    stacked = sum(e.meter.token_flops for e in timed) / timed[0].meter.token_flops
    expected = first * stacked * len(ends) * (least + 1)
    cut, note = batch, ""
    while expected > seconds and cut > SHORTEST:
        cut, expected = cut // 2, expected / 2
    if cut < batch:
        note = f"batches of {cut} tokens stand for {batch}"
    timings = [
        _rounds(
            sample,
            sample.short,
            partial(_prefill_once, tokens=tokens[:cut], position=p),
            seconds / len(ends),
            least,
            most,
        )
        for p in ends
    ]
    mean = sum(t.seconds for t in timings) / len(timings)
    total = mean * n_tokens / cut
    return replace(timings[-1], seconds=total, note=note)


def _prefill_once(engine: Engine, tokens: np.ndarray, position: int) -> float:
    engine.n_tokens = position
    started = time.perf_counter()
    engine.prefill(tokens)
    return time.perf_counter() - started


def _rounds(sample: Sample, among: list[Engine], once: Callable[[Engine], float], seconds: float, least: int,
            most: int) -> Timing:  # fmt: skip
    engines = [among[i] for i in sample.active]
    for engine in engines:
        once(engine)
    watch, started = Watch(), time.perf_counter()
    rows: list[list[float]] = []
    while len(rows) < least or (len(rows) < most and time.perf_counter() - started < seconds):
        rows.append([once(e) for e in engines])
    times = np.array(rows)
    extra = np.median(times[:, 1:] - times[:, :1], axis=0)
    differences = dict(zip(sample.active[1:], extra.tolist(), strict=True))
    ordered = [max(0.0, differences.get(i + 1, 0.0)) for i in range(len(sample.part.kinds))]
    low, middle, high = np.percentile(times[:, 0], [25, 50, 75])
    total = sample.add_up(float(middle), ordered, among is sample.short)
    return Timing(total, len(rows), float((high - low) / middle), watch.conditions())
