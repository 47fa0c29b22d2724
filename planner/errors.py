"""Exit codes, and the one exception that ends a command with a sentence instead of a traceback.

PlanError
 +- UsageError         2   flags or values that make no sense together
 +- NothingFits        3   a sound question whose answer is no
 +- UnknownName        4   a model, device, format, engine or task nobody has heard of
 +- EnvironmentFailed  5   files, network, missing extras
"""

from __future__ import annotations

OK, FAILED, USAGE, NOTHING_FITS, UNKNOWN, ENVIRONMENT, INTERNAL, INTERRUPTED = 0, 1, 2, 3, 4, 5, 70, 130


ELSEWHERE = "LLM_PLAN_CONFIG_DIR=DIR names another folder; --dry-run keeps nothing"


class PlanError(Exception):
    """`message` says what is wrong and why in one line; `hint` is the next command to try."""

    exit_code = FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        self.message, self.hint = message, hint
        super().__init__(message)


class UsageError(PlanError):
    """Flags or values that make no sense together."""

    exit_code = USAGE


class NothingFits(PlanError):
    """A sound question whose answer is no."""

    exit_code = NOTHING_FITS


class UnknownName(PlanError):
    """A name that nobody has heard of."""

    exit_code = UNKNOWN


class EnvironmentFailed(PlanError):
    """A file, the network or an extra that is missing."""

    exit_code = ENVIRONMENT


def translate(error: BaseException) -> PlanError | None:
    """The PlanError that says the same as an error of the fact rooms or of the system; None for a defect."""
    name = type(error).__name__
    if name in ("UnknownDevice", "AmbiguousDevice"):
        return UnknownName(str(error), "plan hw lists the devices")
    if name in ("UnknownModel", "AmbiguousModel"):
        return UnknownName(str(error), "plan models lists the models")
    if name == "UnknownScheme":
        return UnknownName(str(error), "plan show MODEL lists the quantizations of a model")
    if name == "UnsupportedModel":
        return UnknownName(str(error), "plan models lists what is known")
    if name == "CannotPrice":
        return UnknownName(
            str(error), "plan measure finds it for this machine; --machine FILE describes another"
        )
    if name == "CannotKeep":
        return EnvironmentFailed(str(error), ELSEWHERE)
    if name == "NoCompiler":
        return EnvironmentFailed(
            "the runner needs Numba, which is not installed", 'pip install "llm-plan[run]"'
        )
    if name in ("RunnerError", "ContextFull"):
        return UsageError(str(error), "plan run --help")
    if name == "BrokenFile":
        return EnvironmentFailed(str(error), "check the file, or download it again")
    if name in ("ModelError", "HardwareError") or any(
        base.__name__ in ("ModelError", "HardwareError") for base in type(error).__mro__
    ):
        return UsageError(str(error), "plan --help")
    if isinstance(error, OSError):
        where = f"`{error.filename}`: " if error.filename else ""
        return EnvironmentFailed(f"{where}{error.strerror or error}", "check the path and its permissions")
    return None
