"""`plan measure`, `plan run`, `plan verify`, `plan serve`: what executes on this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from planner import completion
from planner.errors import FAILED, OK, UnknownName, UsageError


def _threads(n: int) -> int:
    import os

    most = os.cpu_count() or 1
    if n > most:
        raise UsageError(f"--threads {n}: this machine runs {most} at a time", f"--threads {most}")
    return n


Threads = Annotated[
    int,
    typer.Option(
        "--threads", help="threads (default: physical cores)", metavar="N", min=0, callback=_threads,
        show_default=False,
    ),
]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="as JSON, in base SI units")]
Context = Annotated[str | None, typer.Option("--context", "-c", help="tokens to hold", metavar="TOKENS")]
KV_TYPES = ("f16", "q8_0", "q4_0", "bf16", "f32")  # the last two with --device


def _kv(name: str) -> str:
    if name not in KV_TYPES:
        raise UnknownName(f"no cache type is called `{name[:20]}`", f"choose one of {', '.join(KV_TYPES)}")
    return name


Kv = Annotated[
    str,
    typer.Option(
        "--kv", help="KV cache: f16 (default), q8_0 or q4_0", metavar="TYPE", callback=_kv, show_default=False
    ),
]

Gpu = Annotated[
    str | None, typer.Option("--device", help="a GPU, through PyTorch: cuda, cuda:1, mps", metavar="DEVICE")
]


def measure(
    threads: Threads = 0,
    device: Gpu = None,
    forget: Annotated[bool, typer.Option("--forget", help="remove what was measured")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="measure, keep nothing")] = False,
    json_: Json = False,
) -> None:
    """Measure this processor's bandwidth and arithmetic; plan uses them from then on."""
    from planner import measure as measures

    if device is not None:
        return _measure_gpu(device, forget, dry_run, json_)
    if forget:
        removed = measures.forget()
        print("forgotten" if removed else "nothing was kept", file=sys.stderr)
        return
    machine = measures.this_machine()
    found = measures.survey(threads)
    for remark in found.conditions.remarks():
        print(f"warning: contaminated: {remark}; measure again when the machine is idle", file=sys.stderr)
    print(json.dumps(found.document(), sort_keys=True, indent=2), end="\n") if json_ else print(
        measures.text(found, machine.host.name if machine.host else ""), end=""
    )
    if not dry_run:
        print(f"kept in {measures.keep(found)}; plan measure --forget removes it", file=sys.stderr)


def _measure_gpu(device: str, forget: bool, dry_run: bool, json_: bool) -> None:
    from planner import measure as measures
    from planner import measure_gpu

    machine = measures.this_machine()
    if forget:
        print("forgotten" if measure_gpu.forget(machine) else "nothing was kept", file=sys.stderr)
        return
    found = measure_gpu.survey(device)
    for remark in found.conditions.remarks():
        print(f"warning: contaminated: {remark}; measure again when the GPU is idle", file=sys.stderr)
    shown = (
        json.dumps(measure_gpu.document(found), sort_keys=True, indent=2) + "\n"
        if json_
        else measure_gpu.text(found, measure_gpu.device_of(found, machine))
    )
    print(shown, end="")
    kept = None if dry_run else measure_gpu.keep(found, machine)
    if kept is not None:
        print(f"kept in {kept}; plan measure --device {device} --forget removes it", file=sys.stderr)
    elif not dry_run:
        print(
            "note: not kept: predictions are calibrated on the datasheets of known GPUs, not on measured rates",
            file=sys.stderr,
        )


