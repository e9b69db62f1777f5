"""Every way we can think of to get from one organization to another: nothing comes through.

Greta belongs to globex. She has a valid token of her own, a websocket, the REST endpoints, and in
the first part even a database session as `authenticated`. What she wants is acme's. Each way is a
row of the table in docs/realtime.md, which a test compares.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest
from psycopg import sql
from websockets.exceptions import InvalidStatus

from tests.realtime.peer import Peer, peer
from tests.realtime.scene import Scene, awaited, person, token

SECRET = "acme-only"
DOCS = Path(__file__).parents[2] / "docs" / "realtime.md"

SPELLINGS = (
    *("orders:ACME", "Orders:acme", "ORDERS:ACME", " orders:acme", "orders:acme ", "orders: acme"),
    *("orders::acme", "orders:acme:", "orders:acme:globex", "orders:globex:acme", "orders.acme"),
    *(
        "orders:acme\n",
        "orders:acme\t",
        "orders:acme\u00a0",
        "orders:ac\u200bme",
        "\ufefforders:acme",
    ),
    *(
        "orders:\u0430cme",
        "orders:acm\u00e9",
        "orders:acme\u0301",
        "\uff4frders:acme",
        "orders\uff1aacme",
    ),
    *("orders:%", "orders:acm_", "orders:*", "orders:", "orders", "", "%", "null", "orders:null"),
    *("realtime:orders:acme", "realtime:realtime:orders:acme", "orders:acme/../globex"),
    *("orders:acme'--", "orders:' OR '1'='1", 'orders:"acme"', "orders:{acme,globex}"),
)
SUBJECTS: tuple[Any, ...] = (
    *(
        "",
        " ",
        "null",
        "' OR true --",
        "*",
        "%",
        "alice",
        person("alice")[:-1],
        f" {person('alice')}",
    ),
    *(f"{{{person('alice')}}}", person("alice").replace("-", ""), 0, True, [person("alice")]),
    *({"": person("alice")}, "00000000-0000-0000-0000-000000000000", "١", "é" * 500),
)


# -- with a database session -----------------------------------------------------------------------


@pytest.fixture
def kept(shared: Scene) -> Iterator[Callable[[], int]]:
    """Acme's messages, of both kinds; the function says how many there are."""
    shared.db.execute("DELETE FROM realtime.messages")
    shared.send("orders:acme", SECRET, what=SECRET)
    shared.send("orders:globex", "theirs", what="own")
    yield lambda: int(
        shared.db.execute(
            "SELECT count(*) FROM realtime.messages WHERE topic LIKE 'orders:acme%'"
        ).fetchone()[0]  # type: ignore[index]
    )
    shared.db.execute("DELETE FROM realtime.messages")


@pytest.fixture
def greta(shared: Scene, kept: object) -> Iterator[psycopg.Connection[Any]]:
    """A session that logged in as `authenticated`, with Greta's claims."""
    shared.db.execute("ALTER ROLE authenticated LOGIN PASSWORD 'password'")
    parts = urlsplit(shared.database)
    where = f"authenticated:password@{parts.hostname}:{parts.port}"
    url = parts._replace(netloc=where).geturl()
    with psycopg.connect(url, autocommit=True) as connection:
        acting(connection, json.dumps({"sub": person("greta"), "role": "authenticated"}))
        yield connection
    shared.db.execute("ALTER ROLE authenticated NOLOGIN PASSWORD NULL")


def acting(connection: psycopg.Connection[Any], claims: str, topic: str = "") -> None:
    connection.execute(
        "SELECT set_config('request.jwt.claims', %s, false),"
        " set_config('realtime.topic', %s, false)",
        [claims, topic],
    )


EVERYTHING = "SELECT * FROM realtime.messages"


def outcome(connection: psycopg.Connection[Any], statement: str) -> str:
    """What a statement gave, as text: its rows, its notices, or its error's first line."""
    notices: list[str] = []
    connection.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    try:
        if statement.startswith("COPY"):
            with connection.cursor().copy(statement.encode()) as copied:
                return str([bytes(line) for line in copied])
        cursor = connection.execute(statement.encode())
        rows = cursor.fetchall() if cursor.description else [cursor.statusmessage]
    except psycopg.Error as error:
        return f"error: {error}"
    return f"{rows} {notices}"


