"""One module per engine: what it refuses, and the exact command for a deployment."""

from __future__ import annotations

from types import ModuleType

from planner.engines import ktransformers, llamacpp, lmdeploy, mlx, ollama, sglang, tgi, trtllm, vllm
from planner.errors import UnknownName

ENGINES: tuple[ModuleType, ...] = (llamacpp, ollama, vllm, sglang, trtllm, tgi, lmdeploy, ktransformers, mlx)
ALIASES = {
    "llamacpp": "llama.cpp",
    "llama-cpp": "llama.cpp",
    "llama-server": "llama.cpp",
    "gguf": "llama.cpp",
    "trtllm": "trt-llm",
    "tensorrt-llm": "trt-llm",
    "trtllm-serve": "trt-llm",
    "mlx-lm": "mlx",
    "mlx_lm": "mlx",
    "text-generation-inference": "tgi",
}


def names() -> tuple[str, ...]:
    """The engines' names, in the order of preference of this list."""
    return tuple(module.NAME for module in ENGINES)


def get(name: str) -> ModuleType:
    """The module of the engine called `name`; UnknownName lists those there are."""
    wanted = ALIASES.get(name.strip().lower(), name.strip().lower())
    for module in ENGINES:
        if wanted == module.NAME:
            return module
    raise UnknownName(f"no engine is called `{name}`", f"choose one of {', '.join(names())}")
