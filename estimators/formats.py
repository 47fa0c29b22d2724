"""Classes of weight formats: what the kernels that read them have in common, for speed."""

from __future__ import annotations

import re
from functools import cache

from hwdb.device import Device
from modeldb.scheme import Scheme

#: Every class that efficiencies may be fitted for.
CLASSES: tuple[str, ...] = (
    "f32", "f16", "bf16", "q8", "q4_0", "q5_0", "q5_1", "k2", "k3", "k4", "k5", "k6", "iq1", "iq2", "iq3", "iq4",
    "ternary", "mxfp4", "nvfp4",
    "fp8", "int8", "awq", "gptq4", "gptq8", "nf4", "exl", "mlx4", "mlx5", "mlx6", "mlx8", "int4",
)  # fmt: skip
INDEX = {name: i for i, name in enumerate(CLASSES)}
SIXTEEN_BIT = frozenset({"f32", "f16", "bf16"})


BLOCK = 256  # numbers of a superblock
#: What llama.cpp stores instead in matrices whose rows are no whole number of superblocks (`tensor_type_fallback` of
#: llama-quant.cpp), by the class that most of them then have.
NARROW = {
    "k2": "iq4",
    "k3": "iq4",
    "iq1": "iq4",
    "iq2": "iq4",
    "iq3": "iq4",
    "k4": "q5_0",
    "k5": "q5_1",
    "k6": "q8",
}


def class_of(scheme: Scheme, hidden_size: float = BLOCK) -> str:
    """The scheme's class in a model of `hidden_size` numbers per token."""
    name = class_name(scheme.label or scheme.id, scheme.family, scheme.nominal_bits)
    if scheme.container != "gguf":
        return name
    if scheme.family == "bf16":
        return "bf16"  # llama.cpp has fewer kernels for it than for FP16
    narrow = hidden_size % BLOCK and scheme.id != "file"  # a file says itself what most of its weights have
    return NARROW.get(name, name) if narrow else name


def class_index(scheme: Scheme, hidden_size: float = BLOCK) -> int:
    """Its position in CLASSES."""
    return INDEX[class_of(scheme, hidden_size)]


#: FP8 with a scale per block of 128 x 128 has kernels of its own (DeepGEMM and its like), which neither reach what
#: products with one scale per tensor or channel do nor cost the same launches. Only servers' calibration tells them
#: apart.
BLOCK_FP8 = "fp8-block"
SERVED: tuple[str, ...] = (*CLASSES, BLOCK_FP8)


def served_index(scheme: Scheme) -> int:
    """Position in SERVED of the scheme's class as servers' calibration knows it."""
    name = class_of(scheme)
    return SERVED.index(BLOCK_FP8 if name == "fp8" and scheme.weights == BLOCK_FP8 else name)


def unblocked(name: str) -> str:
    """The class in CLASSES of a name in SERVED."""
    return "fp8" if name == BLOCK_FP8 else name


#: What kernels fall back to where a device has no units for a format: weights expanded to 16 bits on the way
#: (vLLM and SGLang: Marlin, W8A16 and W4A16).
WEIGHT_ONLY = {"fp8": "gptq8", "nvfp4": "gptq4"}


def run_as(name: str, device: Device, lineage: str = "") -> str:
    """The class whose kernels run weights of this class on this device. Serving engines multiply MXFP4 by 8-bit
    activations where there are units for it (gpt-oss on Blackwell)."""
    if name == "mxfp4" and lineage == "graph" and device.fp4_flops:
        return "fp8"
    has_units = device.fp8_flops or (name == "nvfp4" and device.fp4_flops)
    return name if has_units else WEIGHT_ONLY.get(name, name)


@cache
def class_name(id: str, family: str, bits: float) -> str:
    """The class of a scheme, by its family and its bits."""
    whole = max(1, min(8, int(bits)))
    match family:
        case "f32":
            return "f32"
        case "f16" | "bf16":
            return "f16"
        case "q8_0":
            return "q8"
        case "legacy":
            return "q4_0" if bits < 5.2 else "q5_0" if bits < 5.8 else "q5_1"
        case "q4_0" | "q4_1":  # of a file: what most of its weights have, whatever its bits are on average
            return "q4_0"
        case "q5_0" | "q5_1":  # x86 has other kernels for the former
            return family
        case "tq1_0" | "tq2_0":
            return "ternary"
        case "k-quant":
            found = re.search(r"Q([2-6])_K", id, re.IGNORECASE)
            return f"k{found.group(1) if found else min(max(whole, 2), 6)}"
        case "i-quant":
            found = re.search(r"IQ([1-4])", id, re.IGNORECASE)
            return f"iq{found.group(1) if found else min(whole, 4)}"
        case "gptq":
            return "gptq8" if bits > 6 else "gptq4"
        case "exl2":
            return "exl"
        case "mlx":
            return "f16" if bits > 12 else f"mlx{min((4, 5, 6, 8), key=lambda b: abs(b - bits))}"
        case "ternary" | "mxfp4" | "nvfp4" | "fp8" | "int8" | "awq" | "nf4" | "int4":
            return family
    return "f16" if bits > 12 else "q8" if bits > 7 else f"k{min(max(whole, 2), 6)}"
