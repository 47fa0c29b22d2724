"""Cards whose power limit does not hold their clocks reach less of their peak in dense products."""

from dataclasses import replace

import pytest

from estimators.peaks import peaks
from estimators.power import sustained_share
from hwdb import catalogue


def test_a_geforce_flagship_holds_its_clocks_and_its_power_limited_sisters_do_not() -> None:
    find = catalogue.load().resolve
    share = {name: sustained_share(find(name), "ada") for name in ("rtx 4090", "l40s", "rtx 6000 ada", "l4")}
    assert share["rtx 4090"] > 0.95
    assert 0.6 < share["l4"] < share["rtx 6000 ada"] < share["l40s"] < 0.9


@pytest.mark.parametrize("watts", [50.0, 150.0, 300.0, 450.0, 900.0])
def test_more_power_never_slows(watts: float) -> None:
    card = catalogue.load().resolve("rtx 4090")
    slow, fast = (sustained_share(replace(card, power_w=w), "ada") for w in (watts, watts * 1.5))
    assert 0 < slow <= fast <= 1.0


def test_unknown_power_or_family_changes_nothing() -> None:
    card = catalogue.load().resolve("rtx 4090")
    assert sustained_share(replace(card, power_w=None), "ada") == 1.0
    assert sustained_share(card, "rdna3") == 1.0


def test_decode_units_keep_their_rate_and_products_are_slowed() -> None:
    card = catalogue.load().resolve("l40s")
    free = replace(card, power_w=None)
    held, loose = peaks(card, "ggml", "cuda", "k4"), peaks(free, "ggml", "cuda", "k4")
    assert held
    assert loose
    assert held.vector == loose.vector
    assert held.matrix < loose.matrix
    assert held.attention < loose.attention
