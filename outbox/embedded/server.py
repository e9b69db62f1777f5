"""One server process in one temporary folder: start, stop, crash, restart, and no trace after.

This module owns ports, folders, waiting and the guardian; what is particular to a server is in the
subclass. It promises that `start()` returns a server that answers or raises one clear line.
"""

from __future__ import annotations

import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from outbox.embedded import guardian
from outbox.errors import ConfigurationError, OutboxError

READY_S_MAX = 60.0
STOP_S_MAX = 30.0
LAUNCHES_MAX = 5
# sun_path holds 108 bytes on Linux and 104 on macOS; PostgreSQL appends "/.s.PGSQL.NNNNN".
SOCKET_FOLDER_BYTES_MAX = 85
# Below every system's range of ephemeral ports: no outgoing connection takes the port of a server
# that is down for a moment.
PORTS = range(15_000, 32_000)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nothing listens on."""
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OutboxError("no free TCP port on 127.0.0.1 was found in 100 tries")


class Server(ABC):
    """One server process in one temporary folder, watched by a guardian."""

    name: ClassVar[str]
    unavailable: ClassVar[type[OutboxError]]
    stop_signal: ClassVar[signal.Signals]
    crash_signal: ClassVar[signal.Signals]
    complaints: ClassVar[tuple[str, ...]]  # marks the lines of the log that tell why it ended
    user: pwd.struct_passwd | None = None

    def __init__(self) -> None:
        self.password = secrets.token_hex(16)
        self._folder: Path | None = None
        self._port: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guardian: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """The temporary folder that holds everything of this server."""
        assert self._folder is not None, "not started"
        return self._folder

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1; it stays the same over stop, crash and restart."""
        assert self._port is not None, "not started"
        return self._port

    @property
    def pid(self) -> int | None:
        """The server's process id, None while it is down."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> Self:
        """Start the server and return when it answers; does nothing while it runs.

        Raises ConfigurationError where its binaries are missing, DatabaseUnavailable or
        BrokerUnavailable (with the server's own last words) when it does not come up.
        """
        if self.pid is not None:
            return self
        try:
            if self._folder is None:
                self._prepare_folder()
            self._launch()
        except BaseException:
            self.close()
            raise
        return self

    def stop(self) -> None:
        """Shut down in order, closing open connections; the data stays for the next start()."""
        self._end(self.stop_signal)

    def crash(self) -> None:
        """End the server without letting it finish anything, as a power cut of the process."""
        self._end(self.crash_signal)

    def restart(self) -> None:
        """Stop and start on the same port."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop the server and remove its folder."""
        try:
            self.stop()
        finally:
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None
            if self._guardian is not None:
                self._guardian.communicate()
                self._guardian = None

    def log(self) -> str:
        """What the server has written to its log."""
        path = self.folder / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @abstractmethod
    def _command(self, port: int) -> list[str]:
        """The program and its arguments."""

    @abstractmethod
    def _fill_folder(self) -> None:
        """Write what the server needs before its first start."""

    @abstractmethod
    def _ready(self, port: int) -> bool:
        """Whether this very server answers."""

    def _prepare_folder(self) -> None:
        self._folder = _temporary_folder(self.user)
        self._guardian = subprocess.Popen(
            [sys.executable, "-I", "-S", guardian.__file__, str(os.getpid()), str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        self._fill_folder()

    def _launch(self) -> None:
        # Another process may take the port between the choice and the bind.
        for _ in range(LAUNCHES_MAX):
            port = self._port or free_port()
            with (self.folder / "server.log").open("ab") as log:
                self._process = subprocess.Popen(
                    self._command(port), stdout=log, stderr=log, **self._process_options()
                )
            self._tell_guardian(self._process.pid, self.crash_signal)
            if self._wait_ready(self._process, port):
                self._port = port
                return
            time.sleep(0.05)
        raise self.unavailable(f"the embedded {self.name} did not start: {self._last_words()}")

    def _wait_ready(self, process: subprocess.Popen[bytes], port: int) -> bool:
        until = time.monotonic() + READY_S_MAX
        while process.poll() is None:
            if self._ready(port):
                return True
            if time.monotonic() > until:
                self._end(signal.SIGKILL)
            time.sleep(0.005)
        return False

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._tell_guardian(0, 0)

    def _tell_guardian(self, pid: int, number: int) -> None:
        assert self._guardian is not None
        assert self._guardian.stdin is not None
        self._guardian.stdin.write(f"{pid} {int(number)}\n".encode())
        self._guardian.stdin.flush()

    def _process_options(self) -> dict[str, Any]:
        """A session of its own, so that Ctrl-C reaches the program and not its servers."""
        options: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "cwd": self.folder,
            "env": {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            "start_new_session": True,
        }
        if self.user is not None:
            options |= {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []}
        return options

    def _last_words(self) -> str:
        lines = [line.strip() for line in self.log().splitlines() if line.strip()]
        telling = [line for line in lines if any(word in line for word in self.complaints)]
        return " / ".join(telling[-3:] or lines[-1:] or ["it wrote nothing"])


def _temporary_folder(user: pwd.struct_passwd | None) -> Path:
    """A new folder, private to the account the server runs as, on a path that account may walk."""
    for name in (tempfile.gettempdir(), "/tmp", "/var/tmp"):  # noqa: S108 (mkdtemp makes it private)
        base = Path(name)
        too_long = len(os.fsencode(base / "outbox-12345678")) > SOCKET_FOLDER_BYTES_MAX
        if too_long or (user is not None and not _open_to_all(base)):
            continue
        folder = Path(tempfile.mkdtemp(prefix="outbox-", dir=base))
        if user is not None:
            os.chown(folder, user.pw_uid, user.pw_gid)
        return folder
    raise ConfigurationError(
        "no usable temporary folder: set TMPDIR to a short path that every user may enter"
    )


def _open_to_all(path: Path) -> bool:
    return all(step.stat().st_mode & 0o001 for step in [path.resolve(), *path.resolve().parents])
