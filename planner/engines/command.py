"""The command that runs a deployment: flags with their reasons, environment, files to write first."""

from __future__ import annotations

import shlex
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Flag:
    """An option that differs from the engine's default, or that we rely on. `value` None: a switch."""

    name: str
    value: str | None
    reason: str

    def words(self) -> list[str]:
        return [self.name] if self.value is None else [self.name, self.value]


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable, with its reason."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True, slots=True)
class Command:
    """What to type.

    `prepare` are commands that must have run once before (download, convert, quantize); `files` are
    (name, content) pairs to write beside them; `notes` say what the command cannot.
    """

    engine: str
    program: tuple[str, ...]
    flags: tuple[Flag, ...] = ()
    environment: tuple[Variable, ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    prepare: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()

    def argv(self) -> list[str]:
        """The words of the command, unquoted."""
        return [*self.program, *(word for flag in self.flags for word in flag.words())]

    def line(self) -> str:
        """One line for a POSIX shell."""
        variables = [f"{v.name}={shlex.quote(v.value)}" for v in self.environment]
        return " ".join([*variables, shlex.join(self.argv())])

    def reasons(self) -> tuple[tuple[str, str], ...]:
        """(what is set, why), in the order of the line."""
        variables = tuple((f"{v.name}={v.value}", v.reason) for v in self.environment)
        return variables + tuple((" ".join(flag.words()), flag.reason) for flag in self.flags)
