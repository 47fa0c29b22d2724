"""Which kernels multiply a model's weights on a CPU: they differ by engine, format, instructions and build.

llama.cpp has five kinds. `dot`: one dot product of a row at a time, weights unpacked again for each token.
`tiles`: register tiles over rows of floats as they are stored (tinyBLAS); `blocks`: the same over blocks of 32
integers, each product of which is scaled as a float. `repack`: rows interleaved at load, so that what is unpacked
serves many. `slabs`: superblocks unpacked once for many tokens, into a few rows at a time. ik_llama.cpp's (`iqk`)
unpack once per block of tokens; llamafile and KTransformers have them for packed formats. `lookup`: T-MAC. `ime`:
SpacemiT's matrix extension.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

from estimators.formats import SIXTEEN_BIT

#: From which build on llama.cpp interleaves a class of formats, by what the processor must have (pull requests of
#: ggml-org/llama.cpp: x86 #10446, #12332, #14373; Arm #10446, #16739, #17494, #18096, #18860, #18888, #19356, #19360).
REPACKED: dict[str, tuple[tuple[str, float], ...]] = {
    "q4_0": (("avx2", 2024.93), ("dotprod", 2024.93)),
    "k4": (("avx2", 2025.22), ("i8mm", 2025.88), ("dotprod", 2025.93)),
    "k2": (("avx512", 2025.6),),
    "k5": (("i8mm", 2026.06), ("dotprod", 2026.12)),
    "k6": (("i8mm", 2026.06), ("dotprod", 2026.12)),
    "q8": (("dotprod", 2026.0),),
}
#: Register tiles for what is stored without superblocks, from llamafile (ggml-org/llama.cpp#6414); for BF16 since
#: #10714, for Q5_0 since #10010, on x86 only. Q5_1 has none.
TILED, TILES_YEAR = SIXTEEN_BIT | {"q8", "q4_0"}, 2024.25
LATER_TILES = {"bf16": 2024.98, "q5_0": 2024.81}
#: Superblocks unpacked for many tokens at once, on x86 (ggml-org/llama.cpp#27851, open in September 2026), where rows
#: are not interleaved.
SLABS, SLABS_YEAR = frozenset({"k2", "k3", "k4", "k5", "k6", "iq1", "iq2", "iq3", "iq4"}), 2026.75
#: The build of llama.cpp that who asks without a date has on a CPU: today's.
PRESENT_YEAR = 2026.85
#: llama.cpp's AMX kernels (ggml-org/llama.cpp#8998, part of its CPU backend since #10570); Ollama builds without
#: them (ollama/ollama#9203). Prompts of a Q4_0 model ran twice as fast with them (a comment in #8998): scales come
#: between the tiles.
AMX, AMX_YEAR, AMX_GAIN = frozenset({"q4_0", "q8", "k4", "k5", "k6"}), 2024.92, 8.0
#: Flash attention went one query at a time before (ggml-org/llama.cpp#19012, January 2026; a build without a date
#: counts as one of that year).
TILED_ATTENTION_YEAR = 2026.0
#: What it did of the products of attention that is not fused, each key loaded and widened for one of them: 75 GFLOPS
#: on the 16 cores of a Ryzen 9 9950X (ik_llama-github-data; 1.7% of their FP32 rate), where two threads of a Zen 5
#: server now do 125 (24%), fused or not (a 1B model of llama.cpp's, prompts of 512 at depths up to 3,072).
ONE_QUERY_GAIN = 0.07
#: What llama.cpp does of them for a token that is decoded, each query head going through its keys by itself: the same
#: two threads 19-36 GFLOPS with flash attention and 41-47 without, of 100-160 in prompts (heads of 64 and 128, four to
#: a key, up to 2,048 tokens); the 9950X 270 at 4,096.
DECODING_GAIN = 0.25


@cache
def kernels(engine: str, backend: str, format_class: str, isa: Collection[str], year: float) -> str:
    """`dot`, `tiles`, `blocks`, `repack`, `slabs`, `amx`, `ime`, `iqk`, `lookup`; "" where the engine is not of
    llama.cpp's lineage, or not on a CPU."""
    if backend != "cpu" or not isa:
        return ""
    if engine == "t-mac":
        return "lookup"
    if engine in ("ik_llama.cpp", "ktransformers") or (engine == "llamafile" and format_class not in TILED):
        return "iqk"
    if "spacemit_ime" in isa and format_class == "q4_0":
        return "ime"
    if engine in ("chatglm.cpp", "ctransformers"):  # ggml of 2023
        return "dot"
    if "amx_int8" in isa and engine != "ollama" and format_class in AMX and year >= AMX_YEAR:
        return "amx"
    if any(flag in isa and year >= since for flag, since in REPACKED.get(format_class, ())):
        return "repack"
    if engine == "llama.cpp" and format_class in SLABS and year >= SLABS_YEAR and "avx2" in isa:
        return "slabs"
    tiled = format_class in TILED or (format_class == "q5_0" and "avx2" in isa)
    if not tiled or year < LATER_TILES.get(format_class, TILES_YEAR):
        return "dot"
    return "tiles" if format_class in SIXTEEN_BIT else "blocks"


#: Kernels for prompts: one vector is multiplied by `dot`.
PROMPTS_ONLY = frozenset({"tiles", "blocks", "slabs"})


def integer_gain(kind: str, isa: Collection[str]) -> float:
    """Products of 8-bit integers per FP32 product of the same vectors, where these kernels use them.

    VNNI and the dot products of Arm do four a lane. Without them x86 takes three instructions for two of theirs
    (widening multiply, pairwise add), Arm two for one. `dot` unpacks for each product, which takes as long
    again; in llama.cpp it knows neither VNNI (superblocks) nor 512-bit vectors. `blocks` know 256 bits only. They and
    what is interleaved on x86 spend on signs what VNNI saves, or do without it (superblocks). `slabs` know VNNI of
    512 bits only. Vectors of RISC-V have no such product.
    """
    if any(x.startswith("rv64") for x in isa):
        return 1.0
    if "neon" in isa:
        fast = "dotprod" in isa or "i8mm" in isa
        return (2.0 if kind == "dot" else 4.0) if fast else 1.0
    if "avx2" not in isa and "avx512" not in isa:
        return 1.0
    if kind == "amx":
        return AMX_GAIN
    half = 0.5 if "avx512_wide" in isa else 1.0
    if kind == "dot":
        return 2.0 * half
    if kind in ("blocks", "repack"):
        return 8.0 / 3.0 * (half if kind == "blocks" else 1.0)
    if "avx512_vnni" in isa or ("avx_vnni" in isa and kind not in ("iqk", "slabs")):
        return 4.0
    return 8.0 / 3.0


def attention_gain(engine: str, year: float, flash: bool) -> float:
    """Products of attention that its kernels can do for a prompt per FP32 product: two of 16 bits in
    ik_llama.cpp's; `ONE_QUERY_GAIN` in llama.cpp's flash attention while it met one query at a time."""
    if engine == "ik_llama.cpp":
        return 2.0 if flash else 1.0
    return ONE_QUERY_GAIN if flash and engine != "llamafile" and year < TILED_ATTENTION_YEAR else 1.0


def decoding_share(engine: str, lineage: str, backend: str, year: float, flash: bool) -> float:
    """What attention of one decoded token does of the products that attention of a prompt does (`DECODING_GAIN`);
    ik_llama.cpp multiplies all queries that share a key at once."""
    if backend != "cpu" or lineage != "ggml" or engine == "ik_llama.cpp":
        return 1.0
    return DECODING_GAIN / attention_gain(engine, year, flash)