LEAK = """
CREATE FUNCTION pg_temp.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS
$$ BEGIN RAISE NOTICE '%', $1; RETURN true; END $$
"""
SQL: dict[str, str] = {
    "SQL: select everything, no topic set": EVERYTHING,
    "SQL: own topic set, select everything": f"SET realtime.topic = 'orders:globex'; {EVERYTHING}",
    "SQL: acme's topic set, select everything": f"SET realtime.topic = 'orders:acme'; {EVERYTHING}",
    "SQL: a pattern for a topic": f"SET realtime.topic = 'orders:%'; {EVERYTHING}",
    "SQL: the partitions under the table": "SELECT * FROM realtime.{partition}",
    "SQL: a function that tells what it is asked to filter": (
        f"SET realtime.topic = 'orders:globex'; {EVERYTHING} WHERE pg_temp.leak(payload::text)"
    ),
    "SQL: copy instead of select": f"COPY ({EVERYTHING}) TO STDOUT",
    "SQL: row security off": f"SET row_security = off; {EVERYTHING}",
    "SQL: another role": f"SET ROLE service_role; {EVERYTHING}",
    "SQL: the owner's role": f"SET ROLE postgres; {EVERYTHING}",
    "SQL: another session user": f"SET SESSION AUTHORIZATION service_role; {EVERYTHING}",
    "SQL: a role only in the claims": (
        "SET request.jwt.claim.role = 'service_role'; SET realtime.topic = 'orders:acme';"
        + EVERYTHING
    ),
    "SQL: move acme's rows to the own topic": (
        "SET realtime.topic = 'orders:globex';"
        " UPDATE realtime.messages SET topic = 'orders:globex' RETURNING *"
    ),
    "SQL: delete": "DELETE FROM realtime.messages RETURNING *",
    "SQL: write a membership": (
        f"INSERT INTO memberships VALUES ('{person('greta')}', 'acme') RETURNING 'joined'"
    ),
    "SQL: move the own membership": "UPDATE memberships SET org_id = 'acme' RETURNING 'joined'",
    "SQL: a policy of one's own": (
        "CREATE POLICY p ON realtime.messages FOR SELECT TO authenticated USING (true)"
    ),
    "SQL: replace realtime.topic()": (
        "CREATE OR REPLACE FUNCTION realtime.topic() RETURNS text LANGUAGE sql AS 'SELECT 1'"
    ),
    "SQL: read what Outbox keeps": "SELECT payload FROM outbox.event",
    "SQL: call Outbox": "SELECT outbox.emit('a', '1'::json, org_id => 'acme')",
}
FORGED: dict[str, str] = {
    "SQL: insert a message": (
        "SET realtime.topic = 'orders:acme'; INSERT INTO realtime.messages (topic, extension,"
        " event, payload, private) VALUES ('orders:acme', 'broadcast', 'forged', '{}', true)"
    ),
    "SQL: realtime.send": "SELECT realtime.send('{}', 'forged', 'orders:acme')",
    "SQL: realtime.send_binary": "SELECT realtime.send_binary('x', 'forged', 'orders:acme')",
    "SQL: realtime.broadcast_changes": (
        "SELECT realtime.broadcast_changes('orders:acme', 'forged', 'INSERT', 't', 's',"
        " NULL::record, NULL::record)"
    ),
}


@pytest.mark.parametrize("way", SQL)
def test_by_sql_nothing_of_acmes_is_seen_or_changed(
    shared: Scene, greta: psycopg.Connection[Any], kept: Callable[[], int], way: str
) -> None:
    partition = shared.db.execute(
        "SELECT tableoid::regclass::text FROM realtime.messages LIMIT 1"
    ).fetchall()[0][0]
    greta.execute(LEAK)
    *before, last = SQL[way].replace("realtime.{partition}", partition).split(";")
    told = "".join(outcome(greta, statement) for statement in (*before, last))
    assert SECRET not in told
    assert "joined" not in told
    assert kept() == 1


@pytest.mark.parametrize("way", FORGED)
@awaited
async def test_by_sql_nothing_is_said_to_acme(
    shared: Scene, greta: psycopg.Connection[Any], kept: Callable[[], int], way: str
) -> None:
    async with peer(shared.ws, token("alice")) as alice:
        await alice.joined("orders:acme")
        for statement in FORGED[way].split(";"):
            outcome(greta, statement)
        assert kept() == 1
        shared.send("orders:acme", "true")
        told = await alice.until(lambda told: told.payload.get("event") not in {None, SECRET})
        assert told.payload["event"] == "true"


def test_by_sql_no_spelling_of_the_topic_helps(greta: psycopg.Connection[Any]) -> None:
    for spelling in SPELLINGS:
        set_topic = sql.SQL("SET realtime.topic = {}").format(sql.Literal(spelling))
        greta.execute(set_topic)
        assert SECRET not in outcome(greta, EVERYTHING), spelling


