"""Installs the peers, each as its lock says, apart from this project's own environment."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence

from bench.peers.systems import ENVIRONMENT, HERE, PYTHON, Peer

LOCK = HERE / "constraints.txt"
NODE_MODULES = HERE / "node_modules"
INSTALL_S_MAX = 600


def install(peers: Sequence[Peer]) -> dict[str, str]:
    """Install what these need and is not there yet. Returns, by name, why one cannot be had."""
    missing: dict[str, str] = {}
    node = _install_node() if any(peer.is_node for peer in peers) else None
    for peer in peers:
        reason = node if peer.is_node else _install_python(peer.packages)
        if reason is not None:
            missing[peer.name] = f"not installed: {reason}"
    return missing


def version_of(peer: Peer) -> str:
    """The version that the lock names."""
    if peer.is_node:
        dependencies = json.loads((HERE / "package.json").read_text())["dependencies"]
        return str(dependencies[peer.package])
    pins = dict(
        line.split("==") for line in LOCK.read_text().splitlines() if not line.startswith("#")
    )
    return pins[peer.package]


def runtime_of(program: str) -> str:
    """What a program says its version is; `missing` where there is none."""
    if shutil.which(program) is None:
        return "missing"
    done = subprocess.run([program, "--version"], check=False, capture_output=True, text=True)
    return done.stdout.strip().removeprefix("v")


def _install_python(packages: Sequence[str]) -> str | None:
    if not PYTHON.exists():
        failed = _failed([sys.executable, "-m", "venv", str(ENVIRONMENT)])
        if failed is not None:
            return failed
    return _failed([str(PYTHON), "-m", "pip", "install", "-q", "-c", str(LOCK), *packages])


def _install_node() -> str | None:
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            return f"{program} is not on PATH"
    # npm writes this file last: where it is older than the lock, the packages are older too.
    written, lock = NODE_MODULES / ".package-lock.json", HERE / "package-lock.json"
    if written.exists() and written.stat().st_mtime >= lock.stat().st_mtime:
        return None
    flags = ("--ignore-scripts", "--no-audit", "--no-fund")
    return _failed(["npm", "ci", *flags, "--prefix", str(HERE)])


def _failed(command: Sequence[str]) -> str | None:
    """Run it; what went wrong, in one line."""
    try:
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_S_MAX,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error).splitlines()[0]
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()] or lines
    return (errors[0] if errors else f"exit code {done.returncode}")[:200]
