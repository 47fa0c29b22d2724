"""Exit codes, and the one exception that ends a command with a sentence instead of a traceback.

    PlanError
     +- UsageError         2   flags or values that make no sense together
     +- NothingFits        3   a sound question whose answer is no
     +- UnknownName        4   a model, device, format, engine or task nobody has heard of
     +- EnvironmentFailed  5   files, network, missing extras
"""

from __future__ import annotations

OK, FAILED, USAGE, NOTHING_FITS, UNKNOWN, ENVIRONMENT, INTERNAL, INTERRUPTED = 0, 1, 2, 3, 4, 5, 70, 130


class PlanError(Exception):
    """`message` says what is wrong and why in one line; `hint` is the next command to try."""

    exit_code = FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        self.message, self.hint = message, hint
        super().__init__(message)


class UsageError(PlanError):
    exit_code = USAGE


class NothingFits(PlanError):
    exit_code = NOTHING_FITS


class UnknownName(PlanError):
    exit_code = UNKNOWN


class EnvironmentFailed(PlanError):
    exit_code = ENVIRONMENT
