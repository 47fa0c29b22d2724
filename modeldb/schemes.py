"""Every known scheme by name, and `assign`: which format each tensor of a model gets under it."""

from __future__ import annotations

import difflib
import re
from dataclasses import replace

from modeldb import formats
from modeldb.errors import UnknownScheme
from modeldb.gguf_mixes import MIXES, NEEDS_IMATRIX, kept
from modeldb.model import Model
from modeldb.scheme import Scheme
from modeldb.tensor import Format, Tensor

QUANTIZER = "llama.cpp 0c1e57098 src/llama-quant.cpp"
LINEAR_ROLES = frozenset({"attention", "linear", "dense", "experts", "shared_experts"})
NOT_LINEAR = ("conv", "ssm_a", "ssm_d", "indexer.compress_ape", "attn_compress_ape", "indexer_compressor_ape",
              "gate_inp", "altup")  # fmt: skip
EXL2_HEAD_BITS = 6  # convert.py -hb, its default


def _family(base: str) -> str:
    if base in ("F32", "F16", "BF16", "Q8_0"):
        return base.lower()
    if base.startswith("IQ"):
        return "i-quant"
    if base.startswith("TQ") or base in ("Q1_0", "Q2_0"):
        return "ternary"
    return "k-quant" if base.endswith("_K") else "legacy"


def _stock() -> dict[str, Scheme]:
    found = {}
    for name, mix in MIXES.items():
        family = "mxfp4" if name == "MXFP4_MOE" else _family(mix.base)
        bits = formats.FORMATS["MXFP4" if family == "mxfp4" else mix.base].bits_per_weight
        scheme = Scheme(name, "gguf", family, bits, name in NEEDS_IMATRIX, QUANTIZER, mix=name)
        found[name] = scheme
        if family not in ("f32", "f16", "bf16"):
            found[f"{name}+imatrix"] = replace(scheme, id=f"{name}+imatrix", imatrix=True)
    found["F16+MXFP4"] = replace(found["F16"], id="F16+MXFP4", family="mxfp4", nominal_bits=4.25)
    return found


BARTOWSKI = "bartowski's model cards: the stock mix with Q8_0 for embedding and output"
UNSLOTH = (
    "file sizes printed by llama-bench (kyuz0 and lhl toolbox results) over parameters; "
    "the rule is not public, the range is widened by hand where few files were seen"
)
IK = "ik_llama.cpp discussions: file sizes its benchmarks print over parameters, the range widened by hand"
BY_NAME = "only the base type is named and no file size is known: its stock mix, the range assumed"

