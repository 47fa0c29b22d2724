"""How numbers are stored: the ggml block types, the checkpoint formats of the other engines,
and cache types."""

from __future__ import annotations

import difflib

from modeldb.errors import UnknownScheme
from modeldb.tensor import Format

GGML = "llama.cpp 0c1e57098 ggml/src/ggml-common.h (struct sizes)"

# name: (weights per block, bytes per block)
GGML_BLOCKS: dict[str, tuple[int, int]] = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2),
    "Q1_0": (128, 18), "Q2_0": (64, 18), "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32,
    24),
    "Q8_0": (32, 34), "Q8_1": (32, 36), "Q8_K": (256, 292),
    "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210),
    "IQ1_S": (256, 50), "IQ1_M": (256, 56), "IQ2_XXS": (256, 66), "IQ2_XS": (256, 74), "IQ2_S": (256, 82),
    "IQ3_XXS": (256, 98), "IQ3_S": (256, 110), "IQ4_XS": (256, 136), "IQ4_NL": (32, 18),
    "TQ1_0": (256, 54), "TQ2_0": (256, 66), "MXFP4": (32, 17), "NVFP4": (64, 36),
    "I8": (1, 1), "I16": (1, 2), "I32": (1, 4), "I64": (1, 8), "F64": (1, 8),
}  # fmt: skip


def _packed(
    id: str, bits: int, overhead_bits: float = 0.0, source: str = "", row_bits: float = 0.0
) -> tuple[str, Format]:
    """`bits` per weight packed without padding, plus overheads. Eight weights make `bits` bytes."""
    return id, Format(id, 8, bits, overhead_bits, source, row_bits)


GPTQ = "GPTQ checkpoint layout: qweight, 16-bit scales, packed zeros per group"
AWQ = "AutoAWQ checkpoint layout: qweight, 16-bit scales, packed zeros per group"
MLX = "ml-explore/mlx-lm utils.quantize_model: 16-bit scale and bias per group"
GROUPS = (32, 64, 128)

FORMATS: dict[str, Format] = {
    **{name: Format(name, *block, source=GGML) for name, block in GGML_BLOCKS.items()},
    **dict(
        [
            *(_packed(f"gptq{b}-g{g}", b, (16 + b) / g, GPTQ) for b in (2, 3, 4, 8) for g in GROUPS),
            *(_packed(f"awq4-g{g}", 4, 20 / g, AWQ) for g in GROUPS),
            *(
                _packed(f"ct4-g{g}", 4, 16 / g, "compressed-tensors pack-quantized, symmetric")
                for g in GROUPS
            ),
            *(_packed(f"mlx{b}-g{g}", b, 32 / g, MLX) for b in (2, 3, 4, 5, 6, 8) for g in GROUPS),
            *(
                _packed(f"packed-{b}", b, 0, "codes alone; scales are tensors of their own")
                for b in (2, 3, 4, 5, 6, 8)
            ),
            _packed("fp8", 8, 0, "float8_e4m3fn, one fp32 scale per tensor (negligible)"),
            _packed("fp8-channel", 8, 0, "compressed-tensors float-quantized: fp32 scale per row", 32),
            _packed("fp8-block", 8, 32 / 16384, "DeepSeek-V3: fp32 scale per 128 x 128 block"),
            _packed("int8", 8, 0, "compressed-tensors int-quantized: fp32 scale per row", 32),
            _packed("bnb-int8", 8, 0, "bitsandbytes Linear8bitLt: int8 and fp32 absmax per row", 32),
            _packed("int4", 4, 32 / 128, "torchao int4_weight_only: 16-bit scale and zero per 128"),
            _packed("int4-channel", 4, 0, "integer cache: per-token scale left out"),
            _packed("hqq4-g64", 4, 32 / 64, "HQQ: 16-bit scale and zero per 64"),
            _packed("nf4", 4, 32 / 64, "bitsandbytes Linear4bit: fp32 absmax per 64 (QLoRA)"),
            _packed("nf4-dq", 4, 8 / 64 + 32 / 16384, "QLoRA double quantization (arXiv 2305.14314, 3)"),
            _packed("mxfp4", 4, 8 / 32, "OCP MX: E2M1, E8M0 scale per 32"),
            _packed("mxfp8", 8, 8 / 32, "OCP MX: E4M3, E8M0 scale per 32"),
            _packed("nvfp4", 4, 8 / 16, "ModelOpt NVFP4: E2M1, E4M3 scale per 16"),
        ]
    ),
}

# what a cache element may be: engine's word -> format
KV_TYPES: dict[str, str] = {
    "f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0", "q5_1": "Q5_1", "q5_0": "Q5_0",
    "q4_1": "Q4_1",
    "q4_0": "Q4_0", "iq4_nl": "IQ4_NL", "fp8": "fp8", "fp8_e4m3": "fp8", "fp8_e5m2": "fp8",
    "int8": "fp8", "int4": "int4-channel", "nvfp4": "nvfp4",
}  # fmt: skip

_BY_LOWER = {id.lower(): id for id in reversed(FORMATS)}


def get(id: str) -> Format:
    """The format of this name; exact first, then without regard to case. Raises UnknownScheme."""
    found = FORMATS.get(id) or FORMATS.get(_BY_LOWER.get(id.lower(), ""))
    if found is None:
        raise UnknownScheme(id, tuple(difflib.get_close_matches(id.lower(), _BY_LOWER, 3)))
    return found


def kv(id: str) -> Format:
    """The format of a cache type (`f16`, `q8_0`, `fp8` ...). Raises UnknownScheme."""
    if id.lower() not in KV_TYPES:
        raise UnknownScheme(id, tuple(difflib.get_close_matches(id.lower(), KV_TYPES, 3)))
    return FORMATS[KV_TYPES[id.lower()]]
