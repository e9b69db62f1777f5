"""The Hypothesis profiles of the tests, and how a test takes its share of one.

`dev` takes seconds (the default of a bare pytest), `ci` some minutes for all property tests (the
default of `make test`), `nightly` runs in rounds for an hour (`make test-nightly`). The variable
HYPOTHESIS_PROFILE or `--hypothesis-profile` names another. No test states a number of its own: what
is dearer or cheaper than others says `scaled(...)`.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings


def register() -> None:
    """Make the three profiles known and load the one that the environment names.

    A machine that ends its example early counts as filtered; how many do depends on the seed.

    The parent is named because Hypothesis starts from one without an example database, and without
    randomness, where the variable CI is set.
    """
    for name, max_examples, stateful_step_count in (
        ("dev", 20, 30),
        ("ci", 80, 50),
        ("nightly", 1_000, 100),
    ):
        settings.register_profile(
            name,
            parent=settings.get_profile("default"),
            max_examples=max_examples,
            stateful_step_count=stateful_step_count,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
            print_blob=True,
        )
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or _usual())


def scaled(examples: float = 1, steps: float = 1) -> settings:
    """The profile's numbers times these: a decorator, or the settings of a machine."""
    profile = settings()
    return settings(
        max_examples=max(1, round(profile.max_examples * examples)),
        stateful_step_count=max(1, round(profile.stateful_step_count * steps)),
    )


def _usual() -> str:
    return "ci" if os.environ.get("CI") else "dev"
