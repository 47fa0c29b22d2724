"""What a deployment costs to run: energy and money per token, from its speed and its devices' power and
price.

Board power is the most a device draws, so energy is an upper bound; money is the published hourly price
divided by the throughput, with the throughput's interval."""

from __future__ import annotations

from dataclasses import dataclass

from estimators.quantity import Quantity
from hwdb.device import Machine

HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Cost:
    """None where a device's power or price is not known. Energy in joules, money in US dollars, per output
    token."""

    most_energy_j: float | None
    cloud_usd: Quantity | None
    purchase_usd: float | None


def cost(machine: Machine, n_devices: int, tokens_per_s: Quantity) -> Cost:
    """The cost of one output token when `n_devices` of the machine work on nothing else at `tokens_per_s` in
    all."""
    used = machine.devices[:n_devices] or ((machine.host,) if machine.host else ())
    power = _sum(tuple(device.power_w for device in used))
    hourly = _sum(tuple(device.cloud_usd_per_hour for device in used))
    cloud = None
    if hourly is not None:
        each_s = hourly / HOUR_S
        cloud = Quantity(
            each_s / tokens_per_s.high,
            each_s / tokens_per_s.best,
            each_s / tokens_per_s.low,
            tokens_per_s.origin,
        )
    energy = power / tokens_per_s.best if power is not None else None
    return Cost(energy, cloud, _sum(tuple(device.price_usd for device in used)))


def _sum(values: tuple[float | None, ...]) -> float | None:
    """The sum, or None when any part is unknown or there is none."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None
