"""`outbox worker` with room for a few deliveries that are not yet taken: what comes then waits."""

from __future__ import annotations

from cli import main
from outbox import runtime
from outbox.worker import WorkerConfig


def _small(lease_s: float) -> WorkerConfig:
    return WorkerConfig(lease_s=lease_s, waiting_max=5)


if __name__ == "__main__":
    vars(runtime)["WorkerConfig"] = _small
    main()
