"""The scheme of a checkpoint: `quantization_config` of Transformers, and `quantization` of MLX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modeldb import schemes
from modeldb.errors import BrokenFile, UnknownScheme, UnsupportedModel
from modeldb.scheme import Scheme

PLAIN = {"bf16": "bf16", "f16": "fp16", "f32": "fp32", "fp8": "fp8-per-tensor"}


def quantization(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The table that says how weights are quantized, wherever it stands; None for plain weights."""
    places = [config, config.get("text_config") or {}, config.get("llm_config") or {}]
    for place in places:
        if not isinstance(place, Mapping):
            continue
        for key in ("quantization_config", "compression_config", "quantization"):
            table = place.get(key)
            if isinstance(table, Mapping) and table:
                return table
    return None


def scheme_of(config: Mapping[str, Any], native_dtype: str, name: str) -> Scheme:
    """The scheme that a configuration declares; plain weights by dtype when it declares none.

    Raises UnsupportedModel naming what it declares when no scheme here describes it.
    """
    table = quantization(config)
    if table is None:
        return schemes.get(PLAIN.get(native_dtype, "bf16"))
    method = table.get("quant_method")
    if method is None and "group_size" in table and "bits" in table:
        return _known(_mlx(table, name), name)
    if method is None and isinstance(table.get("quant_algo"), str):  # ModelOpt
        method = "modelopt"
    reader = _METHODS.get(method) if isinstance(method, str) else None
    if reader is None:
        raise UnsupportedModel(f"{name}: quant_method {str(method)[:40]!r} is not supported; "
                               f"known: {', '.join(sorted(_METHODS))}")  # fmt: skip
    return _known(reader(table, name), name)


def _known(id: str, name: str) -> Scheme:
    try:
        return schemes.get(id)
    except UnknownScheme:
        raise UnsupportedModel(f"{name}: its quantization {id!r} is not among the known schemes") from None


def _number(table: Mapping[str, Any], name: str, *keys: str, default: int | None = None) -> int:
    value = next((table[k] for k in keys if table.get(k) is not None), default)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > 1 << 20:
        raise BrokenFile(f"{name}: `{keys[0]}` of its quantization is {str(value)[:30]!r}, not a number")
    return value


def _gptq(table: Mapping[str, Any], name: str) -> str:
    return f"gptq-{_number(table, name, 'bits')}bit-g{_number(table, name, 'group_size', default=128)}"


def _awq(table: Mapping[str, Any], name: str) -> str:
    bits = _number(table, name, "bits", "w_bit", default=4)
    return f"awq-{bits}bit-g{_number(table, name, 'group_size', 'q_group_size', default=128)}"


def _fp8(table: Mapping[str, Any], name: str) -> str:
    block = table.get("weight_block_size")
    if block is None:
        return "fp8-per-tensor"
    if block != [128, 128]:
        raise UnsupportedModel(
            f"{name}: FP8 blocks of {str(block)[:30]} are not supported yet, [128, 128] are"
        )
    return "fp8-block128x128"


def _bitsandbytes(table: Mapping[str, Any], name: str) -> str:
    if table.get("load_in_8bit") is True:
        return "bnb-int8"
    if table.get("bnb_4bit_quant_type") == "fp4":
        return "bnb-fp4"
    return "bnb-nf4-dq" if table.get("bnb_4bit_use_double_quant") is True else "bnb-nf4"


def _compressed_tensors(table: Mapping[str, Any], name: str) -> str:
    groups = table.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = first.get("weights") if isinstance(first, Mapping) else None
    if not isinstance(weights, Mapping):
        raise UnsupportedModel(
            f"{name}: `config_groups` of its quantization do not say how weights are stored"
        )
    bits, kind = _number(weights, name, "num_bits"), weights.get("type")
    strategy, fmt = weights.get("strategy"), str(table.get("format", ""))
    if kind == "float" and bits == 8:
        return {"channel": "fp8-per-channel", "block": "fp8-block128x128"}.get(
            str(strategy), "fp8-per-tensor"
        )
    if kind == "float" and bits == 4:
        return "nvfp4-hf" if "nvfp4" in fmt or weights.get("group_size") == 16 else "mxfp4-hf"
    if kind == "int" and bits == 8:
        return "int8-w8a8"
    if kind == "int" and bits == 4 and strategy == "group":
        return f"ct-w4a16-sym-g{_number(weights, name, 'group_size', default=128)}"
    raise UnsupportedModel(
        f"{name}: compressed-tensors weights of {bits} bits, {kind}, {strategy}: not supported yet"
    )


def _torchao(table: Mapping[str, Any], name: str) -> str:
    text = str(table.get("quant_type"))
    if "int4" in text.lower():
        return "torchao-int4wo-g128"
    if "int8" in text.lower():
        return "int8-w8a8"
    if "float8" in text.lower():
        return "fp8-per-channel"
    raise UnsupportedModel(f"{name}: torchao `quant_type` {text[:60]!r} is not supported yet")


def _hqq(table: Mapping[str, Any], name: str) -> str:
    inner = table.get("quant_config")
    weights = inner.get("weight_quant_params") if isinstance(inner, Mapping) else None
    source = weights if isinstance(weights, Mapping) else table
    bits, group = _number(source, name, "nbits", default=4), _number(source, name, "group_size", default=64)
    return f"hqq-{bits}bit-g{group}"


def _mlx(table: Mapping[str, Any], name: str) -> str:
    mode = table.get("mode", "affine")
    if mode in ("mxfp4", "nvfp4", "mxfp8"):
        return f"mlx-{mode}"
    return f"mlx-{_number(table, name, 'bits')}bit-g{_number(table, name, 'group_size')}"


def _modelopt(table: Mapping[str, Any], name: str) -> str:
    algo = str(table.get("quant_algo") or table.get("quant_method"))
    if "NVFP4" in algo or "fp4" in algo:
        return "nvfp4-hf"
    if "FP8" in algo or algo == "modelopt":
        return "fp8-per-tensor"
    raise UnsupportedModel(f"{name}: ModelOpt `quant_algo` {algo[:40]!r} is not supported yet")


def _exl2(table: Mapping[str, Any], name: str) -> str:
    bits = table.get("bits")
    if isinstance(bits, bool) or not isinstance(bits, int | float):
        raise BrokenFile(f"{name}: `bits` of its quantization is {str(bits)[:30]!r}, not a number")
    return f"exl2-{bits:g}bpw"


_METHODS = {
    "gptq": _gptq,
    "awq": _awq,
    "fp8": _fp8,
    "fbgemm_fp8": lambda t, n: "fp8-per-channel",
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed_tensors,
    "torchao": _torchao,
    "hqq": _hqq,
    "mxfp4": lambda t, n: "mxfp4-hf",
    "modelopt": _modelopt,
    "modelopt_fp4": lambda t, n: "nvfp4-hf",
    "exl2": _exl2,
}
