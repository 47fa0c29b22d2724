"""Runs of a pair of model and scheme: whole or sampled beside this machine's rates, and sampled against whole."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from verify_rates import Rates

DEPTHS = (256, 1536)
ROUNDS, TOKENS_PER_ROUND, PROMPTS = 9, 3, 4
FULL_BYTES = 5.5e9
PROMPT_S = 2.0  # for a prompt of a model that is sampled
LONG, HURRY_S = 2048, 1.0  # a prompt of four batches, sampled in a second
KNOWN = 0.006  # standard error of an agreement at which its turns end
LONG_BYTES = 1.7e9  # models that run it
OWN, AGAIN = 0.9, 4  # share of processor time that an undisturbed run gets, and how often it is tried
LEAST_TURNS, STEP_TURNS, PROMPT_TURNS, LONG_TURNS = 5, 160, 15, 7


class Agreement(NamedTuple):
    """Sampled over full minus one, its standard error, and the turns it took."""

    apart: float
    error: float
    turns: int


def pair(text: str) -> tuple[Any, Any]:
    from modeldb import catalogue, schemes

    name, scheme = text.split(":")
    return catalogue.load().resolve(name), schemes.get(scheme)


def formats_of(model: Any, scheme: Any) -> tuple[str, ...]:
    """Of its matrices, those that `plan measure` times."""
    from modeldb.schemes import assign
    from planner.measure import FORMATS

    held = {f.id for t, f in assign(scheme, model) if len(t.shape) > 1 and t.role != "draft"}
    return tuple(f for f in FORMATS if f in held) or ("Q8_0",)


def observe(text: str, threads: int) -> dict[str, Any]:
    """Times of one pair, whole or (too large) sampled, with the rates of the same minutes."""
    from runner import meter, sampled

    model, scheme = pair(text)
    part = sampled.part_of(model, scheme)
    whole = part.head_bytes + sum(len(k.layers) * k.n_bytes for k in part.kinds)
    full = whole < FULL_BYTES
    n_prompt = 512 if not full or whole < 2.5e9 else 256
    rates, watch = Rates(threads, formats_of(model, scheme)), meter.Watch()
    times = (_whole if full else _sampled)(model, scheme, n_prompt, rates)
    rates.reader.close()
    conditions = watch.conditions()
    return {
        "pair": text, "n_prompt": n_prompt, "weight_bytes": whole, "depths": DEPTHS, **times, "full": full,
        "threads": threads, "remarks": conditions.remarks(), "load": conditions.load_average, **rates.document(),
    }  # fmt: skip


def _steps(rates: Rates, step: Callable[[int, int], float]) -> tuple[list[float], list[dict[str, Any]]]:
    """(lower quartile of the seconds of a step, rates beside it) at each depth, while memory kept its mood."""
    seconds, beside = [], []
    for depth in DEPTHS:
        step(depth, 0)
        first, rounds = len(rates.reads), []
        rates.small()
        for _ in range(ROUNDS):
            rates.read()
            rounds.append([undisturbed(rates.threads, step, depth, i) for i in range(TOKENS_PER_ROUND)])
        rates.small()
        chosen = rates.alike(first)
        seconds.append(float(np.percentile([rounds[i - first] for i in chosen], 25)))
        beside.append(rates.document(chosen))
    return seconds, beside


def _whole(model: Any, scheme: Any, n_prompt: int, rates: Rates) -> dict[str, Any]:
    from runner import engine as engines
    from runner import sampled, synthetic

    engine = engines.load(synthetic.weights(model, scheme), n_context=2048, n_threads=rates.threads)
    sampled.fill_cache(engine)
    steps, beside = _steps(rates, lambda depth, i: decode_once(engine, depth, i))
    prompts = []
    prefill_once(engine, 32)
    for _ in range(PROMPTS):
        rates.product()
        prompts.append(undisturbed(rates.threads, prefill_once, engine, n_prompt))
    engine.close()
    return {"tpot": steps, "beside": beside, "ttft": float(np.percentile(prompts, 25))}


def _sampled(model: Any, scheme: Any, n_prompt: int, rates: Rates) -> dict[str, Any]:
    from runner import sampled, sampled_prompt

    sample = sampled.load(model, scheme, 2048, n_threads=rates.threads)
    steps, beside = _steps(rates, lambda depth, i: sampled.decode_once(sample, depth, i))
    prompts, note = [], ""
    for _ in range(PROMPTS):
        rates.product()
        timing = sampled_prompt.prefill(sample, n_prompt, PROMPT_S)
        prompts.append(timing.seconds)
        note = timing.note
    sample.close()
    return {"tpot": steps, "beside": beside, "ttft": float(np.percentile(prompts, 25)), "note": note}


def agreement(
    text: str, threads: int, n_prompt: int = 256, depth: int = 512, n_long: int = LONG
) -> dict[str, Agreement]:
    """Sampled against full, of a step, of a prompt and (`n_long`, 0: not) of a prompt of several batches by a share of
    rows: the whole model and the stack take turns (full, sampled, sampled, full), so that other load, and memory that
    is faster by the minute, hit both alike."""
    from runner import engine as engines
    from runner import sampled, sampled_prompt, synthetic

    model, scheme = pair(text)
    weights = synthetic.weights(model, scheme)
    n_context = max(1024, n_long)
    full = engines.load(weights, n_context=n_context, n_threads=threads)
    sampled.fill_cache(full)
    # the same arrays: equal weights elsewhere in memory differ by 2 to 3% by themselves
    sample = sampled.load(model, scheme, n_context, n_threads=threads, whole=weights)
    pairs: dict[str, tuple[int, Callable[[int], float], Callable[[int], float]]] = {
        "step": (STEP_TURNS, lambda i: decode_once(full, depth, i), lambda i: sampled.decode_once(sample, depth, i)),
        "prompt": (PROMPT_TURNS, lambda _: prefill_once(full, n_prompt),
                   lambda _: sampled_prompt.prefill_once(sample, n_prompt)),
        "long": (LONG_TURNS, lambda _: prefill_once(full, n_long),
                 lambda _: sampled_prompt.prefill(sample, n_long, HURRY_S).seconds),
    }  # fmt: skip
    out = {name: turns(threads, *of) for name, of in pairs.items() if n_long or name != "long"}
    sample.close()
    full.close()
    return out


def turns(threads: int, most: int, full: Callable[[int], float], part: Callable[[int], float]) -> Agreement:
    """The median over turns of the ratio within a turn, minus one: until it is known to `KNOWN`, or `most` turns."""
    full(0), part(0)
    ratios: list[float] = []
    while len(ratios) < most and not (len(ratios) >= LEAST_TURNS and _error(ratios) < KNOWN):
        i = 1 + 2 * len(ratios)
        order = ((full, i), (part, i), (part, i + 1), (full, i + 1))
        times = [undisturbed(threads, run, number) for run, number in order]
        ratios.append((times[1] + times[2]) / (times[0] + times[3]))
    return Agreement(float(np.median(ratios)) - 1, _error(ratios), len(ratios))


def _error(ratios: list[float]) -> float:
    """Standard error of a median, from the quartiles."""
    low, high = np.percentile(ratios, [25, 75])
    return float(1.25 * (high - low) / 1.35 / math.sqrt(len(ratios)))


def undisturbed(n_threads: int, run: Callable[..., float], *arguments: Any) -> float:
    """The seconds that `run` tells; it runs again while other processes take its processors."""
    for _ in range(AGAIN):
        started, busy = time.perf_counter(), time.process_time()
        seconds = run(*arguments)
        if time.process_time() - busy > OWN * n_threads * (time.perf_counter() - started):
            break
    return seconds


def decode_once(engine: Any, depth: int, number: int = 0) -> float:
    """Seconds of a step of the whole model; steps of other `number` have other tokens."""
    from runner.sampled import STRIDE

    engine.n_tokens = depth
    started = time.perf_counter()
    engine.decode((1 + STRIDE * number) % engine.vocab_size)
    return time.perf_counter() - started


def prefill_once(engine: Any, n_tokens: int) -> float:
    engine.n_tokens = 0
    started = time.perf_counter()
    engine.prefill(np.arange(n_tokens) % 1000)
    return time.perf_counter() - started