def run(
    file: Annotated[Path, typer.Argument(help="a GGUF file", metavar="FILE")],
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", help="the text to go on from; `-` reads it", metavar="TEXT"),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="the prompt is a message, by the model's template")
    ] = False,
    n: Annotated[
        int, typer.Option("--tokens", "-n", help="most tokens to generate", metavar="N", min=1)
    ] = 256,
    temperature: Annotated[float, typer.Option("--temperature", help="0 is greedy", metavar="T")] = 0.8,
    top_k: Annotated[
        int, typer.Option("--top-k", help="from so many likeliest tokens; 0 is all", metavar="N")
    ] = 40,
    top_p: Annotated[
        float, typer.Option("--top-p", help="from the likeliest tokens of this share", metavar="SHARE")
    ] = 0.95,
    min_p: Annotated[
        float, typer.Option("--min-p", help="no token below this share of the likeliest", metavar="SHARE")
    ] = 0.05,
    repeat_penalty: Annotated[
        float,
        typer.Option("--repeat-penalty", help="divides what was said of late; 1 is none", metavar="FACTOR"),
    ] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="of the sampling", metavar="N")] = 0,
    beams: Annotated[
        int,
        typer.Option(
            "--beams",
            help="beam search of this width instead",
            metavar="N",
            min=0,
            max=64,
            show_default=False,
        ),
    ] = 0,
    draft: Annotated[
        Path | None, typer.Option("--draft", help="a smaller model that proposes tokens", metavar="FILE")
    ] = None,
    n_draft: Annotated[
        int, typer.Option("--draft-tokens", help="tokens proposed at a time", metavar="N", min=1)
    ] = 4,
    context: Context = None,
    threads: Threads = 0,
    kv: Kv = "f16",
    quiet: Annotated[bool, typer.Option("--quiet", help="no meter on stderr")] = False,
) -> None:
    """Run a GGUF file on this processor; text goes to stdout as it comes."""
    from planner import run as runs
    from planner import units
    from runner.sampling import Sampling

    text = sys.stdin.read() if prompt == "-" else prompt
    if not text:
        raise UsageError("there is no prompt", 'plan run model.gguf -p "Once upon a time"')
    if beams and draft:
        raise UsageError("--beams and --draft exclude each other", "use one of them")
    runs.run(
        runs.Job(
            file, text, chat, n, Sampling(temperature, top_k, top_p, min_p, repeat_penalty, 64, seed), beams, draft,
            n_draft, units.parse_tokens(context, "--context") if context else 0, threads, kv, quiet,
        )
    )  # fmt: skip


