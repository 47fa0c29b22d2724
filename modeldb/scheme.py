"""Schemes: rules that give each tensor of a model its format. `Q4_K_M` is a rule, not a number of bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Container = Literal["gguf", "safetensors", "mlx", "exl", "trt"]


@dataclass(frozen=True, slots=True)
class Scheme:
    """A named rule tensor -> format. `family` groups kernels for calibration (f16, q8_0, k-quant, i-quant, awq, gptq, fp8, ...)."""

    id: str
    container: Container
    family: str
    nominal_bits: float
    imatrix: bool = False
    source: str = ""
    label: str = ""  # of scheme `file`: the mix that the file says it is
