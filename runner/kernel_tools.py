"""What every operation shares: its calling convention, its arguments, and the sharing of work between
threads.

An operation is a C function `void(args, state, thread)` of addresses. `args` are int64 slots that are fixed
when the
program is built (slot 0 is the address of a counter by which threads take the next piece of work); `state`
is shared by all
operations of a step and says how many tokens it has and where they stand.
"""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def,var-annotated"

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

from runner.target import use_kernel_cache

use_kernel_cache()

from numba import cfunc, njit  # noqa: E402
from numba.core import caching  # noqa: E402

from runner.ir import fetch_add, i64_at  # noqa: E402


def _index_key(self: Any, sig: Any, codegen: Any) -> Any:
    """What a compiled function is kept under: its code and what its closure holds. Numba's own key holds names that it
    gives to functions anew in every process, so that kernels made of other kernels were compiled at each start."""
    function = self._py_func
    return sig, codegen.magic_tuple(), (function.__code__.co_code, _said(function))


def _said(value: Any) -> Any:
    """What a closure holds, in words that are the same in every process; the folder's name stands for the sources."""
    function = getattr(value, "py_func", None) or getattr(value, "_defn", None) or value
    if isinstance(function, FunctionType):
        cells = tuple(_said(cell.cell_contents) for cell in function.__closure__ or ())
        return function.__module__, function.__qualname__, cells
    if isinstance(value, str | int | float | None):
        return repr(value)
    return caching.dumps(value)  # as Numba would


caching.FunctionCache._index_key = _index_key

# slots of `state`; tokens of a prefix see each other
TOKENS, POSITION, THREADS, FAILED, PREFIX = 0, 1, 2, 3, 4
FEW = 4  # tokens up to which unpacking a tile does not pay: rows are multiplied one by one (Zen 5, 2026)
SEVERAL = 24  # tokens up to which the same holds of float32 activations, in order (Zen 5, 2026)

OPTIONS: dict[str, Any] = {
    "cache": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
}


class Operation:
    """A function of the calling convention, compiled (or read from the cache) when its address is first
    asked for."""

    def __init__(self, function: Callable[[int, int, int], None]) -> None:
        self.function = function
        self._compiled: Any = None

    @property
    def address(self) -> int:
        if self._compiled is None:
            self._compiled = cfunc("void(intp, intp, intp)", **OPTIONS)(self.function)
        return int(self._compiled.address)


def operation(function: Callable[[int, int, int], None]) -> Operation:
    """Decorate a function of the calling convention."""
    return Operation(function)


def helper(function: Callable[..., Any]) -> Any:
    """Compile a function that operations call."""
    return njit(**OPTIONS)(function)


def reducer(function: Callable[..., Any]) -> Any:
    """Like `helper`, for functions whose maxima may be taken in any order: their numbers are never NaN."""
    return njit(**{**OPTIONS, "fastmath": True})(function)


@helper
def stays_in_order(n: int, width: int) -> bool:
    """Whether float32 activations of `n` tokens are multiplied as they lie, rather than interleaved in blocks."""
    return n <= SEVERAL and width % 32 == 0


@helper
def next_piece(args: int) -> int:
    """The number of the next piece of work, taken atomically."""
    return fetch_add(i64_at(args)[0], 1)
