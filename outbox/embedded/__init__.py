"""A real PostgreSQL and a real Redis for demos and tests, started from wheels or from PATH.

This package owns the processes it starts and the temporary folders they live in. It promises that
nothing is left behind: `close()` (or leaving the `with` block) ends the server and removes its
folder, and should this process die first, however it dies, a guardian process does the same.

The servers trade durability against a power cut for speed (fsync is off). A crash of the server
itself loses nothing in PostgreSQL; Redis keeps nothing on disk at all.
"""

from __future__ import annotations

from outbox.embedded.postgres_server import EmbeddedPostgres
from outbox.embedded.redis_server import EmbeddedRedis
from outbox.embedded.server import free_port

__all__ = ["EmbeddedPostgres", "EmbeddedRedis", "free_port"]
