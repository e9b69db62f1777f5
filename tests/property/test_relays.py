"""Relays as they run: nothing waits that may go, however late it committed."""

from __future__ import annotations

import pytest

from tests.profiles import scaled
from tests.property.machine import run_machine
from tests.property.relaying import Relayed
from tests.property.world import Arena


@pytest.mark.hypothesis
def test_i09_i15_i01_late_commits_and_bursts(arena: Arena, seed: int) -> None:
    run_machine(Relayed, arena, seed, scaled(0.12, steps=0.6))
