"""What processes have used: processor time with all their children, and memory at its highest.

Read from /proc, so on Linux alone; elsewhere everything is None.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")


def cpu_s(pids: Mapping[str, int | None]) -> dict[str, float]:
    """By name, seconds of processor time of a process and all below it, ended ones included."""
    if not (_PROC / "self" / "stat").exists():
        return {}
    stats = _stats()
    below: dict[int, list[int]] = {}
    for one, (parent, _) in stats.items():
        below.setdefault(parent, []).append(one)
    ticks = {name: _ticks(pid, stats, below) for name, pid in pids.items() if pid in stats}
    return {name: count / os.sysconf("SC_CLK_TCK") for name, count in ticks.items()}


def _ticks(pid: int, stats: dict[int, tuple[int, int]], below: dict[int, list[int]]) -> int:
    own = stats.get(pid, (0, 0))[1]
    return own + sum(_ticks(one, stats, below) for one in below.get(pid, []))


def _stats() -> dict[int, tuple[int, int]]:
    """By process: its parent, and ticks of its own and of its children that were waited for."""
    found: dict[int, tuple[int, int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                # The name may hold anything; what follows its last bracket does not.
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                found[int(entry.name)] = int(fields[1]), sum(map(int, fields[11:15]))
    return found


def rss_mb(pid: int | None) -> float | None:
    """The memory that a process holds now, in MB (VmRSS)."""
    return _status_mb(pid, "VmRSS:")


def rss_mb_max(pid: int | None) -> float | None:
    """The most memory a process has held, in MB (VmHWM)."""
    return _status_mb(pid, "VmHWM:")


def _status_mb(pid: int | None, name: str) -> float | None:
    with suppress(OSError):
        for line in (_PROC / str(pid) / "status").read_text(errors="replace").splitlines():
            if line.startswith(name):
                return round(int(line.split()[1]) / 1024, 1)
    return None
