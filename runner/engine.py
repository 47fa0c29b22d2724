"""The engine: one model, loaded, with its cache and its meter."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from modeldb.errors import BrokenFile
from runner import hyper as hypers
from runner.cache import KvCache, allocate
from runner.errors import ContextFull
from runner.hyper import Hyper
from runner.weights import Weights


@dataclass
class Meter:
    """What the engine counted: seconds and tokens per phase, allocated bytes, weight bytes and FLOPs of one
    token."""

    load_s: float = 0.0
    compile_s: float = 0.0
    prefill_s: list[float] = field(default_factory=list)
    prefill_tokens: list[int] = field(default_factory=list)
    decode_s: list[float] = field(default_factory=list)
    weight_bytes: int = 0
    n_params: int = 0
    cache_bytes: int = 0
    activation_bytes: int = 0
    token_weight_bytes: int = 0
    token_flops: float = 0.0

    @property
    def allocated_bytes(self) -> int:
        return self.weight_bytes + self.cache_bytes + self.activation_bytes


class Engine:
    """Runs one sequence of a model. `prefill` and `decode` return float32 logits, valid until the next
    call."""

    def __init__(self, weights: Weights, n_context: int = 0, n_batch: int = 512, n_threads: int = 0,
                 cache_type: str = "f16", value_cache_type: str = "") -> None:  # fmt: skip
        from runner import forward, room
        from runner.program import Crew

        self.weights = weights
        self.hyper: Hyper = hypers.fitted(hypers.read(weights.metadata, weights.name), weights.tensors)
        room.check(self.hyper, weights)
        self.n_context = n_context or min(self.hyper.max_context or 4096, 4096)
        # a prompt whose tokens see each other runs in one piece
        self.n_batch = max(2, min(self.n_context if self.hyper.style.prefixed else n_batch, self.n_context))
        self.n_threads = n_threads or physical_cores()
        self.cache: KvCache = allocate(
            self.hyper, self.n_context, self.n_batch, cache_type, value_cache_type or cache_type
        )
        started = time.perf_counter()
        self.room = room.make_room(self.hyper, weights, self.n_batch, self.n_threads)
        self._one, self._logits, touched, flops = forward.build(
            self.hyper, weights, self.cache, self.room, "one"
        )
        self._last = self._all = None
        self.crew = Crew(self.n_threads, self.hyper.style.prefixed)
        self.n_tokens = 0
        self._seen = np.zeros(self.n_context, np.int64)
        self._kept: tuple[int, list[np.ndarray]] = (0, [])  # tokens before the last prompt, and their states
        self.n_words = weights.get("token_embd.weight").rows
        self.vocab_size = weights.head(self.hyper.style.spare_words).rows
        self.meter = Meter(
            compile_s=time.perf_counter() - started,
            weight_bytes=weights.weight_bytes,
            n_params=weights.n_params,
            cache_bytes=self.cache.allocated_bytes,
            activation_bytes=self.room.n_bytes,
            token_weight_bytes=touched,
            token_flops=flops,
        )

    def prefill(self, tokens: list[int] | np.ndarray, all_logits: bool = False) -> np.ndarray:
        """Append tokens; logits after the last of them, or [token][vocab] of each where `all_logits`."""
        ids = self._checked(tokens)
        started, start = time.perf_counter(), self.n_tokens
        if start and self.cache.forgets:
            self._kept = (start, self.cache.copy_states())
        rows = []
        for first in range(0, len(ids), self.n_batch):
            part = ids[first : first + self.n_batch]
            if len(part) == 1:
                logits = self._step(self._one, self._logits, part)
                rows.append(logits.reshape(1, -1).copy() if all_logits else logits)
                continue
            if all_logits:
                program, room = self._program("all")
                logits = self._step(program, room, part)[: len(part) * self.vocab_size]
                rows.append(logits.reshape(len(part), -1).copy())
            else:
                program, room = self._program("last")
                rows.append(self._step(program, room, part))
        self.meter.prefill_s.append(time.perf_counter() - started)
        self.meter.prefill_tokens.append(self.n_tokens - start)
        return np.concatenate(rows) if all_logits else rows[-1]

    def decode(self, token: int) -> np.ndarray:
        """Append one token; logits after it."""
        ids = self._checked([token])
        started = time.perf_counter()
        logits = self._step(self._one, self._logits, ids)
        self.meter.decode_s.append(time.perf_counter() - started)
        return logits

    def rewind(self, n_tokens: int) -> None:
        """Forget all but the first `n_tokens` tokens. Windowed layers must still hold what those need; recurrent layers
        keep no past, so their states are computed again, from before the last prompt or from the first token."""
        if not 0 <= n_tokens <= self.n_tokens:
            raise ValueError(f"cannot rewind from {self.n_tokens} tokens to {n_tokens}")
        if n_tokens == self.n_tokens or not self.cache.forgets:
            self.n_tokens = n_tokens
            return
        start, states = self._kept
        if 0 < start <= n_tokens and self._sees_back_from(start):
            self.cache.put_states(states)
        else:
            self.cache.forget()
            start = 0
        self._kept = (start, states) if start else (0, [])
        self.n_tokens = start
        for first in range(start, n_tokens, self.n_batch):
            part = self._seen[first : min(first + self.n_batch, n_tokens)].copy()
            program, room = self._program("last") if len(part) > 1 else (self._one, self._logits)
            self._step(program, room, part)

    def _sees_back_from(self, position: int) -> bool:
        """Whether rings still hold what a token at `position` sees: what came later overwrote what lay far back."""
        later = self.n_tokens - position
        pairs = zip(self.cache.layers, self.hyper.windows, strict=True)
        return all(not w or c.n_slots == self.n_context or later <= c.n_slots - w for c, w in pairs)

    def close(self) -> None:
        self.crew.close()

    def _program(self, mode: str) -> tuple[Any, np.ndarray]:
        from runner import forward

        attribute = f"_{mode}"
        if getattr(self, attribute) is None:
            program, logits, _, _ = forward.build(self.hyper, self.weights, self.cache, self.room, mode)  # type: ignore[arg-type]
            setattr(self, attribute, (program, logits))
            self.meter.activation_bytes = self.room.n_bytes
        return getattr(self, attribute)

    def _step(self, program: Any, logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
        self.room.tokens[: len(ids)] = ids
        self._seen[self.n_tokens : self.n_tokens + len(ids)] = ids
        self.crew.run(program, len(ids), self.n_tokens)
        self.n_tokens += len(ids)
        return logits

    def _checked(self, tokens: list[int] | np.ndarray) -> np.ndarray:
        ids = np.asarray(tokens, np.int64).reshape(-1)
        if len(ids) == 0:
            raise ValueError("no tokens")
        if ids.min() < 0 or ids.max() >= self.n_words:
            worst = int(ids.max() if ids.max() >= self.n_words else ids.min())
            raise ValueError(f"token {worst} is outside the vocabulary of {self.n_words}")
        if self.n_tokens + len(ids) > self.n_context:
            raise ContextFull(self.n_tokens + len(ids), self.n_context)
        return ids


def physical_cores() -> int:
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def load(source: str | Path | Weights, *, n_context: int = 0, n_batch: int = 512, n_threads: int = 0,
         cache_type: str = "f16", value_cache_type: str = "", check: bool = True) -> Engine:  # fmt: skip
    """An engine for a GGUF file or for weights at hand. `check` reads every scale once and refuses broken
    ones."""
    from runner import weights as files

    started = time.perf_counter()
    weights = source if isinstance(source, Weights) else files.open_file(source)
    if check and not isinstance(source, Weights):
        files.check(weights)
    loaded = time.perf_counter() - started
    try:
        engine = Engine(weights, n_context, n_batch, n_threads, cache_type, value_cache_type)
    except (KeyError, IndexError) as error:
        raise BrokenFile(f"{weights.name}: {error}") from error
    engine.meter.load_s = loaded
    return engine
