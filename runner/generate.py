"""Generation: one token after another, several beams, or a draft model that a larger one checks."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from runner.errors import RunnerError
from runner.sampling import Sampling, distribution, draw, log_softmax, pick

if TYPE_CHECKING:
    from runner.engine import Engine

Progress = Callable[[int, int], None]  # (tokens done, tokens in all)


@dataclass(frozen=True, slots=True)
class Step:
    """One generated token and the seconds since the one before (since the call, for the first)."""

    token: int
    seconds: float


def prefill(engine: Engine, tokens: list[int], progress: Progress | None = None) -> np.ndarray:
    """Append a prompt batch by batch; logits after its last token."""
    logits = None
    for first in range(0, len(tokens), engine.n_batch):
        part = tokens[first : first + engine.n_batch]
        logits = engine.prefill(part)
        if progress:
            progress(first + len(part), len(tokens))
    if logits is None:
        raise RunnerError("the prompt has no tokens")
    return logits


def stream(engine: Engine, prompt: list[int], sampling: Sampling, n_predict: int, stop: Collection[int] = (),
           progress: Progress | None = None) -> Iterator[Step]:  # fmt: skip
    """Tokens after `prompt`, until one of `stop` (not yielded), `n_predict` or the end of the context."""
    rng = np.random.default_rng(sampling.seed)
    started = time.perf_counter()
    logits, seen = prefill(engine, prompt, progress), list(prompt)
    for i in range(n_predict):
        token = pick(logits, sampling, seen, rng)
        if token in stop:
            return
        now = time.perf_counter()
        yield Step(token, now - started)
        started = now
        seen.append(token)
        if i + 1 == n_predict or engine.n_tokens >= engine.n_context:
            return
        logits = engine.decode(token)


# -- beams ---------------------------------------------------------------------------------------------------


@dataclass
class _Beam:
    tokens: list[int]
    score: float
    rows: list[tuple[np.ndarray, np.ndarray]]  # per layer: keys and values of the tokens after the prompt
    states: list[np.ndarray]  # of recurrent layers, after the last token
    logits: np.ndarray


def beams(engine: Engine, prompt: list[int], width: int, n_predict: int, stop: Collection[int] = (),
          length_power: float = 1.0) -> list[tuple[list[int], float]]:  # fmt: skip
    """The `width` likeliest continuations found, best first, with log probability / length ** `length_power`.

    All beams share the prompt's cache; each keeps its own rows after it, and its recurrent states, put back before its
    next step.
    """
    if not 1 <= width <= 64:
        raise RunnerError(f"{width} beams; use 1 to 64")
    n_predict = min(n_predict, engine.n_batch, engine.n_context - len(prompt) - engine.n_tokens)
    start = engine.n_tokens + len(prompt)
    logits = prefill(engine, prompt).copy()
    live = [_Beam([], 0.0, _rows(engine, start, start), engine.cache.copy_states(), logits)]
    done: list[tuple[list[int], float]] = []
    for _ in range(n_predict):
        found = []
        for beam in live:
            chances = log_softmax(beam.logits)
            for token in np.argsort(-chances, kind="stable")[: 2 * width]:
                found.append((beam.score + float(chances[token]), beam, int(token)))
        found.sort(key=lambda one: -one[0])
        grown: list[_Beam] = []
        for score, beam, token in found:
            if len(grown) == width:
                break
            if token in stop:
                done.append((beam.tokens, score / max(1, len(beam.tokens) + 1) ** length_power))
                continue
            grown.append(_grow(engine, beam, token, score, start))
        live = grown
        best_live = max(b.score for b in live) / max(1, len(live[0].tokens)) ** length_power
        if len(done) >= width and sorted(done, key=lambda d: -d[1])[width - 1][1] >= best_live:
            break
    done += [(b.tokens, b.score / max(1, len(b.tokens)) ** length_power) for b in live]
    done.sort(key=lambda one: -one[1])
    return done[:width]


def _grow(engine: Engine, beam: _Beam, token: int, score: float, start: int) -> _Beam:
    _put_rows(engine, beam.rows, start, start + len(beam.tokens))
    engine.cache.put_states(beam.states)
    engine.n_tokens = start + len(beam.tokens)
    logits = engine.decode(token).copy()
    rows, states = _rows(engine, start, engine.n_tokens), engine.cache.copy_states()
    return _Beam([*beam.tokens, token], score, rows, states, logits)


def _slots(n_slots: int, first: int, last: int) -> np.ndarray:
    return np.arange(first, last) % n_slots


def _rows(engine: Engine, first: int, last: int) -> list[tuple[np.ndarray, np.ndarray]]:
    out = []
    for c in engine.cache.layers:
        at = _slots(c.n_slots, first, last)
        keys = c.by_head(c.keys)[:, at]
        out.append((keys, keys if c.values is c.keys else c.by_head(c.values)[:, at]))
    return out


def _put_rows(engine: Engine, rows: list[tuple[np.ndarray, np.ndarray]], first: int, last: int) -> None:
    for c, (keys, values) in zip(engine.cache.layers, rows, strict=True):
        at = _slots(c.n_slots, first, last)
        c.by_head(c.keys)[:, at] = keys
        if c.values is not c.keys:
            c.by_head(c.values)[:, at] = values


# -- speculation ---------------------------------------------------------------------------------------------


@dataclass
class Acceptance:
    """How many drafted tokens the target model took."""

    proposed: int = 0
    accepted: int = 0
    steps: int = 0

    @property
    def rate(self) -> float:
        return self.accepted / self.proposed if self.proposed else 0.0

    @property
    def tokens_per_step(self) -> float:
        """Tokens that one step of the target model yields."""
        return (self.accepted + self.steps) / self.steps if self.steps else 0.0


def speculate(target: Engine, draft: Engine, prompt: list[int], sampling: Sampling, n_predict: int,
              stop: Collection[int] = (), n_draft: int = 4, count: Acceptance | None = None,
              progress: Progress | None = None) -> Iterator[Step]:  # fmt: skip
    """As `stream`, with `draft` proposing `n_draft` tokens that `target` checks in one step. Tokens follow
    the target's distribution exactly (rejection sampling, arXiv 2211.17192); greedy output equals `stream`'s."""
    if draft.vocab_size != target.vocab_size:
        raise RunnerError(
            f"the draft model has {draft.vocab_size} tokens, the model {target.vocab_size}: they must share"
        )
    count = count if count is not None else Acceptance()
    rng = np.random.default_rng(sampling.seed)
    started = time.perf_counter()
    seen = list(prompt)
    logits = prefill(target, prompt, progress)
    prefill(draft, prompt)
    pending = [pick(logits, sampling, seen, rng)]
    n_made = 0
    while True:
        for token in pending:
            if token in stop:
                return
            now = time.perf_counter()
            yield Step(token, now - started)
            started = now
            seen.append(token)
            n_made += 1
            if n_made == n_predict or len(seen) >= target.n_context:
                return
        room = min(n_draft, n_predict - n_made, target.n_context - len(seen), target.n_batch - 1)
        proposed, chances = _propose(draft, seen, sampling, room, rng)
        rows = target.prefill([seen[-1], *proposed], all_logits=True)
        pending = _accept(rows, proposed, chances, seen, sampling, rng)
        count.steps += 1
        count.proposed += len(proposed)
        count.accepted += len(pending) - 1
        target.rewind(len(seen) + len(pending) - 1)


def _propose(draft: Engine, seen: list[int], sampling: Sampling, n: int,
             rng: np.random.Generator) -> tuple[list[int], list[np.ndarray]]:  # fmt: skip
    """Up to `n` tokens of the draft model and the distributions they were drawn from."""
    known = min(draft.n_tokens, len(seen) - 1)
    draft.rewind(known)
    n = min(n, draft.n_context - len(seen))
    if n <= 0:
        return [], []
    logits = prefill(draft, seen[known:])
    tokens: list[int] = []
    chances: list[np.ndarray] = []
    for i in range(n):
        chance = distribution(logits, sampling, [*seen, *tokens])
        tokens.append(draw(chance, rng))
        chances.append(chance)
        if i + 1 < n:
            logits = draft.decode(tokens[-1])
    draft.rewind(len(seen))
    return tokens, chances


def _accept(rows: np.ndarray, proposed: list[int], chances: list[np.ndarray], seen: list[int],
            sampling: Sampling, rng: np.random.Generator) -> list[int]:  # fmt: skip
    """The accepted tokens and one more from the target."""
    taken: list[int] = []
    for row, token, drafted in zip(rows, proposed, chances, strict=False):
        wanted = distribution(row, sampling, [*seen, *taken])
        if rng.random() * drafted[token] < wanted[token]:
            taken.append(token)
            continue
        rest = np.maximum(wanted - drafted, 0.0)
        return [*taken, draw(rest if rest.sum() > 0 else wanted, rng)]
    return [*taken, draw(distribution(rows[len(proposed)], sampling, [*seen, *taken]), rng)]
