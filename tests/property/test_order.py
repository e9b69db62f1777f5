"""Ordered subscriptions: n+1 of a key never starts before n has ended for good."""

from __future__ import annotations

import pytest

from tests.profiles import scaled
from tests.property.machine import run_machine
from tests.property.ordered import Blocking, Ordered, Parking, Skipping
from tests.property.world import Arena


@pytest.mark.hypothesis
@pytest.mark.parametrize("machine", [Blocking, Parking, Skipping])
def test_i08_i01_i13_order(arena: Arena, seed: int, machine: type[Ordered]) -> None:
    run_machine(machine, arena, seed, scaled(0.1))
