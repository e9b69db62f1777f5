"""The life of deliveries under a lossy broker, dying processes and a jumping clock."""

from __future__ import annotations

import pytest

from tests.profiles import scaled
from tests.property.machine import Base, run_machine
from tests.property.world import Arena


@pytest.mark.hypothesis
def test_i01_i02_i03_i04_i06_i11_i13_deliveries(arena: Arena, seed: int) -> None:
    run_machine(Base, arena, seed, scaled(0.15))
