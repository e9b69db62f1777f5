"""An nginx of the bench's own, as the receiver of webhooks, where one is installed.

It writes no log, has one worker, and lives in the rig's folder alone.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from time import monotonic, sleep
from typing import Any

from outbox.bench.rig import HOST, Rig
from outbox.embedded import free_port
from outbox.errors import OutboxError

START_S_MAX = 20.0
_CONFIG = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log; {user}
events {{ worker_connections 2048; }}
http {{
    access_log off; keepalive_requests 100000000; keepalive_timeout 600s;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen {host}:{port} backlog=4096;
        location /hook {{ return 200 'ok'; }}
        {status}
    }}
}}
"""
_STATUS = "location /status { stub_status; }"
_REQUESTS = re.compile(r"requests\s+\d+ \d+ (\d+)")


def start_nginx(
    rig: Rig,
) -> tuple[int, str, Callable[[], dict[str, Any]] | None] | None:
    """Start nginx; its port, its version, and how to ask for its counts (None where this build
    cannot count). None where there is no nginx."""
    program = shutil.which("nginx")
    if program is None:
        return None
    told = subprocess.run([program, "-V"], check=False, capture_output=True, text=True).stderr
    counts = "http_stub_status_module" in told
    folder, port = rig.folder / "nginx", free_port()
    folder.mkdir()
    config = folder / "nginx.conf"
    config.write_text(
        _CONFIG.format(
            folder=folder,
            host=HOST,
            port=port,
            user="user root;" if os.geteuid() == 0 else "",
            status=_STATUS if counts else "",
        )
    )
    command = [program, "-e", str(folder / "error.log"), "-p", str(folder), "-c", str(config)]
    rig.start("receiver", "outbox.bench.leash", *command)
    _await_port(rig, port)
    version = told.partition("\n")[0].rpartition("/")[2].split()[0]
    return port, f"nginx {version}, one worker", _counter(port) if counts else None


def _await_port(rig: Rig, port: int) -> None:
    until = monotonic() + START_S_MAX
    while monotonic() < until:
        rig.check()
        with suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return
        sleep(0.02)
    raise OutboxError("nginx does not listen")


def _counter(port: int) -> Callable[[], dict[str, Any]]:
    asked = 0

    def tally() -> dict[str, Any]:
        nonlocal asked
        asked += 1
        with urllib.request.urlopen(f"http://{HOST}:{port}/status", timeout=10) as answer:
            found = _REQUESTS.search(answer.read().decode())
        assert found is not None
        requests = int(found[1]) - asked
        # It knows no ids: a request too many cannot be told from a duplicate.
        return {"requests": requests, "received": requests}

    return tally