# label: (nearest mix, family, bits per weight of the file: best, low, high, source)
_APPROXIMATE: dict[str, tuple[str, str, float, float, float, str]] = {
    "UD-Q3_K_S": ("Q3_K_S", "k-quant", 3.28, 3.2, 3.6, UNSLOTH),
    "UD-Q3_K_XL": ("Q3_K_M", "k-quant", 3.54, 3.4, 4.1, UNSLOTH),
    "UD-Q4_K_XL": ("Q4_K_M", "k-quant", 4.91, 4.53, 5.55, UNSLOTH),
    "UD-Q5_K_XL": ("Q5_K_M", "k-quant", 6.02, 5.6, 6.1, UNSLOTH),
    "UD-Q6_K_XL": ("Q6_K", "k-quant", 7.01, 6.6, 7.4, UNSLOTH),
    "UD-Q8_K_XL": ("Q8_0", "q8_0", 9.60, 8.83, 11.58, UNSLOTH),
    "IQ2_XS_R4": ("IQ2_XS", "i-quant", 2.73, 2.4, 3.0, IK),
    "Q2_K_M": ("Q2_K", "k-quant", 2.85, 2.70, 2.99, IK),
    "Q2_K_XL": ("Q2_K", "k-quant", 2.70, 2.6, 3.0, IK),
    "Q2_K_R4": ("Q2_K", "k-quant", 3.06, 2.7, 3.3, IK),
    "IQ3_K": ("IQ3_S", "i-quant", 3.90, 3.44, 4.14, IK),
    "IQ4_K": ("IQ4_NL", "i-quant", 4.94, 4.5, 5.59, IK),
    "IQ4_K_R4": ("IQ4_NL", "i-quant", 4.53, 4.51, 4.94, IK),
    "Q4_K_R4": ("Q4_K_M", "k-quant", 4.82, 4.6, 5.0, IK),
    "IQ5_K": ("Q5_K_M", "i-quant", 6.44, 5.5, 7.09, IK),
    "mixed-3.9bpw": ("Q3_K_L", "k-quant", 3.93, 3.9, 3.96, IK),
}
# label: (stock mix that its name states, share by which sizes may differ)
_NAMED_AFTER: dict[str, tuple[str, float]] = {
    **{f"UD-{m}": (m, 0.12) for m in ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_M", "IQ3_XXS", "Q4_K_M", "Q6_K",
    "Q2_K")},
    "UD-Q2_K_XL": ("Q2_K", 0.12), "Q4_K_XL": ("Q4_K_M", 0.12), "UD-Q4_K_XL-QAT": ("Q4_K_M", 0.12),
    "Q8_0_R8": ("Q8_0", 0.03), "IQ1_S_R4": ("IQ1_S", 0.12), "CPU-IQ3_K_R4": ("IQ3_S", 0.15),
    "IQ3_K_R4": ("IQ3_S", 0.15),
    "IQ2_K": ("IQ2_XS", 0.15), "IQ2_K_R4": ("IQ2_XS", 0.15), "IQ4_KS": ("IQ4_XS", 0.12),
    "IQ4_KS_R4": ("IQ4_XS", 0.12),
    "mix-IQ3_K": ("IQ3_S", 0.15), "mix-IQ4_K": ("IQ4_NL", 0.15), "mix-IQ6_K": ("Q6_K", 0.1),
    "IQ6_K": ("Q6_K", 0.1),
}  # fmt: skip
# bartowski's mixes: stock, with embedding and head at Q8_0
_LARGE_HEADS = {
    "Q2_K_L": "Q2_K",
    "Q3_K_XL": "Q3_K_L",
    "Q4_K_L": "Q4_K_M",
    "Q5_K_L": "Q5_K_M",
    "Q6_K_L": "Q6_K",
}


def _published() -> dict[str, Scheme]:
    """GGUF labels of other publishers."""
    found = {}
    for label, (mix, family, best, low, high, source) in _APPROXIMATE.items():
        found[label] = Scheme(label, "gguf", family, best, True, source, (low, high), mix=mix)
    for label, (mix, share) in _NAMED_AFTER.items():
        bits = formats.FORMATS[MIXES[mix].base].bits_per_weight
        span = (bits * (1 - share), bits * (1 + share))
        found[label] = Scheme(label, "gguf", _family(MIXES[mix].base), bits, True, BY_NAME, span, mix=mix)
    for label, mix in _LARGE_HEADS.items():
        bits = formats.FORMATS[MIXES[mix].base].bits_per_weight
        found[label] = Scheme(
            label, "gguf", "k-quant", bits, True, BARTOWSKI, None, "", "Q8_0", "Q8_0", mix=mix
        )
    return found


def _checkpoint(id: str, family: str, weights: str, source: str, **rule: bool | str) -> tuple[str, Scheme]:
    bits = formats.FORMATS[weights].bits_per_weight
    return id, Scheme(id, "safetensors", family, bits, source=source, weights=weights, **rule)  # type: ignore[arg-type]


