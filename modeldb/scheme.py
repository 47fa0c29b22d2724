"""Schemes: rules that give each tensor of a model its format. `Q4_K_M` is a rule, not a number of bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Container = Literal["gguf", "safetensors", "mlx", "exl", "trt"]


@dataclass(frozen=True, slots=True)
class Scheme:
    """A named rule tensor -> format.

    Attributes:
        family: groups kernels for calibration: f32, f16, bf16, q8_0, legacy, k-quant, i-quant, ternary,
        mxfp4, fp8,
            awq, gptq, nf4, int8, int4, nvfp4, exl2, mlx.
        nominal_bits: bits per weight of the format most weights get.
        bits_range: (low,
        high) bits per weight over files seen with this label; set where the scheme is approximate,
            that is where the publisher's rule is not public and the label stands for a size only.
        weights: format of quantized matrices (other containers than GGUF). embedding,
        head: theirs; "" is 16-bit.
        experts_only: only routed experts are quantized, other linear layers are stored as `rest` (16-bit).
        spares_latent: latent attention stays 16-bit.
        mix: the GGUF file mix that gives the rule.
        label: what the file calls itself, when the scheme was read from one.
    """

    id: str
    container: Container
    family: str
    nominal_bits: float
    imatrix: bool = False
    source: str = ""
    bits_range: tuple[float, float] | None = None
    weights: str = ""
    embedding: str = ""
    head: str = ""
    experts_only: bool = False
    rest: str = ""
    spares_latent: bool = False
    mix: str = ""
    label: str = ""

    @property
    def approximate(self) -> bool:
        return self.bits_range is not None
