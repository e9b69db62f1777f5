"""A pytest plugin: writes down which test failed, in which phase and with what.

Owns the look of a property test's failure, too: the first failing example is enough, so nothing is
shrunk and nothing is read from an example database.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings

VARIABLE = "OUTBOX_MUTANT_WITNESS"


def pytest_sessionstart() -> None:
    """After the profiles are made and before a test module is imported."""
    settings.register_profile(
        "mutants", parent=settings(), phases=[Phase.explicit, Phase.generate], database=None
    )
    settings.load_profile("mutants")


def pytest_exception_interact(
    node: pytest.Item | pytest.Collector, call: pytest.CallInfo[Any], report: Any
) -> None:
    """One line of JSON a failure, written at once: the process may be ended any time."""
    error = call.excinfo.value if call.excinfo is not None else None
    told = {
        "test": node.nodeid,
        "phase": getattr(report, "when", None) or "collect",
        "error": type(error).__name__,
        "module": type(error).__module__,
        "text": (str(error).strip().splitlines() or [""])[0][:200],
    }
    with Path(os.environ[VARIABLE]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(told) + "\n")
