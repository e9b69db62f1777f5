"""The job that every peer does, and how its processes tell what they have done.

Imports nothing of Outbox: it runs in the environment of the peers. What to do stands in the
variable `BENCH_PEER`, as JSON. A job is its number and its body, ready as text, so that no peer has
to encode it again.
"""

from __future__ import annotations

import hmac
import json
import mmap
import os
import struct
import threading
import time
from binascii import b2a_base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEY = b"bench-key-of-thirty-two-bytes-00"
BODY_BYTES = 1000
CONNECTIONS = 64
"""Connections of a process to the receiver, at most."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to do: so many `jobs`, `webhook` or `noop`, and where everything is."""

    kind: str
    jobs: int
    database_url: str
    redis_url: str
    post_url: str
    stamps: str

    @classmethod
    def read(cls) -> Order:
        """From the environment."""
        return cls(**json.loads(os.environ["BENCH_PEER"]))


def body(number: int) -> str:
    """The JSON of a job, of `BODY_BYTES` bytes."""
    bare = len(json.dumps({"id": number, "note": ""}))
    return json.dumps({"id": number, "note": "x" * (BODY_BYTES - bare)})


def signed(number: int, data: bytes) -> dict[str, str]:
    """The headers of one request, signed after Standard Webhooks 1.0.0 (`v1`)."""
    name, moment = f"msg_{number}", str(int(time.time()))
    mac = hmac.digest(KEY, f"{name}.{moment}.".encode() + data, "sha256")
    return {
        "content-type": "application/json",
        "webhook-id": name,
        "webhook-timestamp": moment,
        "webhook-signature": "v1," + b2a_base64(mac, newline=False).decode(),
    }


class Stamps:
    """How many jobs this process has done, and when the last: 16 bytes of memory that is a file.

    Made by the process that does the jobs, not by its parent.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._lock = threading.Lock()
        self._memory: mmap.mmap | None = None
        self._done = 0

    def done(self) -> None:
        """Count one, from any thread."""
        with self._lock:
            if self._memory is None:
                self._memory = self._open()
            self._done += 1
            struct.pack_into("<dd", self._memory, 0, self._done, time.time())

    def _open(self) -> mmap.mmap:
        path = self._folder / f"{os.getpid()}.new"
        path.write_bytes(bytes(16))
        with path.open("r+b") as file:
            memory = mmap.mmap(file.fileno(), 16)
        path.rename(path.with_suffix(".stamps"))
        return memory


class AsyncSender:
    """POSTs by aiohttp, on connections that are kept."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session: Any = None

    async def send(self, number: int, data: bytes) -> None:
        """One request; raises RuntimeError where the answer is not 2xx."""
        if self._session is None:
            import aiohttp

            connector = aiohttp.TCPConnector(limit=CONNECTIONS)
            self._session = aiohttp.ClientSession(connector=connector)
        async with self._session.post(self._url, data=data, headers=signed(number, data)) as answer:
            await answer.read()
            if answer.status // 100 != 2:
                raise RuntimeError(f"status {answer.status}")


class ThreadSender:
    """POSTs by libcurl, each thread on a connection that is kept."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._local = threading.local()

    def send(self, number: int, data: bytes) -> None:
        """One request; raises RuntimeError where the answer is not 2xx."""
        import pycurl

        curl = getattr(self._local, "curl", None)
        if curl is None:
            curl = self._local.curl = pycurl.Curl()
            curl.setopt(pycurl.URL, self._url)
            curl.setopt(pycurl.POST, 1)
            curl.setopt(pycurl.NOSIGNAL, 1)
            curl.setopt(pycurl.WRITEFUNCTION, len)
        # Expect is emptied: libcurl would wait for a `100 Continue` before a body of 1 kB.
        headers = [f"{name}: {value}" for name, value in signed(number, data).items()]
        curl.setopt(pycurl.HTTPHEADER, [*headers, "Expect:"])
        curl.setopt(pycurl.POSTFIELDS, data)
        curl.perform()
        if (status := curl.getinfo(pycurl.RESPONSE_CODE)) // 100 != 2:
            raise RuntimeError(f"status {status}")