def test_by_sql_no_odd_subject_is_a_member(shared: Scene, kept: Callable[[], int]) -> None:
    with psycopg.connect(shared.database, autocommit=True) as connection:
        for subject in SUBJECTS:
            connection.execute("RESET SESSION AUTHORIZATION")
            acting(connection, json.dumps({"sub": subject}), "orders:acme")
            connection.execute("SET SESSION AUTHORIZATION authenticated")
            assert SECRET not in outcome(connection, EVERYTHING), subject
        for claims in ("", "{}", '{"sub":null}', "null", "[]"):
            connection.execute("RESET SESSION AUTHORIZATION")
            acting(connection, claims, "orders:acme")
            connection.execute("SET SESSION AUTHORIZATION authenticated")
            assert SECRET not in outcome(connection, EVERYTHING), claims


def test_by_sql_who_is_not_signed_in_sees_nothing(shared: Scene, kept: Callable[[], int]) -> None:
    with psycopg.connect(shared.database, autocommit=True) as connection:
        acting(connection, json.dumps({"sub": person("alice"), "role": "anon"}), "orders:acme")
        connection.execute("SET SESSION AUTHORIZATION anon")
        assert SECRET not in outcome(connection, EVERYTHING)


def test_by_sql_what_the_feed_announces_cannot_be_read(
    shared: Scene, greta: psycopg.Connection[Any]
) -> None:
    """The bell carries ids to whoever may LISTEN; an id opens nothing."""
    greta.execute("LISTEN outbox_realtime")
    shared.send("orders:acme", SECRET, what=SECRET)
    [notice, *_] = greta.notifies(timeout=5, stop_after=1)
    assert SECRET not in notice.payload
    for topic in ("orders:acme", "orders:globex"):
        greta.execute(f"SET realtime.topic = '{topic}'".encode())
        assert outcome(greta, f"{EVERYTHING} WHERE id = '{notice.payload[:32]}'") == "[] []"


def test_the_same_questions_by_a_member_are_answered(
    shared: Scene, kept: Callable[[], int]
) -> None:
    """Or else all this would prove nothing."""
    with psycopg.connect(shared.database, autocommit=True) as connection:
        acting(connection, json.dumps({"sub": person("alice")}), "orders:acme")
        connection.execute("SET SESSION AUTHORIZATION authenticated")
        assert SECRET in outcome(connection, EVERYTHING)


# -- with a websocket and REST ---------------------------------------------------------------------


@asynccontextmanager
async def watched(shared: Scene) -> AsyncIterator[Peer]:
    """Acme's member, who must hear what acme says and nothing else; its rows can be replayed."""
    async with peer(shared.ws, token("alice")) as alice:
        await alice.joined("orders:acme", presence={"enabled": True, "key": "alice"})
        await alice.silent()
        shared.send("orders:acme", SECRET, what=SECRET)
        await alice.event("broadcast")
        yield alice
        assert {told.event for told in alice.passed} <= {"broadcast"}
        assert {told.payload["event"] for told in alice.passed} <= {SECRET}


SAID = {"type": "broadcast", "event": "forged", "payload": {}}
REPLAY = {"broadcast": {"replay": {"since": 0}}}
Way = Callable[[Scene, Peer], Awaitable[None]]
WAYS: dict[str, Way] = {}


def way(name: str) -> Callable[[Way], Way]:
    def keep(function: Way) -> Way:
        WAYS[name] = function
        return function

    return keep


@way("websocket: join acme's topic")
async def _(shared: Scene, greta: Peer) -> None:
    assert (await greta.refused("orders:acme")).startswith("Unauthorized: ")


@way("websocket: join acme's topic and ask for a replay")
async def _(shared: Scene, greta: Peer) -> None:
    assert (await greta.refused("orders:acme", **REPLAY)).startswith("Unauthorized: ")


@way("websocket: replay of the own topic")
async def _(shared: Scene, greta: Peer) -> None:
    await greta.joined("orders:globex", **REPLAY)


@way("websocket: every spelling of acme's topic, private")
async def _(shared: Scene, greta: Peer) -> None:
    for spelling in (*SPELLINGS, "orders:acme\0", "o" * 300):
        assert await greta.refused(spelling, **REPLAY), spelling


@way("websocket: every spelling of acme's topic, public")
async def _(shared: Scene, greta: Peer) -> None:
    for spelling in ("orders:acme", *filter(None, SPELLINGS)):
        await greta.joined(spelling, private=False)


@way("websocket: a frame's topic without its prefix")
async def _(shared: Scene, greta: Peer) -> None:
    await greta.send("orders:acme", "phx_join", {"config": {"private": True}}, ref="1")
    assert (await greta.event("phx_reply")).payload["response"] == {"reason": "unmatched topic"}