def _checkpoints() -> dict[str, Scheme]:
    """Checkpoints of vLLM, SGLang, TensorRT-LLM, Transformers: embeddings, head,
    norms and routers stay 16-bit."""
    all_linear = "quantized linear layers; embeddings, head, norms, routers 16-bit"
    rows = [
        _checkpoint("bf16", "bf16", "BF16", "every tensor in bfloat16"),
        _checkpoint("fp16", "f16", "F16", "every tensor in float16"),
        _checkpoint("fp32", "f32", "F32", "every tensor in float32"),
        *(
            _checkpoint(f"gptq-{b}bit-g{g}", "gptq", f"gptq{b}-g{g}", f"{formats.GPTQ}; {all_linear}")
            for b in (2, 3, 4, 8)
            for g in formats.GROUPS
        ),
        *(
            _checkpoint(f"awq-4bit-g{g}", "awq", f"awq4-g{g}", f"{formats.AWQ}; {all_linear}")
            for g in formats.GROUPS
        ),
        _checkpoint("ct-w4a16-sym-g128", "gptq", "ct4-g128", f"compressed-tensors W4A16; {all_linear}"),
        _checkpoint(
            "ct-w4a16-sym-g32", "int4", "ct4-g32", "Kimi-K2 INT4: routed experts only", experts_only=True
        ),
        _checkpoint("fp8-per-tensor", "fp8", "fp8", f"ModelOpt or online FP8; {all_linear}"),
        _checkpoint("fp8-per-channel", "fp8", "fp8-channel", f"FP8_DYNAMIC; {all_linear}"),
        _checkpoint("fp8-block128x128", "fp8", "fp8-block", f"DeepSeek-V3 style; {all_linear}"),
        _checkpoint("int8-w8a8", "int8", "int8", f"SmoothQuant W8A8; {all_linear}"),
        _checkpoint("bnb-int8", "int8", "bnb-int8", f"LLM.int8(); {all_linear}"),
        _checkpoint("bnb-nf4", "nf4", "nf4", f"bitsandbytes; {all_linear}"),
        _checkpoint("bnb-nf4-dq", "nf4", "nf4-dq", f"bitsandbytes double quantization; {all_linear}"),
        _checkpoint("bnb-fp4", "nf4", "nf4", f"bitsandbytes fp4, laid out as nf4; {all_linear}"),
        _checkpoint("torchao-int4wo-g128", "int4", "int4", f"torchao; {all_linear}"),
        _checkpoint("hqq-4bit-g64", "int4", "hqq4-g64", f"HQQ; {all_linear}"),
        _checkpoint("mxfp4-hf", "mxfp4", "mxfp4", "gpt-oss: routed experts only", experts_only=True),
        _checkpoint(
            "mxfp4-fp8",
            "mxfp4",
            "mxfp4",
            "DeepSeek-V4: routed experts FP4, other linear layers FP8 in blocks",
            experts_only=True,
            rest="fp8-block",
        ),
        _checkpoint(
            "nvfp4-hf",
            "nvfp4",
            "nvfp4",
            f"ModelOpt; latent attention left 16-bit; {all_linear}",
            spares_latent=True,
        ),
    ]
    return dict(rows)


def _mlx() -> dict[str, Scheme]:
    """MLX quantizes embedding and head too."""
    pairs = [(f"mlx-{b}bit-g{g}", f"mlx{b}-g{g}") for b in (2, 3, 4, 5, 6, 8) for g in formats.GROUPS]
    pairs += [(f"mlx-{f}", f) for f in ("mxfp4", "nvfp4", "mxfp8")]
    return {
        id: Scheme(
            id,
            "mlx",
            "mlx",
            formats.FORMATS[f].bits_per_weight,
            source=formats.MLX,
            weights=f,
            embedding=f,
            head=f,
        )
        for id, f in pairs
    }


def _exl2(bits: float) -> Scheme:
    source = (
        "exllamav2 conversion: the target includes scales; "
        "embedding 16-bit, head 6-bit unless asked otherwise"
    )
    return Scheme(f"exl2-{bits:g}bpw", "exl", "exl2", bits, source=source)


SCHEMES: dict[str, Scheme] = {
    **_stock(),
    **_published(),
    **_checkpoints(),
    **_mlx(),
    **{s.id: s for s in (_exl2(b) for b in (2.5, 3.0, 3.5, 4.0, 4.25, 4.65, 5.0, 6.0, 8.0))},
}

# other words for the same thing
ALIASES = {
    "native-fp8": "fp8-block128x128", "fp8": "fp8-per-tensor", "int8": "int8-w8a8", "awq": "awq-4bit-g128",
    "gptq": "gptq-4bit-g128", "gptq-int4": "gptq-4bit-g128", "gptq-int8": "gptq-8bit-g128", "nf4": "bnb-nf4",
    "mxfp4": "mxfp4-hf", "nvfp4": "nvfp4-hf", "f32": "fp32", "f16": "fp16", "mlx-4bit": "mlx-4bit-g64",
    "mlx-8bit": "mlx-8bit-g64", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "Q3_K": "Q3_K_M", "FP16": "F16",
    "FP32": "F32",
}  # fmt: skip
_BY_LOWER = {id.lower(): id for id in reversed(SCHEMES)}


