"""What the broker tests share: a receiver one can wait for, and a proxy that holds replies."""

from __future__ import annotations

import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Condition, Event, Thread
from time import monotonic, sleep
from uuid import uuid4

WITHIN_S = 30.0


def wait_until(condition: Callable[[], bool], within_s: float = WITHIN_S) -> None:
    until = monotonic() + within_s
    while not condition():
        assert monotonic() < until, "the condition did not come true"
        sleep(0.005)


def new_ids(count: int) -> list[str]:
    return [uuid4().hex for _ in range(count)]


class Receiver:
    """An `accept` that remembers calls, and blocks or fails when told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, list[str]]] = []
        self.entered = 0
        self.open = Event()
        self.open.set()
        self.fails: Callable[[int], bool] = lambda token: False
        self._changed = Condition()

    def __call__(self, token: int, ids: list[str]) -> None:
        with self._changed:
            self.entered += 1
            self._changed.notify_all()
        assert self.open.wait(2 * WITHIN_S), "the test forgot to open the receiver"
        with self._changed:
            self.calls.append((token, ids))
            self._changed.notify_all()
        if self.fails(token):
            raise RuntimeError("accept was told to fail")

    def counted(self) -> Counter[tuple[int, str]]:
        """How often each (token, id) came."""
        with self._changed:
            return Counter((token, each) for token, ids in self.calls for each in ids)

    def wait_for(self, token: int, ids: Sequence[str], within_s: float = WITHIN_S) -> None:
        wanted = {(token, each) for each in ids}
        with self._changed:
            came = self._changed.wait_for(lambda: wanted <= self._seen(), within_s)
        assert came, f"{len(wanted - self._seen())} of {len(wanted)} ids did not arrive"

    def wait_entered(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.entered >= count, WITHIN_S)

    def _seen(self) -> set[tuple[int, str]]:
        return {(token, each) for token, ids in self.calls for each in ids}


class Proxy:
    """A TCP relay to a server on 127.0.0.1, with TLS towards the client if given a context.

    In `hold` mode no reply passes until the client has sent `mark`; what the client sends after
    a reply has passed is kept in `later`.
    """

    def __init__(self, target_port: int, tls: ssl.SSLContext | None = None) -> None:
        self._target_port = target_port
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads = [Thread(target=self._accept, daemon=True)]
        self._release = Event()
        self._release.set()
        self._mark = b""
        self._sent = b""
        self._answered = False
        self._refusing = False
        self.later = b""

    def hold(self, mark: bytes) -> None:
        self._mark, self._sent, self.later, self._answered = mark, b"", b"", False
        self._release.clear()

    def start(self) -> None:
        self._threads[0].start()

    def refuse(self) -> None:
        """Cut every connection, and every new one, until `admit`."""
        self._refusing = True
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def admit(self) -> None:
        self._refusing = False

    def close(self) -> None:
        self._release.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(WITHIN_S)
        for each in self._sockets:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refusing:
                client.close()
                continue
            try:
                if self._tls:
                    client = self._tls.wrap_socket(client, server_side=True)
                server = socket.create_connection(("127.0.0.1", self._target_port))
            except OSError:  # the client refused our certificate
                client.close()
                continue
            self._sockets += [client, server]
            for run, source, sink in ((self._up, client, server), (self._down, server, client)):
                self._threads.append(Thread(target=run, args=(source, sink), daemon=True))
                self._threads[-1].start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                if self._answered:
                    self.later += data
                self._sent += data
                if self._mark in self._sent:
                    self._release.set()
                server.sendall(data)

    def _down(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                self._release.wait(WITHIN_S)
                self._answered = True
                client.sendall(data)


@contextmanager
def proxy_to(port: int, tls: ssl.SSLContext | None = None) -> Iterator[Proxy]:
    proxy = Proxy(port, tls)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.close()
