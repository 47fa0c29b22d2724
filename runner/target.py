"""The instruction set that kernels are generated for, and where compiled kernels are kept."""

# Numba's intrinsics and configuration are untyped.
# mypy: disable-error-code="call-arg,attr-defined,no-untyped-def,var-annotated"

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from runner.errors import NoCompiler


@dataclass(frozen=True, slots=True)
class Target:
    """What the generated code may use.

    Attributes:
        lanes: 32-bit lanes per vector in the matrix kernels (16 with AVX-512, else 8).
        dot: how 4 products of bytes are summed into 32 bits: `vnni`, `avx2` or `portable` (plain vector IR).
        byte_shuffle: how a 16-entry table is looked up: `x86`, `neon` or `portable`.
        half: whether the processor converts float16 itself.
    """

    lanes: int
    dot: str
    byte_shuffle: str
    half: bool


def _features() -> set[str]:
    """LLVM feature names of the processor that Numba compiles for (its own overrides included)."""
    import llvmlite.binding as llvm
    from numba import config

    if config.CPU_FEATURES:
        return {f[1:] for f in config.CPU_FEATURES.split(",") if f.startswith("+")}
    if config.CPU_NAME == "generic":
        return set()
    return {name for name, present in llvm.get_host_cpu_features().items() if present}


@cache
def target() -> Target:
    features = _features()
    wide = {"avx512f", "avx512bw", "avx512vl", "avx512vnni"} <= features
    narrow_vnni = {"avx512vl", "avx512vnni"} <= features
    dot = "vnni" if wide or narrow_vnni else "avx2" if "avx2" in features else "portable"
    arm = platform.machine().lower() in ("arm64", "aarch64")
    shuffle = "x86" if "avx2" in features else "neon" if arm else "portable"
    return Target(16 if wide else 8, dot, shuffle, "f16c" in features or arm)


@cache
def use_kernel_cache() -> Path:
    """Point Numba at the user's cache folder, in a subfolder named by a digest of the kernels' sources,
    because
    Numba itself only watches the file that holds the compiled function. Call before any kernel is defined."""
    try:
        from numba import config
    except ImportError as error:
        raise NoCompiler from error
    from platformdirs import user_cache_path

    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(here.glob("*.py")):
        if path.name.startswith(("kernel", "ir", "target")):
            digest.update(path.read_bytes())
    folder = user_cache_path("llm-plan") / "kernels" / digest.hexdigest()[:16]
    config.CACHE_DIR = str(folder)
    return folder


def is_compiled() -> bool:
    """Whether an earlier run left compiled kernels (of these sources) in the user's cache."""
    folder = use_kernel_cache()
    return folder.is_dir() and any(folder.rglob("*.nbc"))