def verify(
    target: Annotated[
        str | None,
        typer.Argument(
            help="a model's name, a GGUF file, a folder of safetensors, a config.json, or an answer (plan --json)",
            metavar="WHAT",
            autocompletion=completion.models,
        ),
    ] = None,
    quant: Annotated[
        str | None,
        typer.Option(
            "--quant", "-q", help="default Q4_K_M; bf16 where llama.cpp has no files", metavar="SCHEME"
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="some layers of each kind stand for all")] = False,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="tokens of the prompt (default 512)", metavar="TOKENS")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", help="tokens decoded (default 32; --url 64, --llama-bench 128)", metavar="TOKENS"
        ),
    ] = None,
    context: Context = None,
    kv: Kv = "f16",
    threads: Threads = 0,
    device: Gpu = None,
    url: Annotated[
        str | None, typer.Option("--url", help="measure this OpenAI-compatible server", metavar="URL")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="what the server runs", metavar="NAME")
    ] = None,
    engine: Annotated[
        str | None, typer.Option("--engine", help="the server's engine", metavar="ENGINE")
    ] = None,
    users: Annotated[int, typer.Option("--users", help="at the same time", metavar="N", min=1, max=1024)] = 1,
    requests: Annotated[
        int,
        typer.Option(
            "--requests", help="in all (default 4 per user)", metavar="N", min=0, show_default=False
        ),
    ] = 0,
    chat: Annotated[bool, typer.Option("--chat", help="ask /v1/chat/completions")] = False,
    timeout: Annotated[
        str | None,
        typer.Option("--timeout", help="the server's longest silence (default 10m)", metavar="TIME"),
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", help="keep the times as llama-bench's JSON", metavar="FILE")
    ] = None,
    llama_bench: Annotated[
        Path | None,
        typer.Option("--llama-bench", help="run this llama-bench on the file", metavar="PATH"),
    ] = None,
    json_: Json = False,
) -> None:
    """Hold predictions against what the runner measures here: exit 0 all lines hold, 1 some do not. Times of a
    contaminated run (other load, swapping, throttling) are not judged: a warning, and exit 0 if all else holds."""
    from planner import units
    from planner import verify as verifies

    n_prompt = units.parse_tokens(prompt, "--prompt") if prompt else verifies.PROMPT
    if url is not None:
        from planner import verify_url

        n_output = units.parse_tokens(output, "--output") if output else 64
        patience = units.parse_seconds(timeout, "--timeout") if timeout else verify_url.TIMEOUT_S
        load = verify_url.Load(
            url, model or "", users, requests or 4 * users, n_prompt, n_output, chat=chat, timeout_s=patience
        )
        outcome = verify_url.run(load)
        return _report(verify_url.verification(outcome, model or "", quant, engine, threads), json_)
    if llama_bench is not None:
        from planner import verify_bench

        if target is None:
            raise UsageError("--llama-bench needs a GGUF file", "plan verify model.gguf --llama-bench PATH")
        n_output = units.parse_tokens(output, "--output") if output else 128
        return _report(
            verify_bench.verification(llama_bench, Path(target), n_prompt, n_output, threads), json_
        )
    if target is None:
        raise UsageError("there is nothing to verify", "plan verify qwen3-8b --quick")
    lengths = {
        "n_prompt": n_prompt,
        "n_decode": units.parse_tokens(output, "--output") if output else verifies.DECODE,
        "context": units.parse_tokens(context, "--context") if context else 0,
    }
    with _servers_named(target):
        asked = verifies.question(target, quant, kv=kv, threads=threads, quick=quick, **lengths)
        if device is not None:
            from planner import verify_gpu

            return _report(verify_gpu.verify(asked, device), json_)
        found = verifies.verify(asked)
    if save is not None:
        save.write_text(json.dumps(found.tests, indent=2) + "\n", encoding="utf-8")
    _report(found, json_)


@contextmanager
def _servers_named(model: str) -> Iterator[None]:
    """What the runner does not execute, a server may: the refusal says how to hold that one to account."""
    from modeldb.errors import UnsupportedModel

    try:
        yield
    except UnsupportedModel as error:
        hint = (
            f"an engine that serves it can be checked: plan verify --url http://127.0.0.1:8000/v1 -m {model}"
        )
        raise UnknownName(str(error), hint) from None


def _report(found: object, json_: bool) -> None:
    from planner import verification as verifies

    assert isinstance(found, verifies.Verification)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    for remark in found.remarks:
        print(f"warning: contaminated: {remark}", file=sys.stderr)
    print(
        json.dumps(verifies.document(found), indent=2, sort_keys=True) + "\n"
        if json_
        else verifies.text(found),
        end="",
    )
    raise typer.Exit(FAILED if found.verdict == "fails" else OK)


def serve(
    target: Annotated[
        str, typer.Argument(help="a GGUF file, or a model (synthetic weights)", metavar="WHAT")
    ],
    quant: Annotated[
        str | None, typer.Option("--quant", "-q", help="of synthetic weights", metavar="SCHEME")
    ] = None,
    port: Annotated[int, typer.Option("--port", help="on 127.0.0.1", metavar="N", min=1, max=65535)] = 8080,
    context: Context = None,
    kv: Kv = "f16",
    threads: Threads = 0,
) -> None:
    """Serve /v1/completions and /v1/chat/completions on this machine's loopback."""
    from planner import run as runs
    from planner import units

    runs.serve(
        target, quant, port, units.parse_tokens(context, "--context") if context else 4096, kv, threads
    )
