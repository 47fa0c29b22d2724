"""A number with its width and its source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Origin = Literal["measured", "calibrated", "datasheet", "derived", "assumed"]  # best first


@dataclass(frozen=True, slots=True)
class Quantity:
    """`low <= best <= high` is a 90% interval in base SI units; an exact number has all three equal."""

    low: float
    best: float
    high: float
    origin: Origin = "derived"
    note: str = ""

    @classmethod
    def exact(cls, value: float, origin: Origin = "derived", note: str = "") -> Quantity:
        return cls(value, value, value, origin, note)
