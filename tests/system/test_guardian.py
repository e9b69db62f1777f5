"""The guardian's own code, in this process: elsewhere it runs apart, without site-packages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest

from outbox.embedded import guardian

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(flush=True)
time.sleep(99)
"""


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], None]]:
    """Says something on the guardian's standard input, and closes it where that is over."""
    reading, writing = os.pipe()
    monkeypatch.setattr(guardian, "STDIN", reading)
    handlers = {number: signal.getsignal(number) for number in (2, 15, 1)}
    writer = os.fdopen(writing, "wb", buffering=0)

    def say(text: bytes) -> None:
        writer.write(text)
        if not text.endswith(b"..."):
            writer.close()

    yield say
    for number, handler in handlers.items():
        signal.signal(number, handler)
    os.close(reading)
    writer.close()


@pytest.fixture
def server() -> Iterator[subprocess.Popen[str]]:
    """A process that ends only by SIGKILL. Reaped as soon as it ends, as by its parent's parent."""
    process = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    reaper = Thread(target=process.wait)
    reaper.start()
    yield process
    process.kill()
    reaper.join()
    process.stdout.close()


def ended_with(process: subprocess.Popen[str]) -> int:
    return process.wait(30)


@pytest.mark.parametrize("number", [0, 9])
@pytest.mark.parametrize("handles", [True, False])
def test_the_end_of_the_pipe_ends_the_server_and_removes_the_folder(
    said: Callable[[bytes], None],
    server: subprocess.Popen[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    handles: bool,
) -> None:
    """Also on a system without process descriptors."""
    if not handles:
        monkeypatch.setattr(guardian, "process_handle", lambda _pid: None)
    folder = tmp_path / "data"
    folder.mkdir()
    said(f"0 0\n{server.pid} {number}\n".encode())
    guardian.main(os.getppid(), str(folder))
    assert ended_with(server) == -9
    assert not folder.exists()


@pytest.mark.parametrize("handles", [True, False])
def test_a_server_that_does_not_heed_its_signal_is_killed(
    said: Callable[[bytes], None],
    server: subprocess.Popen[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    handles: bool,
) -> None:
    monkeypatch.setattr(guardian, "GRACE_S", 0.05)
    if not handles:
        monkeypatch.setattr(guardian, "process_handle", lambda _pid: None)
    said(f"{server.pid} 15\n".encode())
    guardian.main(os.getppid(), str(tmp_path / "none"))
    assert ended_with(server) == -9


def test_a_server_that_ended_before_is_let_be(
    said: Callable[[bytes], None], server: subprocess.Popen[str], tmp_path: Path
) -> None:
    said(f"{server.pid} 9\n0 0\n".encode())
    guardian.main(os.getppid(), str(tmp_path))
    assert server.poll() is None
    assert not tmp_path.exists()


def test_a_parent_that_is_gone_is_noticed_though_the_pipe_is_open(
    said: Callable[[bytes], None], server: subprocess.Popen[str], tmp_path: Path
) -> None:
    """A child of the parent may hold it open. What was said before still counts."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    said(f"{server.pid} 9\n...".encode())
    guardian.main(gone.pid, str(tmp_path))
    assert ended_with(server) == -9


def test_a_process_that_is_gone_is_not_there_to_end() -> None:
    watched = guardian.Watched()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    watched.replace(f"{gone.pid} 9".encode())
    watched.end()
    assert watched.handle is None
    assert watched.gone(1.0)