def get(id: str) -> Scheme:
    """The scheme of this name: exact, then an alias, then without regard to case. Raises UnknownScheme."""
    name = id.strip()
    if name in SCHEMES:
        return SCHEMES[name]
    if name in ALIASES:
        return SCHEMES[ALIASES[name]]
    low = name.lower()
    if low in _BY_LOWER:
        return SCHEMES[_BY_LOWER[low]]
    if low in ALIASES:
        return SCHEMES[ALIASES[low]]
    found = re.fullmatch(r"exl2[- ](\d(?:\.\d+)?) ?bpw", low)
    if found and 2 <= float(found[1]) <= 8:
        return _exl2(float(found[1]))
    raise UnknownScheme(id, tuple(difflib.get_close_matches(low, [*_BY_LOWER, *ALIASES], 3, 0.6)))


def assign(scheme: Scheme, model: Model) -> tuple[tuple[Tensor, Format], ...]:
    """Each tensor with its format: over llama.cpp's tensors for GGUF, over the walk's otherwise.

    A tensor whose `format` is set keeps it. Raises UnsupportedModel where llama.cpp has no such architecture.
    """
    if model.file_tensors and all(t.format for t in model.file_tensors):
        return tuple((t, formats.get(t.format or "")) for t in model.file_tensors)
    if scheme.container == "gguf":
        return _gguf(scheme, model)
    return tuple(
        (t, formats.get(t.format) if t.format else _format(scheme, t, model)) for t in model.tensors()
    )


def _gguf(scheme: Scheme, model: Model) -> tuple[tuple[Tensor, Format], ...]:
    from modeldb import gguf_layout

    pairs = gguf_layout.formats(model, scheme.mix or "F16", scheme.imatrix)
    if scheme.bits_range and scheme.id in _APPROXIMATE:
        declared = Format(scheme.id, 256, round(32 * scheme.nominal_bits), source=scheme.source)
        return tuple((t, f if t.format or kept(t) else declared) for t, f in pairs)
    if not scheme.embedding:
        return pairs
    wider = formats.FORMATS[scheme.embedding]
    heads = ("token_embd.weight", "output.weight")
    return tuple((t, wider if t.name in heads else f) for t, f in pairs)


def _format(scheme: Scheme, t: Tensor, model: Model) -> Format:
    """The format of one checkpoint tensor."""
    plain = formats.FORMATS["F32" if scheme.weights == "F32" else "F16" if scheme.family == "f16" else "BF16"]
    if scheme.weights in ("F32", "F16", "BF16"):
        return formats.FORMATS[scheme.weights]
    if len(t.shape) < 2 or t.name.endswith(".bias"):
        return plain
    if t.role in ("embedding", "head"):
        return _outer(scheme, t, plain)
    spared = scheme.spares_latent and t.role == "attention" and "attn_kv_a_mqa" in _names(model)
    linear = t.role in LINEAR_ROLES and not any(x in t.name for x in NOT_LINEAR)
    if not linear or spared:
        return plain
    if scheme.experts_only and t.role != "experts":
        return formats.FORMATS[scheme.rest] if scheme.rest else plain
    if scheme.container == "exl":
        return _bits(scheme.nominal_bits, scheme.source)
    if scheme.container == "mlx" and t.shape[0] % 32:
        return plain
    return formats.FORMATS[scheme.weights]


def _outer(scheme: Scheme, t: Tensor, plain: Format) -> Format:
    if scheme.container == "exl":
        return _bits(EXL2_HEAD_BITS, scheme.source) if t.role == "head" else plain
    name = scheme.embedding if t.role == "embedding" else scheme.head
    return formats.FORMATS[name] if name else plain


def _names(model: Model) -> str:
    from modeldb.layers import LatentAttention

    latent = any(isinstance(m, LatentAttention) for b in model.blocks for m in b.mixers)
    return "attn_kv_a_mqa" if latent else ""


def _bits(bits: float, source: str) -> Format:
    return Format(f"{bits:g}bpw", 2048, round(256 * bits), source=source)
