"""E-mail to a real Postfix: TLS, refusals, greylisting, SIZE, SMTPUTF8, and what lies in mailboxes.

It runs on loopback with a configuration, a queue and mailboxes of its own; only the account that
its package makes is the machine's.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.mail.post import Post, parsed
from tests.peers.conftest import missing

MAIN = """
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
mail_owner = postfix
setgid_group = postdrop
maillog_file = {folder}/log
maillog_file_prefixes = /tmp, /var
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = mx.example.net
mydestination =
mynetworks =
alias_maps =
local_transport = error:no local users
default_transport = error:nothing leaves this machine
virtual_mailbox_domains = example.org
virtual_mailbox_base = {folder}/mail
virtual_mailbox_maps = inline:{{ {{ jane@example.org = jane/ }} {{ later@example.org = later/ }}
    {{ jürgen@example.org = juergen/ }} }}
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_minimum_uid = 1
smtpd_relay_restrictions = reject_unauth_destination
smtpd_recipient_restrictions = check_recipient_access inline:{{
    {{ later@example.org = 451 4.7.1 greylisted }} {{ spam@example.org = 550 5.7.1 policy }} }}
smtpd_tls_security_level = encrypt
smtpd_tls_chain_files = {folder}/chain.pem
smtpd_peername_lookup = no
message_size_limit = 100000
smtputf8_enable = yes
"""
MASTER = """
127.0.0.1:{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
proxymap unix - - n - - proxymap
error unix - - n - - error
retry unix - - n - - error
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
"""


@dataclass(frozen=True)
class Mta:
    """A running Postfix."""

    folder: Path
    port: int

    def mailbox(self, name: str) -> list[bytes]:
        """What lies in a mailbox, with the headers that were put before."""
        return [path.read_bytes() for path in (self.folder / "mail" / name / "new").glob("*")]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def postfix(authority: trustme.CA) -> Iterator[Mta]:
    program = shutil.which("postfix", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None or os.geteuid() != 0:
        missing("Postfix, started as root: install it with your system's package manager")
    owner = pwd.getpwnam("postfix")
    # Its processes are of another account: the folders of the tests are closed to that one.
    folder = Path(tempfile.mkdtemp(prefix="outbox-postfix-", dir="/var/tmp"))
    try:
        yield from _running(program, folder, owner, authority)
    finally:
        shutil.rmtree(folder)


def _running(
    program: str, folder: Path, owner: pwd.struct_passwd, authority: trustme.CA
) -> Iterator[Mta]:
    folder.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    for name in ("data", "mail"):
        (folder / name).mkdir()
        os.chown(folder / name, owner.pw_uid, grp.getgrnam("postfix").gr_gid)
    for name in ("queue", "config"):
        (folder / name).mkdir()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
        folder / "chain.pem"
    )
    text = MAIN.format(folder=folder, uid=owner.pw_uid, gid=owner.pw_gid)
    (folder / "config" / "main.cf").write_text(text, encoding="utf-8")
    (folder / "config" / "master.cf").write_text(MASTER.format(port=port))
    command = [program, "-c", str(folder / "config")]
    done = subprocess.run([*command, "start"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + _log(folder)
    try:
        _wait_until(lambda: _listens(port), lambda: _log(folder))
        yield Mta(folder, port)
    finally:
        subprocess.run([*command, "stop"], check=False, capture_output=True)


def _log(folder: Path) -> str:
    log = folder / "log"
    return log.read_text() if log.exists() else ""


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _wait_until(condition: Callable[[], bool], said: Callable[[], str] = str) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, said()
        time.sleep(0.02)


@pytest.fixture
def post(database: str, postfix: Mta, authority: trustme.CA, tmp_path: Path) -> Iterator[Post]:
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    server: Any = postfix
    opened = Post(database, server, OUTBOX_CA_FILE=str(ca))
    opened.environ["OUTBOX_SMTP_URL"] = f"smtp://127.0.0.1:{postfix.port}?tls=starttls"
    yield opened
    opened.engine.check()
    opened.engine.close()


def test_each_recipient_gets_what_postfix_says(post: Post, postfix: Mta) -> None:
    names = ("jane", "nobody", "later", "spam")
    post.subscribe(
        to=[f"{name}@example.org" for name in names],
        bcc="jürgen@example.org",
        html="<p>Grüße, {{ event.data.name }}</p>",
    )
    post.emit(name=".Jane\r\n.\r\nQUIT\r\n")
    [delivery] = post.deliver()
    states = {address.partition("@")[0]: s for address, s in post.states(delivery).items()}
    assert states == {
        "jane": "sent",
        "nobody": "rejected",
        "later": "deferred",
        "spam": "rejected",
        "jürgen": "sent",
    }
    assert post.end(delivery) == ("attempt_failed", "deferred")
    assert post.suppressed() == [("acme", "nobody@example.org", "rejected 5.1.1")]
    _wait_until(lambda: len(postfix.mailbox("jane")) == 1 == len(postfix.mailbox("juergen")))
    message = parsed(postfix.mailbox("jane")[0].replace(b"\n", b"\r\n"))
    assert message["Message-ID"] == f"<{delivery}@example.com>"
    text = message.get_body(("plain",))
    assert text is not None
    assert text.get_content().splitlines()[:3] == ["Hello .Jane", ".", "QUIT"]


def test_many_messages_over_few_connections(post: Post, postfix: Mta) -> None:
    before = len(postfix.mailbox("jane"))
    post.environ["OUTBOX_SMTP_URL"] += "&connections=4"
    post.subscribe(to="jane@example.org")
    post.emit(n=100)
    post.deliver()
    assert (
        post.engine.one("SELECT count(*) FROM outbox.email_recipient WHERE state = 'sent'") == 100
    )
    _wait_until(lambda: len(postfix.mailbox("jane")) == before + 100)
    ids = {parsed(m.replace(b"\n", b"\r\n"))["Message-ID"] for m in postfix.mailbox("jane")}
    assert len(ids) == before + 100


def test_what_is_too_large_for_it_is_not_offered(post: Post) -> None:
    post.subscribe(to="jane@example.org")
    post.emit(name="x" * 150_000)
    [delivery] = post.deliver()
    [(state, reply, _)] = post.people(delivery).values()
    assert state == "rejected"
    assert "larger than the server's limit of 100000" in str(reply)
