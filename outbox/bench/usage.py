"""What processes have used: processor time with all their children, and memory at its highest.

Read from /proc, so on Linux alone; elsewhere everything is None.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")


def cpu_s(pid: int | None) -> float | None:
    """Seconds of processor time of a process and all below it, ended ones included."""
    if pid is None or not (_PROC / str(pid) / "stat").exists():
        return None
    stats = _stats()
    below: dict[int, list[int]] = {}
    for one, (parent, _) in stats.items():
        below.setdefault(parent, []).append(one)
    total, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        total += stats.get(one, (0, 0))[1]
        waiting += below.get(one, [])
    return total / os.sysconf("SC_CLK_TCK")


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


def rss_mb_max(pid: int | None) -> float | None:
    """The most memory a process has held, in MB (VmHWM)."""
    with suppress(OSError):
        for line in (_PROC / str(pid) / "status").read_text(errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    return None
