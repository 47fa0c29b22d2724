"""A Llama-style engine over quantized weights: `load` a GGUF file or synthetic weights, `prefill`, `decode`, `meter`.

Nothing heavy is imported until `load` is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runner.engine import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from runner.engine import load

        return load
    raise AttributeError(f"module 'runner' has no attribute {name!r}")
