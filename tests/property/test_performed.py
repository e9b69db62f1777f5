"""E-mail, documents and broadcasts: the same life, and what it leaves outside of the database."""

from __future__ import annotations

import pytest

from tests.profiles import scaled
from tests.property.machine import run_machine
from tests.property.performed import Performed
from tests.property.world import Arena


@pytest.mark.hypothesis
def test_i01_i03_i11_i13_mail_documents_broadcasts(shop: Arena, seed: int) -> None:
    run_machine(Performed, shop, seed, scaled(0.05, steps=0.5))