@way("websocket: send to acme's topic without joining")
async def _(shared: Scene, greta: Peer) -> None:
    await greta.send("realtime:orders:acme", "broadcast", SAID, join_ref="1")
    parts = [b"1", b"1", b"realtime:orders:acme", b"forged", b""]
    await greta.socket.send(bytes([3, *map(len, parts), 1]) + b"".join(parts) + b"{}")
    for _reply in range(2):
        reply = await greta.event("phx_reply")
        assert reply.payload["response"] == {"reason": "unmatched topic"}


@way("websocket: send to acme's topic after a refused join")
async def _(shared: Scene, greta: Peer) -> None:
    await greta.refused("orders:acme")
    await greta.send("realtime:orders:acme", "broadcast", SAID, join_ref="1")
    assert (await greta.event("phx_reply")).payload["status"] == "error"


@way("websocket: send while the join is being judged")
async def _(shared: Scene, greta: Peer) -> None:
    config = {"config": {"private": True}}
    await greta.send("realtime:orders:acme", "phx_join", config, join_ref="9", ref="9")
    await greta.send("realtime:orders:acme", "broadcast", SAID, join_ref="9")
    assert (await greta.event("phx_reply")).payload["status"] == "error"


@way("websocket: another topic inside the payload")
async def _(shared: Scene, greta: Peer) -> None:
    await greta.joined("orders:globex", broadcast={"ack": True})
    for inner in ("topic", "sub_topic", "channel"):
        said = {**SAID, inner: "orders:acme"}
        await greta.send("realtime:orders:globex", "broadcast", said, join_ref="1")


@way("websocket: the public room of that name")
async def _(shared: Scene, greta: Peer) -> None:
    await greta.joined("orders:acme", private=False, broadcast={"ack": True})
    await greta.send("realtime:orders:acme", "broadcast", SAID, join_ref="1")
    assert (await greta.event("phx_reply")).payload["status"] == "ok"


@way("websocket: from public to private with a second join")
async def _(shared: Scene, greta: Peer) -> None:
    await greta.joined("orders:acme", private=False)
    assert (await greta.refused("orders:acme")).startswith("Unauthorized: ")


@way("websocket: presence in acme's room")
async def _(shared: Scene, greta: Peer) -> None:
    presence = {"enabled": True, "key": "alice"}
    assert await greta.refused("orders:acme", presence=presence)
    await greta.joined("orders:acme", private=False, presence=presence)
    track = {"type": "presence", "event": "track", "payload": {}}
    await greta.send("realtime:orders:acme", "presence", track, join_ref="2")
    assert list((await greta.event("presence_diff")).payload["joins"]) == ["alice"]


@way("websocket: a channel of one's own with the token of no member")
async def _(shared: Scene, greta: Peer) -> None:
    await greta.joined("orders:globex")
    for refused in (token("stranger"), token(), token("greta", role="anon")):
        await greta.send(
            "realtime:orders:globex", "access_token", {"access_token": refused}, join_ref="1"
        )
        assert (await greta.event("system")).payload["status"] == "error"
        await greta.event("phx_close")
        greta._refs = 0
        await greta.joined("orders:globex")


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def forged_tokens() -> Iterator[str]:
    good = token("alice").split(".")
    claims = {"role": "authenticated", "sub": person("alice"), "exp": 9_999_999_999}
    for algorithm in ("none", "None", "NONE", "HS256", "RS256", ""):
        yield f"{part({'alg': algorithm, 'typ': 'JWT'})}.{part(claims)}."
    yield f"{good[0]}.{part(claims)}.{good[2]}"
    yield f"{good[0]}.{part({**claims, 'role': 'service_role'})}.{good[2]}"
    yield token("alice", secret="x" * 64)
    yield token("alice", secret="x" * 64, role="service_role")
    yield token("alice", lasts_s=-1)
    yield token("alice", lasts_s=-10_000_000)
    yield token("alice", exp=None)
    yield token("alice", exp="9999999999")
    yield token("alice", role=None)


@way("websocket: forged, unsigned, altered and expired tokens of a member, at the join")
async def _(shared: Scene, greta: Peer) -> None:
    for forged in forged_tokens():
        assert "JWT" in await greta.refused("orders:acme", token=forged, **REPLAY)


@way("websocket: the same tokens at the handshake")
async def _(shared: Scene, greta: Peer) -> None:
    for forged in forged_tokens():
        with pytest.raises(InvalidStatus, match="401"):
            async with peer(shared.ws, forged):
                pass


