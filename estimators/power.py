"""Clocks under load: dense products draw more than many cards' power limit allows, and run slower for it.

Dynamic power grows as frequency times voltage squared, and voltage falls with frequency: near a limit, clocks
follow about the root of the power (a slope of 0.5; 0 and 0.8 were worse with devices left out). What a
family needs to hold its clocks is read from its cards that keep them: a GeForce RTX 4090 (450 W for 330
TFLOPS of FP16) does, an L40S (350 W for 362), an RTX 6000 Ada (300 W for 364) and an L4 (72 W for 121) do not.
"""

from __future__ import annotations

from hwdb.device import Device

#: Watts of board power per dense FP16 TFLOPS (FP16 accumulation where the card has it) that hold the clocks.
WATTS_PER_TFLOPS = {
    "volta": 2.6, "turing": 3.0, "ampere": 2.2, "ampere-dc": 1.2, "ada": 1.4, "hopper": 0.75, "blackwell": 1.4,
}  # fmt: skip
SLOPE = 0.5


def sustained_share(device: Device, family: str) -> float:
    """Share of its boost clock that a card holds in dense matrix products, in (0, 1]; 1 where its power or
    what its family needs is not known."""
    rate = device.fp16_acc16_flops or device.fp16_tensor_flops
    needed = WATTS_PER_TFLOPS.get(family)
    if not needed or not device.power_w or not rate:
        return 1.0
    return float(min(1.0, (device.power_w / (needed * rate / 1e12)) ** SLOPE))
