"""Where tests keep their files: in memory, where there is room.

Each test's database is a copy of a template, some 900 files: on a disk's file system that takes
ten times as long as in memory (220 ms against 25 on a virtual disk with ext4), and there are more
than a thousand such tests. The folder becomes TMPDIR, so that processes which tests start use it
too. A TMPDIR that is set already is respected.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

MEMORY = Path("/dev/shm")
ROOM_BYTES = 4 * 2**30
_PREFIX = "outbox-tests-"


def open_scratch() -> Path | None:
    """Make the folder and point TMPDIR to it; None where there is no such place."""
    if "TMPDIR" in os.environ or not _roomy():
        return None
    for left in MEMORY.glob(f"{_PREFIX}*"):
        if not Path("/proc", left.name.removeprefix(_PREFIX)).exists():
            shutil.rmtree(left, ignore_errors=True)  # of a run that was killed
    folder = MEMORY / f"{_PREFIX}{os.getpid()}"
    folder.mkdir(mode=0o755, exist_ok=True)  # PostgreSQL runs as nobody where tests run as root
    _use(str(folder))
    return folder


def close_scratch(folder: Path) -> None:
    """Remove it with what is in it."""
    _use(None)
    shutil.rmtree(folder, ignore_errors=True)


def _roomy() -> bool:
    """Whether files there can be run, are in memory, and there is enough of it."""
    try:
        found = os.statvfs(MEMORY)
        memory = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return False
    available = next(line for line in memory.splitlines() if line.startswith("MemAvailable:"))
    free = min(found.f_bavail * found.f_frsize, int(available.split()[1]) * 1024 // 2)
    return free >= ROOM_BYTES and not found.f_flag & os.ST_NOEXEC


def _use(folder: str | None) -> None:
    if folder is None:
        os.environ.pop("TMPDIR", None)
    else:
        os.environ["TMPDIR"] = folder
    tempfile.tempdir = None  # asked for anew