@way("websocket: the same tokens on a channel that is joined")
async def _(shared: Scene, greta: Peer) -> None:
    for forged in forged_tokens():
        greta._refs = 0
        await greta.joined("orders:globex")
        await greta.send(
            "realtime:orders:globex", "access_token", {"access_token": forged}, join_ref="1"
        )
        assert (await greta.event("system")).payload["status"] == "error"
        await greta.event("phx_close")


@way("websocket: signed tokens with an odd subject or claims that are not asked")
async def _(shared: Scene, greta: Peer) -> None:
    odd = [{"sub": subject} for subject in SUBJECTS]
    odd += [
        {"org_id": "acme"},
        {"app_metadata": {"org_id": "acme", "role": "service_role"}},
        {"user_id": person("alice")},
        {"role": "supabase_admin"},
        {"role": "authenticated; RESET ROLE"},
        {"role": "none"},
        {"role": "outbox_daemon"},
        {"sub": person("greta") + "\0"},
    ]
    for claims in odd:
        said = {"sub": person("greta"), "role": "authenticated", **claims}
        reason = await greta.refused("orders:acme", token=token("greta", **said), **REPLAY)
        assert reason.startswith("Unauthorized: "), claims


def by_rest(shared: Scene, key: str) -> httpx.Client:
    return httpx.Client(base_url=f"{shared.url}/api", headers={"authorization": f"Bearer {key}"})


@way("REST: a batch to acme's private topic")
async def _(shared: Scene, greta: Peer) -> None:
    message = {"topic": "orders:acme", "event": "forged", "payload": {}, "private": True}
    with by_rest(shared, token("greta")) as rest:
        assert rest.post("/broadcast", json={"messages": [message] * 3}).status_code == 202


@way("REST: one event to acme's private topic")
async def _(shared: Scene, greta: Peer) -> None:
    with by_rest(shared, token("greta")) as rest:
        path = "/broadcast/orders:acme/events/forged?private=true"
        assert rest.post(path, json={}).status_code == 403


@way("REST: to the public room of that name, in both ways")
async def _(shared: Scene, greta: Peer) -> None:
    message = {"topic": "orders:acme", "event": "forged", "payload": {}}
    with by_rest(shared, token("greta")) as rest:
        assert rest.post("/broadcast", json={"messages": [message]}).status_code == 202
        assert rest.post("/broadcast/orders:acme/events/forged", json={}).status_code == 202


@way("REST: every spelling of the topic")
async def _(shared: Scene, greta: Peer) -> None:
    with by_rest(shared, token("greta")) as rest:
        for spelling in filter(None, SPELLINGS):
            message = {"topic": spelling, "event": "forged", "payload": {}, "private": True}
            assert rest.post("/broadcast", json={"messages": [message]}).status_code == 202


@way("REST: forged tokens")
async def _(shared: Scene, greta: Peer) -> None:
    message = {"topic": "orders:acme", "event": "forged", "payload": {}, "private": True}
    for forged in forged_tokens():
        with by_rest(shared, forged) as rest:
            assert rest.post("/broadcast", json={"messages": [message]}).status_code == 401
            path = "/broadcast/orders:acme/events/forged?private=true"
            assert rest.post(path, json={}).status_code == 401


@pytest.mark.parametrize("name", WAYS)
@awaited
async def test_by_network_nothing_of_acmes_comes_through(shared: Scene, name: str) -> None:
    async with watched(shared) as alice, peer(shared.ws, token("greta")) as greta:
        heard: list[Any] = []
        receive = greta.receive

        async def listen() -> Any:
            heard.append(await receive())
            return heard[-1]

        greta.receive = listen  # type: ignore[method-assign]
        await WAYS[name](shared, greta)
        shared.send("orders:acme", SECRET, what=SECRET)
        # What was sent before has been sent to everybody when this has come.
        shared.send("orders:acme", "end")
        await alice.until(lambda told: "end" in str(told.payload))
        await greta.silent()
        assert SECRET not in json.dumps(heard, default=str)


# -- the table of tries ----------------------------------------------------------------------------

OTHERS = (
    f"SQL: {len(SPELLINGS)} spellings of the topic",
    f"SQL: {len(SUBJECTS) + 5} odd subjects and claims",
    "SQL: not signed in",
    "SQL: the ids that the feed announces",
)


def test_the_table_of_tries_stands_in_the_docs() -> None:
    rows = re.findall(
        r"^\| ((?:SQL|websocket|REST): [^|]+?) \| 0 \|$", DOCS.read_text(), re.MULTILINE
    )
    assert rows == [*SQL, *FORGED, *OTHERS, *WAYS]
