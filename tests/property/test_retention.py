"""Deliveries across retention: nothing owed is lost, nothing young goes, fold = projection."""

from __future__ import annotations

import pytest

from tests.profiles import scaled
from tests.property.machine import run_machine
from tests.property.retained import Retained
from tests.property.world import Arena


@pytest.mark.hypothesis
def test_i07_i13_i01_retention(arena: Arena, seed: int) -> None:
    run_machine(Retained, arena, seed, scaled(0.1))
