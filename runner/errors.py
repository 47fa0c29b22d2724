"""Errors of the runner. Broken files and unsupported models use `modeldb.errors`."""


class RunnerError(RuntimeError):
    """Base of every error raised here for a request that cannot be run."""


class NoCompiler(RunnerError):
    """Numba is not installed."""

    def __init__(self) -> None:
        super().__init__("the runner compiles its kernels with Numba: pip install 'llm-plan[run]'")


class ContextFull(RunnerError):
    """More tokens than the cache was allocated for."""

    def __init__(self, wanted: int, allocated: int) -> None:
        super().__init__(f"{wanted} tokens do not fit the context of {allocated} that was allocated")
