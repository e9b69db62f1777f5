"""The same life, with people who change its configuration and its course."""

from __future__ import annotations

import pytest

from tests.profiles import scaled
from tests.property.machine import run_machine
from tests.property.operators import Operated
from tests.property.world import Arena


@pytest.mark.hypothesis
def test_i01_i04_i06_i13_i14_operators(arena: Arena, seed: int) -> None:
    run_machine(Operated, arena, seed, scaled(0.15))
