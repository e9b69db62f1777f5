"""Documents, e-mail and broadcasts of a scene, and the shelves where they arrive.

An event of PAPERS becomes a document; the event that tells of the document becomes an e-mail with
it; the event itself is broadcast, over rows and over http. What arrived is counted where it
arrives: files in a folder, messages at an SMTP server, rows of `realtime.messages`, requests at a
server. One e-mail is under way at a time, so that a kill repeats one at most.
"""

from __future__ import annotations

import email
import email.policy
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

from outbox.settings import load_settings
from outbox.store.connect import connect
from outbox.store.subscriptions import KindSpec, Rule, add_kind
from processors.kinds import specify
from tests.chaos.load import PAPERS
from tests.mail.sink import Sink

TEMPLATE = """
#let mark = json(bytes(sys.inputs.event)).data.mark
#set document(title: mark, date: none)
#mark
"""
REFUSED = "refused"
"""An organization whose mail nobody takes, and whose messages the table does not take."""
BATCH = 100
"""What a daemon sends over http in one request: so many messages a fault may repeat."""
RETRY = "exp:base=200ms,factor=1.2,cap=1s,attempts=1000"
TOLD = "outbox.document.rendered"
MAIL: dict[str, Any] = {
    "to": "{{ event.org_id }}@example.org",
    "from": "shop@example.com",
    "subject": "Hello",
    "text": "Hello",
}
CARRIED = {
    "subject": "{{ event.data.source.data.mark }}",
    "attachments": [{"artifact": "{{ event.data.artifact.sha256 }}"}],
}
CAST = {"topic": "papers:{org_id}", "include": ["mark"], "private": False}
ROWS = f"""
    SELECT payload #>> '{{record,mark}}', count(*)::int FROM realtime.messages
    WHERE topic = 'papers:{PAPERS}' GROUP BY 1
"""
KEPT = f"""
    SELECT (SELECT count(*) - count(DISTINCT delivery_id) FROM outbox.artifact
            WHERE org_id = '{PAPERS}')
         + (SELECT count(*) FROM outbox.artifact_stray WHERE org = '{PAPERS}')
"""
"""Artifacts beyond one a delivery, and stored documents that no artifact names."""

Query = Callable[[str], list[tuple[Any, ...]]]


@dataclass(slots=True)
class Shelf:
    """Where things of one kind arrive. `look` adds to `found`, by mark."""

    path: str
    look: Callable[[Counter[str]], None]
    found: Counter[str] = field(default_factory=Counter)
    org: str = PAPERS

    def read(self) -> set[str]:
        """The marks that arrived so far."""
        self.look(self.found)
        return set(self.found)

    @property
    def again(self) -> int:
        """How often something arrived that had arrived before."""
        return self.found.total() - len(self.found)


class Papers:
    """The servers, the folder, the subscriptions. `environ` is what processes are told."""

    def __init__(self, url: str, folder: Path, sink: Sink, casts: Casts, query: Query) -> None:
        self._url = url
        self._documents = folder / "documents"
        self._sink = sink
        self._query = query
        self._read = 0
        self._files: set[Path] = set()
        self._forms: dict[str, bytes] = {}
        self.wrong = 0
        """Documents whose name is not their content, e-mails that changed or carry another one."""
        (folder / "mark.typ").write_text(TEMPLATE)
        self.environ = {
            "OUTBOX_TEMPLATES": str(folder),
            "OUTBOX_ARTIFACTS_URL": self._documents.as_uri(),
            "OUTBOX_ARTIFACTS_KEEP": "30d",
            "OUTBOX_RENDER_PROCESSES": "1",
            "OUTBOX_SMTP_URL": f"smtp://127.0.0.1:{sink.port}?tls=none",
            "OUTBOX_REALTIME_URL": f"http://127.0.0.1:{casts.port}",
            "OUTBOX_REALTIME_KEY": "key",
        }
        with connect(url, autocommit=True) as connection:
            connection.execute("SELECT outbox.install_realtime_shim()")
        self.subscribe("pdf", {"template": "mark", "filename": "{{ event.data.mark }}"})
        self.subscribe("email", MAIL | CARRIED, patterns=(TOLD,), concurrency=1)
        self.subscribe("broadcast", CAST)
        self.subscribe("broadcast", CAST | {"transport": "http"})
        self.documents = Shelf("/pdf", self._look_at_files)
        self.mails = Shelf("/email", self._look_at_mails)
        self.messages = Shelf("/broadcast", self._look_at_rows)
        self.hints = Shelf("/broadcast", casts.count)
        self.shelves = [self.mails, self.documents, self.hints, self.messages]

    def subscribe(
        self,
        kind: str,
        config: dict[str, Any],
        org: str = PAPERS,
        patterns: tuple[str, ...] = ("*",),
        concurrency: int | None = None,
    ) -> None:
        """A subscription of a kind, as the command line makes it."""
        settings = load_settings({}, {"OUTBOX_DATABASE_URL": self._url, **self.environ})
        made = specify(settings, kind, config)
        spec = KindSpec(kind, made.config, concurrency=concurrency or made.concurrency)
        with connect(self._url, autocommit=True) as connection:
            add_kind(connection, spec, Rule(patterns, retry=RETRY), org)

    def kept_again(self) -> int:
        """Documents that are kept beyond one a delivery."""
        return self.documents.again + int(self._query(KEPT)[0][0])

    def _look_at_files(self, found: Counter[str]) -> None:
        for path in set(self._documents.rglob("[!.]*.pdf")) - self._files:
            self._files.add(path)
            content = path.read_bytes()
            self.wrong += path.stem != sha256(content).hexdigest()
            found.update(mark.decode() for mark in re.findall(rb"/Title\((\w+)\)", content))

    def _look_at_mails(self, found: Counter[str]) -> None:
        taken = self._sink.taken
        end = len(taken)
        if end > self._read:
            self.documents.read()
        for one in taken[self._read : end]:
            message = email.message_from_bytes(one.data, policy=email.policy.SMTP)
            assert isinstance(message, EmailMessage)
            if PAPERS in one.recipients[0]:
                found[message["Subject"]] += 1
                [attached] = message.iter_attachments()
                named = {path.stem for path in self._files}
                self.wrong += sha256(attached.get_content()).hexdigest() not in named
            self.wrong += self._forms.setdefault(message["Message-ID"], one.data) != one.data
        self._read = end

    def _look_at_rows(self, found: Counter[str]) -> None:
        now: Counter[str] = Counter(dict(self._query(ROWS)))
        found.update(now - found)


class Casts(ThreadingHTTPServer):
    """Takes broadcasts over http as a Realtime server does."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Cast)
        self.port = self.server_address[1]
        self.taken: list[str] = []
        self._read = 0

    def count(self, found: Counter[str]) -> None:
        """Add the marks that are new."""
        end = len(self.taken)
        found.update(self.taken[self._read : end])
        self._read = end


class _Cast(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Casts

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.taken += [one["payload"]["record"]["mark"] for one in body["messages"]]
        self.send_response(202)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


def _script(verb: str, arg: str) -> str | None:
    return "550 5.7.1 no" if verb == "RCPT" and REFUSED in arg else None


@contextmanager
def papers_of(url: str, query: Query) -> Iterator[Papers]:
    """All of it, over a database."""
    with TemporaryDirectory(prefix="papers") as folder, Sink(_script) as sink, Casts() as casts:
        thread = Thread(target=casts.serve_forever, daemon=True)
        thread.start()
        try:
            yield Papers(url, Path(folder), sink, casts, query)
        finally:
            casts.shutdown()
            thread.join()
