"""The cells of an answer as words, shared by every report that a person reads."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from planner import units

if TYPE_CHECKING:
    from planner.answer import Answer, Row
    from planner.engines.command import Command

HEADERS = (
    "#",
    "model",
    "quant",
    "engine",
    "kv",
    "context",
    "memory",
    "of",
    "tok/s",
    "first token",
    "quality",
    "why",
)


def name(row: Row) -> str:
    """The model as its publisher writes it, without the publisher."""
    return (row.model.hf_id or row.model.name or row.model.id).rsplit("/", 1)[-1]


def cells(found: Answer, rank: int, row: Row) -> tuple[str, ...]:
    """One cell per header."""
    return (
        str(rank),
        name(row),
        scheme(row),
        row.engine,
        row.kv_type,
        units.format_tokens(found.request.context),
        units.format_bytes(row.device_bytes),
        units.format_bytes(row.capacity_bytes),
        speed(row),
        first_token(row),
        quality(row),
        "; ".join(row.reasons),
    )


def scheme(row: Row) -> str:
    """The name a person knows the quantization by."""
    return row.scheme.label or row.scheme.id


def speed(row: Row) -> str:
    """`28 (24-31)`: tokens per second of one user, with the 90% interval."""
    rate = row.tokens_per_s
    return f"{units.format_rate(rate.best)} ({units.format_range(rate.low, rate.high)})"


def first_token(row: Row) -> str:
    """Time to the first token, with its unit."""
    return units.format_seconds(row.ttft_s.best)


def quality(row: Row) -> str:
    """`68 (55-79)`; a tilde where no score of the model is published."""
    q = row.quality
    return f"{'~' if q.origin == 'assumed' else ''}{q.best:.0f} ({q.low:.0f}-{q.high:.0f})"


def title(found: Answer) -> str:
    """What was asked, on one line."""
    r = found.request
    users = f", {r.users} users" if r.users > 1 else ""
    return (
        f"{found.target.label}: {r.task.name}, {units.format_tokens(r.context)} context, "
        f"{r.prompt} tokens in, {r.output} out{users}"
    )


def command_line(found: Answer, row: Row) -> str:
    """The exact command of a row."""
    return _command(found, row).line()


def command_lines(found: Answer, row: Row) -> list[str]:
    """The commands that make the weights, where no repository has them, and the one that runs them."""
    command = _command(found, row)
    return [*(shlex.join(words) for words in command.prepare), command.line()]


def _command(found: Answer, row: Row) -> Command:
    from planner import answer, engines

    deployment = answer.deployment(found.request, row, found.target.machine)
    made: Command = engines.get(row.engine).command(deployment)
    return made


def aligned(table: Sequence[Sequence[str]], person: bool) -> str:
    """Lines of a table whose first row is its head: padded for a person, tab-separated for a pipe."""
    if not person:
        return "\n".join("\t".join(row) for row in table)
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table
    )
