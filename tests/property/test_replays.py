"""Replays and redactions: the same id is one replay, no past fact is altered."""

from __future__ import annotations

import pytest

from tests.profiles import scaled
from tests.property.machine import run_machine
from tests.property.repeated import Repeated
from tests.property.world import Arena


@pytest.mark.hypothesis
def test_i12_i06_i07_i13_replays_and_redactions(arena: Arena, seed: int) -> None:
    run_machine(Repeated, arena, seed, scaled(0.15))
