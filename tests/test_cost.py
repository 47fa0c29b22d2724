"""Cost: bounds and proportions; unknown stays unknown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from estimators.cost import cost
from estimators.quantity import Quantity
from hwdb.device import Device, Machine

CARD = Device("c", "Card", "X", "gpu", power_w=300.0, price_usd=1000.0, cloud_usd_per_hour=3.6)
RATE = Quantity(50.0, 100.0, 200.0)


def test_energy_is_board_power_over_throughput() -> None:
    assert cost(Machine("m", (CARD,)), 1, RATE).most_energy_j == pytest.approx(3.0)


def test_money_is_the_hourly_price_over_throughput_with_its_interval() -> None:
    usd = cost(Machine("m", (CARD,)), 1, RATE).cloud_usd
    assert usd is not None
    assert (usd.low, usd.best, usd.high) == pytest.approx((5e-6, 1e-5, 2e-5))


def test_two_devices_cost_twice_and_an_idle_one_nothing() -> None:
    machine = Machine("m", (CARD, CARD))
    one, two = cost(machine, 1, RATE), cost(machine, 2, RATE)
    assert two.most_energy_j == pytest.approx(2 * (one.most_energy_j or 0))
    assert two.purchase_usd == 2000


def test_an_unknown_part_makes_the_whole_unknown() -> None:
    machine = Machine("m", (CARD, replace(CARD, power_w=None, cloud_usd_per_hour=None)))
    found = cost(machine, 2, RATE)
    assert found.most_energy_j is None
    assert found.cloud_usd is None
    assert cost(Machine("empty"), 1, RATE).purchase_usd is None
