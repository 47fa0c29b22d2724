"""`plan run`: load a file, stream text, say on stderr what it took."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from planner import measure, units

if TYPE_CHECKING:
    from runner.engine import Engine
    from runner.sampling import Sampling
    from runner.tokenizer import Vocabulary


@dataclass(frozen=True)
class Job:
    """What `plan run` was asked to do."""

    file: Path
    text: str
    chat: bool
    n_tokens: int
    sampling: Sampling
    beams: int
    draft: Path | None
    n_draft: int
    context: int
    threads: int
    kv: str
    quiet: bool


def run(job: Job) -> None:
    """Stream the continuation to stdout. Errors: EnvironmentFailed (no Numba), BrokenFile, UnsupportedModel,
    RunnerError."""
    measure.need_runner()
    from runner import generate, tokenizer, weights

    opened = weights.open_file(job.file)
    vocabulary = tokenizer.of_weights(opened)
    if vocabulary.note:
        print(f"note: {vocabulary.note}", file=sys.stderr)
    prompt = (
        vocabulary.chat([{"role": "user", "content": job.text}]) if job.chat else vocabulary.encode(job.text)
    )
    measure.tell_of_compiling()
    with progress("load") as advance:
        check(opened, advance)
        engine = load(opened, job, len(prompt))
    count = generate.Acceptance()
    steps = _steps(job, engine, prompt, vocabulary, count)
    times: list[float] = []

    def tokens() -> Iterator[int]:
        for step in steps:
            times.append(step.seconds)
            yield step.token

    if job.beams:
        best, score = generate.beams(engine, prompt, job.beams, job.n_tokens, vocabulary.stops)[0]
        print(vocabulary.decode(best))
        print(f"log probability per token {score:.3f}", file=sys.stderr)
        return
    for piece in tokenizer.pieces(vocabulary, tokens()):
        print(piece, end="", flush=True)
    print()
    if not job.quiet and times:
        print(meter_line(engine, len(prompt), times, count), file=sys.stderr)


def check(opened: Any, advance: Callable[[int, int], None]) -> None:
    """Refuse weights that are not finite, tensor by tensor; this also brings the file into memory."""
    from modeldb.errors import BrokenFile
    from runner.dequantize import scales_are_finite

    done = 0
    for weight in opened.tensors.values():
        if not scales_are_finite(weight.format, weight.data):
            raise BrokenFile(f"{opened.name}: tensor `{weight.name}` holds numbers that are not finite")
        done += weight.data.nbytes
        advance(done, opened.weight_bytes)


def load(opened: Any, job: Job, n_prompt: int) -> Engine:
    """The engine of an opened file, with room for the job's tokens."""
    import runner
    from runner import hyper

    trained = hyper.read(opened.metadata, opened.name).max_context or 1 << 20
    wanted = job.context or min(trained, max(512, n_prompt + job.n_tokens + job.n_draft))
    return runner.load(opened, n_context=wanted, n_threads=job.threads, cache_type=job.kv, check=False)


def _steps(job: Job, engine: Engine, prompt: list[int], vocabulary: Vocabulary, count: Any) -> Iterator[Any]:
    from runner import generate

    with progress("prompt") as advance:
        if job.draft is None:
            yield from generate.stream(engine, prompt, job.sampling, job.n_tokens, vocabulary.stops, advance)
            return
        import runner

        small = runner.load(
            job.draft, n_context=engine.n_context, n_threads=engine.n_threads, cache_type=job.kv
        )
        yield from generate.speculate(
            engine, small, prompt, job.sampling, job.n_tokens, vocabulary.stops, job.n_draft, count, advance
        )


@contextlib.contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while something lasts, on a terminal only; it is gone when all is done."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    width = 30

    def advance(done: int, total: int) -> None:
        share = done / max(total, 1)
        filled = round(width * share)
        line = f"\r{what} [{'#' * filled}{' ' * (width - filled)}] {share:4.0%}"
        print(line if done < total else f"\r{' ' * len(line)}\r", end="", file=sys.stderr, flush=True)

    yield advance


def meter_line(engine: Engine, n_prompt: int, times: list[float], count: Any) -> str:
    """`ttft 0.41 s (312 tok/s), 23.1 tok/s, 21.4 GB/s, 1.1 GiB`."""
    meter = engine.meter
    words = [
        f"ttft {units.format_seconds(times[0])} ({n_prompt} tokens, {units.format_rate(n_prompt / times[0])}/s)"
    ]
    if len(times) > 1:
        tpot = float(np.median(times[1:]))
        words.append(f"{units.format_rate(1 / tpot)} tok/s")
        if not count.steps:
            words.append(f"{meter.token_weight_bytes / tpot / 1e9:.1f} GB/s of weights")
    if count.steps:
        words.append(f"{count.rate:.0%} of {count.proposed} drafted tokens accepted")
    words.append(
        f"{units.format_bytes(meter.allocated_bytes)} held ({units.format_bytes(meter.cache_bytes)} cache)"
    )
    return ", ".join(words)


def serve(target: str, quant: str | None, port: int, context: int, kv: str, threads: int) -> None:
    """Serve a file, or a catalogue model with synthetic weights, on 127.0.0.1 until interrupted."""
    import importlib.util

    from planner.errors import EnvironmentFailed

    if importlib.util.find_spec("fastapi") is None or importlib.util.find_spec("uvicorn") is None:
        raise EnvironmentFailed("the server needs FastAPI and uvicorn", 'pip install "llm-plan[run,web]"')
    measure.need_runner()
    _free(port)
    from runner import server

    service = service_of(target, quant, context, kv, threads)
    print(f"{service.name} on http://127.0.0.1:{port}/v1", file=sys.stderr)
    try:
        server.serve(service, port)
    except SystemExit:  # uvicorn's way to say that it cannot
        raise EnvironmentFailed("the server stopped: see what it says above", "another --port") from None


def _free(port: int) -> None:
    """Raises EnvironmentFailed where another process listens on the port: before the model is loaded, not after."""
    import socket

    from planner.errors import EnvironmentFailed

    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", port))
        except OSError as error:
            raise EnvironmentFailed(
                f"port {port}: {error.strerror or error}", "another one: --port 8081"
            ) from None


def service_of(target: str, quant: str | None, context: int, kv: str, threads: int) -> Any:
    """The engine, loaded, with its vocabulary (numbers where there is none)."""
    import runner
    from modeldb.errors import UnsupportedModel
    from planner import verify
    from runner import server, synthetic, tokenizer, weights

    asked = verify.question(target, quant)
    if asked.file:
        held = weights.open_file(asked.file)
        try:
            vocabulary: Any = tokenizer.of_weights(held)
        except UnsupportedModel as error:
            print(f"note: {error}; words are token numbers", file=sys.stderr)
            vocabulary = None
    else:
        held, vocabulary = synthetic.weights(asked.model, asked.scheme), None
        print("note: synthetic weights: the output is noise, words are token numbers", file=sys.stderr)
    measure.tell_of_compiling()
    engine = runner.load(
        held, n_context=context, n_threads=threads, cache_type=kv, check=asked.file is not None
    )
    engine.prefill([0, 0, 0])  # compiles before the first request
    name = asked.file.name if asked.file else f"{asked.model.id}-{asked.scheme.id}"
    return server.Service(engine, vocabulary or tokenizer.Numbered(engine.vocab_size), name)
