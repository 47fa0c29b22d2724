"""A request: the question as plain values, every default filled in from the task."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner import tasks, units
from planner.errors import UsageError
from planner.flags import Flags
from planner.tasks import Task

if TYPE_CHECKING:
    from estimators.personal import Corrections

KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "fp8", "int8", "int4")
MAX_USERS, MAX_GPUS = 4096, 64
LEAST_MEMORY = 1 << 20  # bytes; less is a number that lacks its unit


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked. Sizes in bytes, lengths in tokens, times in seconds.

    The four hardware fields are still words; `planner.machines.resolve` turns them into machines. Empty
    tuples mean "anything": engines, models, quants, kv, licences.
    """

    task: Task
    vram_bytes: int | None
    ram_bytes: int | None
    gpus: tuple[tuple[int, str], ...]
    cpu: str | None
    machine_file: str | None
    context: int
    prompt: int
    cached: int
    output: int
    min_tps: float
    max_ttft_s: float
    users: int
    engines: tuple[str, ...]
    models: tuple[str, ...]
    quants: tuple[str, ...]
    kv: tuple[str, ...]
    licences: tuple[str, ...]
    max_parameters: int | None
    mine: Corrections | None = None  # what the user measured; read by the edge, see planner.calibrations

    @property
    def names_hardware(self) -> bool:
        return bool(self.vram_bytes or self.ram_bytes or self.gpus or self.cpu or self.machine_file)


def build(flags: Flags) -> Request:
    """The request that the flags describe. UsageError or UnknownName, each one sentence, when they make no
    sense."""
    from planner import engines

    task = tasks.get(flags.task or "chat")
    prompt = _tokens(flags.prompt, "--prompt", task.prompt)
    output = _tokens(flags.output, "--output", task.output)
    cached = task.cached
    context = _tokens(flags.context, "--context", max(task.context, prompt + output + cached))
    if flags.context and flags.prompt is None and flags.output is None:
        cached, prompt, output = _shrunk(context, cached, prompt, output)
    if flags.context and prompt + output > context:
        raise UsageError(
            f"--prompt {prompt} and --output {output} do not fit in --context {context}",
            f"use --context {prompt + output}",
        )
    cached = min(cached, max(0, context - prompt - output))
    return Request(
        task=task,
        vram_bytes=_memory(flags.vram, "--vram"),
        ram_bytes=_memory(flags.ram, "--ram"),
        gpus=tuple(_gpu(text) for text in flags.gpu or ()),
        cpu=flags.cpu,
        machine_file=flags.machine,
        context=context,
        prompt=prompt,
        cached=cached,
        output=output,
        min_tps=units.parse_rate(flags.min_tps, "--min-tps") if flags.min_tps is not None else task.min_tps,
        max_ttft_s=units.parse_seconds(flags.max_ttft, "--max-ttft")
        if flags.max_ttft is not None
        else task.max_ttft_s,
        users=_count(flags.users, "--users", 1, MAX_USERS),
        engines=tuple(dict.fromkeys(engines.get(name).NAME for name in flags.engine or ())),
        models=tuple(dict.fromkeys(_named(name) for name in flags.model or ())),
        quants=tuple(dict.fromkeys(flags.quant or ())),
        kv=tuple(dict.fromkeys(_kv(name) for name in flags.kv or ())),
        licences=tuple(dict.fromkeys(name.strip().lower() for name in flags.license or ())),
        max_parameters=units.parse_parameters(flags.max_size, "--max-size")
        if flags.max_size is not None
        else None,
    )


def _memory(text: str | None, flag: str) -> int | None:
    """Bytes of a flag; a number without its unit is refused, not read as bytes."""
    if text is None:
        return None
    size = units.parse_bytes(text, flag)
    if size < LEAST_MEMORY:
        likely = f"{size}G" if size <= 4096 else "8G"
        raise UsageError(
            f"{flag} `{text[:40]}` is {units.format_bytes(size)}", f"for GiB write {flag} {likely}"
        )
    return size


def _named(name: str) -> str:
    if not name.strip():
        raise UsageError("--model needs a name", "plan models lists them; a file or directory does too")
    return name


def _tokens(text: str | None, flag: str, default: int) -> int:
    return default if text is None else units.parse_tokens(text, flag)


def _shrunk(context: int, cached: int, prompt: int, output: int) -> tuple[int, int, int]:
    """A task's lengths in a context shorter than it expects: the conversation goes first, then all in
    proportion."""
    if prompt + output > context:
        share = context / (prompt + output)
        prompt, output = max(1, int(prompt * share)), max(1, int(output * share))
    return min(cached, max(0, context - prompt - output)), prompt, output


def _gpu(text: str) -> tuple[int, str]:
    """`2x3090` -> (2, "3090"); a name alone counts once."""
    match = re.fullmatch(r"\s*(?:([0-9]{1,3})\s*[xX*]\s*)?(.*\S)\s*", text, re.ASCII | re.DOTALL)
    if match is None:
        raise UsageError("--gpu needs a name", 'write it like --gpu "rtx 4060" or --gpu 2x3090')
    return _count(int(match[1] or 1), "--gpu", 1, MAX_GPUS), match[2]


def _count(value: int | None, flag: str, default: int, most: int) -> int:
    if value is None:
        return default
    if not 1 <= value <= most:
        raise UsageError(f"{flag} {value} is out of range", f"use 1 to {most}")
    return value


def _kv(name: str) -> str:
    wanted = name.strip().lower()
    if wanted not in KV_TYPES:
        from planner.errors import UnknownName

        raise UnknownName(
            f"no cache type is called `{ascii(name[:40])[1:-1]}`", f"choose one of {', '.join(KV_TYPES)}"
        )
    return wanted
