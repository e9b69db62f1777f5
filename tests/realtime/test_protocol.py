"""The protocol, frame by frame, in both versions."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import psycopg
import pytest
from websockets.exceptions import InvalidStatus

from outbox.realtime.frames import V1, V2
from outbox.realtime.limits import Limits
from outbox.realtime.session import Session
from tests.cli.helpers import wait_until
from tests.realtime.peer import Peer, peer
from tests.realtime.scene import QUICK, Scene, awaited, person, token

TOPIC = "realtime:orders:acme"
UNREADABLE = "Unauthorized: You do not have permissions to read from this Channel topic: "
both_versions = pytest.mark.parametrize("version", [V1, V2])


def ok(
    ref: str, topic: str = TOPIC, join_ref: str | None = "1", **response: Any
) -> tuple[Any, ...]:
    return (join_ref, ref, topic, "phx_reply", {"status": "ok", "response": response}, "text")


# -- handshake -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("", "API key is missing"),
        ("nonsense", "The token provided is not a valid JWT"),
        (token(secret="x" * 64), "Failed to validate JWT signature"),
        (token(lasts_s=-9), "Token has expired"),
        (token(role=None), "Fields `role` and `exp` are required in JWT"),
    ],
)
def test_a_handshake_is_refused_with_the_reason_as_json(shared: Scene, key: str, text: str) -> None:
    upgrade = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    answer = httpx.get(f"{shared.url}/websocket", params={"apikey": key}, headers=upgrade)
    assert (answer.status_code, answer.json()) == (401, {"error": text})


@awaited
async def test_the_key_may_come_in_a_header_and_the_bare_servers_path_serves_too(
    shared: Scene,
) -> None:
    from websockets.asyncio.client import connect

    url = shared.ws.removesuffix("/realtime/v1") + "/socket/websocket"
    async with connect(url, additional_headers={"x-api-key": token()}) as socket:
        assert await Peer(socket, V1).silent() == []


# -- the life of a channel -------------------------------------------------------------------------


@both_versions
@awaited
async def test_join_heartbeat_leave(shared: Scene, version: str) -> None:
    join_ref = "1" if version == V2 else None
    async with peer(shared.ws, token("alice"), version) as alice:
        await alice.joined("orders:acme")
        await alice.send("phoenix", "heartbeat", {}, ref="7")
        assert await alice.receive() == ok("7", "phoenix", None)
        await alice.send(TOPIC, "phx_leave", {}, join_ref="1", ref="8")
        assert await alice.receive() == ok("8", join_ref=join_ref)
        assert await alice.receive() == (join_ref, "1", TOPIC, "phx_close", {}, "text")
        await alice.send(TOPIC, "broadcast", {"event": "x"}, ref="9")
        reply = await alice.receive()
        assert reply.payload == {"status": "error", "response": {"reason": "unmatched topic"}}
        await alice.send(TOPIC, "phx_leave", {}, ref="10")
        assert (await alice.receive()).payload["status"] == "ok"


@awaited
async def test_a_second_join_closes_the_first_and_what_names_the_first_is_ignored(
    shared: Scene,
) -> None:
    async with peer(shared.ws, token("alice")) as alice:
        await alice.joined("orders:acme")
        await alice.joined("orders:acme")
        assert [told[:4] for told in alice.passed] == [("1", "1", TOPIC, "phx_close")]
        await alice.send(TOPIC, "phx_leave", {}, join_ref="1", ref="stale")
        shared.send("orders:acme", n=1)
        told = await alice.event("broadcast")
        assert told.payload["payload"]["n"] == 1
        assert [told.ref for told in alice.passed[1:]] == []


@awaited
async def test_what_cannot_be_read_is_skipped_and_the_connection_stays(shared: Scene) -> None:
    async with peer(shared.ws, token("alice")) as alice:
        for junk in ("", "[]", "{}", b"\x00", b"\x03\xff", '["1","1",5,"phx_join",{}]'):
            await alice.socket.send(junk)
        await alice.send("phoenix", "other", {})
        await alice.send("elsewhere", "phx_join", {}, ref="x")
        reply = await alice.receive()
        assert reply.payload["response"] == {"reason": "unmatched topic"}
        await alice.joined("orders:acme")


@awaited
async def test_a_join_is_refused_in_the_exact_words(shared: Scene) -> None:
    async with peer(shared.ws, token("alice")) as alice:
        assert await alice.refused("orders:globex") == f"{UNREADABLE}orders:globex"
        assert await alice.refused("orders:acme", token=token()) == f"{UNREADABLE}orders:acme"
        late = await alice.refused("orders:acme", token=token("alice", lasts_s=-5))
        assert late.startswith("InvalidJWTToken: Token has expired ")
        assert late.endswith(" seconds ago")
        half = await alice.refused("orders:acme", token=token("alice", role=None))
        assert half == "InvalidJWTToken: Fields `role` and `exp` are required in JWT"
        bad = await alice.refused("orders:acme", token="x")
        assert bad == "MalformedJWT: The token provided is not a valid JWT"
        forged = await alice.refused("orders:acme", token=token("alice", secret="x" * 64))
        assert forged == "JwtSignatureError: Failed to validate JWT signature"
        assert await alice.refused("") == "TopicNameRequired: You must provide a topic name"
        replay = {"replay": {"since": "yesterday"}}
        told = await alice.refused("orders:acme", broadcast=replay)
        assert told == "UnableToReplayMessages: Replay params are not valid"
        # A value that is no token but a key of the gateway means the key of the connection.
        await alice.joined("orders:acme", token="sb_publishable_key")


@awaited
async def test_limits_of_channels_of_joins_of_users_and_of_public_channels(
    make_scene: Callable[..., Scene],
) -> None:
    scene = make_scene(replace(QUICK, channels=1, users=2, private_only=True))
    async with peer(scene.ws, token("alice")) as alice, peer(scene.ws, token("greta")):
        closed = await alice.refused("news", private=False)
        assert closed == "PrivateOnly: This project only allows private channels"
        await alice.joined("orders:acme")
        assert await alice.refused("orders:b") == "ChannelRateLimitReached: Too many channels"
        answer = httpx.get(f"{scene.url}/websocket", params={"apikey": token()})
        assert answer.status_code != 429  # not a websocket
        with pytest.raises(InvalidStatus, match="429"):
            async with peer(scene.ws, token()):
                pass
        scene.server.center.joins.limit = 0.01
        scene.server.center.joins._clock = lambda: time.time() + 5
        assert await alice.refused("orders:acme") == (
            "ClientJoinRateLimitReached: Too many joins per second"
        )
        assert await alice.closed() == 1001


# -- messages --------------------------------------------------------------------------------------


@awaited
async def test_each_source_reaches_each_version_in_its_documented_form(shared: Scene) -> None:
    """As in the table of the facts: what SQL sends is binary for version 2, a batch is text."""
    admin = {"authorization": f"Bearer {token(role='service_role')}"}
    async with (
        peer(shared.ws, token("alice"), V1) as one,
        peer(shared.ws, token("both"), V2) as two,
    ):
        for alike in (one, two):
            await alike.joined("orders:acme")
        shared.send("orders:acme", "from.sql", big=2**62, id="mine")
        for alike, kind in ((one, "text"), (two, "binary")):
            told = await alike.event("broadcast")
            assert (told.topic, told.kind, told.ref) == (TOPIC, kind, None)
            assert told.payload["type"] == "broadcast"
            assert told.payload["event"] == "from.sql"
            assert told.payload["payload"] == {"id": "mine", "big": 2**62}
            assert set(told.payload["meta"]) == {"id"}
        body = {"topic": "orders:acme", "event": "from.batch", "payload": {"a": 1}, "private": True}
        with httpx.Client(base_url=shared.url, headers=admin) as rest:
            sent = rest.post("/api/broadcast", json={"messages": [{**body, "id": "msg-1"}]})
            assert (sent.status_code, sent.content) == (202, b"")
            path = "/api/broadcast/orders%3Aacme/events/from%20one?private=true"
            assert rest.post(path, json={"b": 2}).status_code == 202
        for alike, kind in ((one, "text"), (two, "text")):
            told = await alike.event("broadcast")
            assert (told.kind, told.payload["meta"]) == (kind, {"id": "msg-1"})
        for alike, kind in ((one, "text"), (two, "binary")):
            told = await alike.event("broadcast")
            assert (told.kind, told.payload["event"]) == (kind, "from one")
            assert told.payload["payload"] == {"b": 2}
            assert "meta" not in told.payload
        shared.db.execute("SELECT realtime.send_binary('\\x00ff', 'raw', 'orders:acme')")
        told = await two.event("broadcast")
        assert told.payload["payload"] == b"\x00\xff"
        assert await one.silent() == []


@both_versions
@awaited
async def test_clients_send_to_each_other_with_ack_and_to_themselves(
    shared: Scene, version: str
) -> None:
    async with (
        peer(shared.ws, token("alice"), version) as alice,
        peer(shared.ws, token("greta"), version) as greta,
    ):
        await alice.joined("room", private=False, broadcast={"ack": True, "self": True})
        await greta.joined("room", private=False)
        said = {"type": "broadcast", "event": "hi", "payload": {"n": 1}, "meta": {"id": "forged"}}
        await alice.send("realtime:room", "broadcast", said, join_ref="1", ref="5")
        for alike in (alice, greta):
            told = await alike.event("broadcast")
            assert told.payload == {"type": "broadcast", "event": "hi", "payload": {"n": 1}}
        assert (await alice.event("phx_reply")).ref == "5"
        await greta.send("realtime:room", "broadcast", said, join_ref="1", ref="6")
        assert (await alice.event("broadcast")).payload["event"] == "hi"
        assert await greta.silent() == []  # neither ack nor itself
        large = {"type": "broadcast", "event": "hi", "payload": "x" * 3_100_000}
        await alice.send("realtime:room", "broadcast", large, join_ref="1", ref="7")
        refused = await alice.event("phx_reply")
        assert refused.payload["response"] == {"reason": "payload_size_exceeded"}
        assert await greta.silent() == []


@awaited
async def test_a_binary_push_reaches_the_others_as_it_was(shared: Scene) -> None:
    async with peer(shared.ws, token("alice")) as alice, peer(shared.ws, token("greta")) as greta:
        await alice.joined("room", private=False, broadcast={"ack": True})
        await greta.joined("room", private=False)
        for encoding, payload, heard in ((1, b'{"n":1.50}', {"n": 1.5}), (0, b"\xff", b"\xff")):
            parts = [b"1", b"9", b"realtime:room", b"hi", b'{"id":"forged"}']
            header = bytes([3, *map(len, parts), encoding])
            await alice.socket.send(header + b"".join(parts) + payload)
            told = await greta.event("broadcast")
            assert told.payload == {"type": "broadcast", "event": "hi", "payload": heard}
            assert (await alice.event("phx_reply")).ref == "9"


@awaited
async def test_a_private_room_and_a_public_one_of_the_same_name_are_two(shared: Scene) -> None:
    async with peer(shared.ws, token("alice")) as alice, peer(shared.ws, token()) as public:
        await alice.joined("orders:acme")
        await public.joined("orders:acme", private=False)
        shared.send("orders:acme", "secret")
        shared.send("orders:acme", "open", private=False)
        assert (await alice.event("broadcast")).payload["event"] == "secret"
        assert (await public.event("broadcast")).payload["event"] == "open"
        assert await alice.silent() == await public.silent() == []


@awaited
async def test_who_may_not_send_gets_no_reply_and_nobody_gets_the_message(shared: Scene) -> None:
    async with peer(shared.ws, token("alice")) as alice, peer(shared.ws, token("both")) as other:
        await alice.joined("orders:acme", broadcast={"ack": True, "self": True})
        await other.joined("orders:acme")
        said = {"type": "broadcast", "event": "forged", "payload": {}}
        await alice.send(TOPIC, "broadcast", said, join_ref="1", ref="5")
        shared.send("orders:acme", "true")
        assert (await alice.event("broadcast")).payload["event"] == "true"
        assert (await other.event("broadcast")).payload["event"] == "true"
        assert await alice.silent() == await other.silent() == []


@awaited
async def test_what_the_protocol_cannot_carry_is_dropped_and_the_next_goes_on(
    shared: Scene,
) -> None:
    async with peer(shared.ws, token("alice")) as alice:
        await alice.joined("orders:acme")
        insert = (
            "INSERT INTO realtime.messages (topic, extension, event, payload, private)"
            " VALUES ('orders:acme', %s, %s, %s, %s)"
        )
        for values in (
            ("broadcast", None, "{}", True),
            ("broadcast", "e", None, True),
            ("broadcast", "e", "{}", None),
            ("broadcast", "e" * 256, "{}", True),
            ("broadcast", "e", json.dumps("x" * 3_100_000), True),
            ("presence", "e", "{}", True),
            ("broadcast", "good", "[1]", True),
        ):
            shared.db.execute(insert, values)
        assert (await alice.event("broadcast")).payload["event"] == "good"
        assert alice.passed == []


@awaited
async def test_a_transaction_that_commits_late_is_told_when_it_commits_and_never_before(
    shared: Scene,
) -> None:
    """I9 for the feed: also what `send` wrote in a subtransaction, also behind newer ones."""
    async with peer(shared.ws, token("alice")) as alice:
        await alice.joined("orders:acme")
        with psycopg.connect(shared.database) as late, psycopg.connect(shared.database) as never:
            for connection, event in ((late, "late"), (never, "never")):
                connection.execute("SELECT realtime.send('{}', %s, 'orders:acme')", [event])
            shared.send("orders:acme", "newer")
            assert (await alice.event("broadcast")).payload["event"] == "newer"
            assert await alice.silent() == []
            never.rollback()
            late.commit()
        assert (await alice.event("broadcast")).payload["event"] == "late"


@awaited
async def test_a_large_batch_comes_whole_and_in_order(shared: Scene) -> None:
    async with peer(shared.ws, token("alice")) as alice:
        await alice.joined("orders:acme")
        shared.db.execute(
            "INSERT INTO realtime.messages (topic, extension, event, payload, private)"
            " SELECT 'orders:acme', 'broadcast', 'e', jsonb_build_object('n', n), true"
            " FROM generate_series(1, 1500) n"
        )
        heard = [(await alice.event("broadcast")).payload["payload"]["n"] for _ in range(1500)]
        assert heard == list(range(1, 1501))


@awaited
async def test_an_id_that_is_sent_twice_is_told_twice(shared: Scene) -> None:
    """Its key holds the time, too: a second row of the same id is one message more, not two."""
    insert = (
        "INSERT INTO realtime.messages (id, topic, extension, event, payload, private, inserted_at)"
        " VALUES ('6a7b2625-55fd-4b26-8a07-8feea0875b8c', 'orders:acme', 'broadcast', %s, '{}',"
        " true, now() + %s * interval '1 second')"
    )
    async with peer(shared.ws, token("alice")) as alice:
        await alice.joined("orders:acme")
        for number in range(2):
            shared.db.execute(insert, [f"e{number}", number])
            assert (await alice.event("broadcast")).payload["event"] == f"e{number}"
        shared.send("orders:acme", "end")
        assert (await alice.event("broadcast")).payload["event"] == "end"


# -- replay ----------------------------------------------------------------------------------------


@both_versions
@awaited
async def test_a_replay_gives_the_newest_25_oldest_first_and_nothing_twice(
    scene: Scene, version: str
) -> None:
    for n in range(30):
        scene.send("orders:acme", f"e{n}")
    scene.send("orders:acme", "public", private=False)
    scene.send("orders:globex", "theirs")
    async with peer(scene.ws, token("alice"), version) as alice:
        await alice.joined("orders:acme", broadcast={"replay": {"since": 0}})
        told = [await alice.receive() for _ in range(25)]
        assert [one.payload["event"] for one in told] == [f"e{n}" for n in range(5, 30)]
        assert {one.kind for one in told} == {"text"}
        assert all(one.payload["meta"]["replayed"] is True for one in told)
        ids = [one.payload["meta"]["id"] for one in told]
        # The feed announces one of them once more: it is not sent again.
        scene.db.execute("SELECT pg_notify('outbox_realtime', %s)", [ids[-1].replace("-", "")])
        scene.send("orders:acme", "live")
        assert (await alice.receive()).payload["event"] == "live"
        await alice.joined("orders:acme", broadcast={"replay": {"since": 2**52}})
        assert [told.event for told in await alice.silent()] == ["phx_close"]


# -- tokens ----------------------------------------------------------------------------------------


@awaited
async def test_a_new_token_is_judged_anew_and_who_lost_the_right_is_closed(scene: Scene) -> None:
    first = token("alice")
    judged: list[set[str]] = []
    store = scene.server.center.store
    may_read = store.may_read

    async def noted(*args: Any) -> set[str]:
        judged.append(await may_read(*args))
        return judged[-1]

    store.may_read = noted  # type: ignore[method-assign, assignment]
    async with peer(scene.ws, first) as alice:
        await alice.joined("orders:acme")
        for ignored in (first, None, "sb_publishable_x", 5):
            await alice.send(TOPIC, "access_token", {"access_token": ignored}, join_ref="1")
        await alice.send(TOPIC, "access_token", "junk", join_ref="1")
        await alice.send(TOPIC, "access_token", {"access_token": token("alice")}, join_ref="1")
        scene.send("orders:acme", "still")
        assert (await alice.event("broadcast")).payload["event"] == "still"
        assert alice.passed == []
        await asyncio.to_thread(wait_until, lambda: judged == [{"broadcast"}, {"broadcast"}])
        scene.db.execute("DELETE FROM memberships WHERE user_id = %s", [person("alice")])
        scene.send("orders:acme", "until then")  # as with Supabase: judged at join and new token
        assert (await alice.event("broadcast")).payload["event"] == "until then"
        again = {"access_token": token("alice", nonce=2)}
        await alice.send(TOPIC, "access_token", again, join_ref="1")
        told = await alice.receive()
        assert (told.event, told.payload) == (
            "system",
            {
                "extension": "system",
                "status": "error",
                "message": "You no longer have permission to read from this Channel topic: "
                "orders:acme",
                "channel": "orders:acme",
            },
        )
        assert (await alice.receive())[:4] == ("1", "1", TOPIC, "phx_close")
        await alice.joined("news", private=False)
        scene.send("orders:acme", "not any more")
        scene.send("news", "end", private=False)
        assert (await alice.event("broadcast")).payload["event"] == "end"


@awaited
async def test_a_new_token_is_asked_anew_whether_it_may_send(scene: Scene) -> None:
    """Of one channel: what an administrator's token may send is no more sent under a member's."""
    scene.db.execute(
        "CREATE POLICY senders ON realtime.messages FOR INSERT TO authenticated"
        " WITH CHECK ((SELECT auth.jwt()) ->> 'may' = 'send')"
    )
    said = {"type": "broadcast", "event": "said", "payload": {}}
    async with peer(scene.ws, token("alice", may="send")) as alice:
        await alice.joined("orders:acme", broadcast={"ack": True, "self": True})
        await alice.send(TOPIC, "broadcast", said, join_ref="1", ref="5")
        assert (await alice.event("phx_reply")).ref == "5"
        await alice.send(TOPIC, "access_token", {"access_token": token("alice")}, join_ref="1")
        await alice.send(TOPIC, "broadcast", said, join_ref="1", ref="6")
        await alice.send(TOPIC, "phx_leave", {}, join_ref="1", ref="7")
        assert (await alice.event("phx_reply")).ref == "7"


@awaited
async def test_a_token_that_ends_closes_its_channels_and_an_expired_one_at_once(
    shared: Scene,
) -> None:
    async with peer(shared.ws, token("alice")) as alice:
        await alice.joined("orders:acme", token=token("alice", lasts_s=0.3))
        told = await alice.event("system")
        assert told.payload["message"] == "Token has expired 0 seconds ago"
        await alice.event("phx_close")
        await alice.joined("orders:acme")
        old = {"access_token": token("alice", lasts_s=-3)}
        await alice.send(TOPIC, "access_token", old, join_ref="2")
        assert (await alice.event("system")).payload["message"] in {
            f"Token has expired {n} seconds ago" for n in (3, 4)
        }
        await alice.event("phx_close")


# -- what a server does ----------------------------------------------------------------------------


@awaited
async def test_too_many_messages_end_the_channel(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(replace(QUICK, events_per_s=5))
    now = time.time()
    scene.server.center.events._clock = lambda: now  # rates are those of whole seconds
    async with peer(scene.ws, token("alice")) as alice:
        await alice.joined("room", private=False)
        said = {"type": "broadcast", "event": "e", "payload": {}}

        for _ in range(10):
            await alice.send("realtime:room", "broadcast", said, join_ref="1")
        assert await alice.silent() == []
        scene.server.center.events._clock = lambda: now + 1
        await alice.send("realtime:room", "broadcast", said, join_ref="1")
        told = await alice.event("system")
        assert told.payload["message"] == "Too many messages per second"
        assert (await alice.receive()).event == "phx_close"


@awaited
async def test_a_server_that_stops_tells_its_clients_first(
    make_scene: Callable[..., Scene],
) -> None:
    scene = make_scene()
    async with peer(scene.ws, token("alice")) as alice:
        await alice.joined("orders:acme")
        await asyncio.to_thread(scene.stop)
        assert (await alice.event("system")).payload["message"] == "Server requested disconnect"
        assert await alice.closed() == 1012


@awaited
async def test_when_the_feed_breaks_every_client_is_sent_away_and_may_come_back(
    scene: Scene,
) -> None:
    async with peer(scene.ws, token("alice")) as alice:
        await alice.joined("orders:acme")
        scene.db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE 'outbox realtime%'"
        )
        assert await alice.closed() == 1012
    feed = scene.server.center.replicating
    await asyncio.to_thread(wait_until, feed.is_set)
    async with peer(scene.ws, token("alice")) as alice:
        await alice.joined("orders:acme", broadcast={"replication_ready": True})
        told = await alice.event("system")
        assert told.payload["message"] == "Replication connection established"
        scene.send("orders:acme", "back")
        assert (await alice.event("broadcast")).payload["event"] == "back"


@awaited
async def test_a_channel_that_is_not_fed_in_time_is_closed(scene: Scene) -> None:
    scene.server.center.limits = replace(QUICK, replication_s=0.05)
    async with peer(scene.ws, token("alice")) as alice:
        scene.server.center.replicating.clear()
        await alice.joined("orders:acme", broadcast={"replication_ready": True})
        told = await alice.event("system")
        assert told.payload["message"] == ("Replication connection was not established in time")
        await alice.event("phx_close")
    with pytest.raises(InvalidStatus, match="500"):
        async with peer(scene.ws, token("alice")):
            pass


@awaited
async def test_a_channel_that_crashes_says_so_and_can_be_joined_again(
    shared: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object, **_kwargs: object) -> int:
        raise RuntimeError("broken")

    async with peer(shared.ws, token("alice")) as alice:
        await alice.joined("room", private=False)
        with monkeypatch.context() as patch:
            patch.setattr(shared.server.center.hub, "publish", broken)
            said = {"type": "broadcast", "event": "e", "payload": {}}
            await alice.send("realtime:room", "broadcast", said, join_ref="1")
            told = await alice.event("phx_error")
        assert (told.ref, told.payload) == ("1", {"reason": "channel_crash"})
        await alice.joined("room", private=False)


@awaited
async def test_a_client_that_says_nothing_is_hung_up_on(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(replace(QUICK, idle_s=0.1))
    async with peer(scene.ws, token("alice")) as alice:
        assert await alice.closed() == 1000


@awaited
async def test_a_client_that_does_not_read_is_cut_off() -> None:
    closed: list[int] = []
    reading = asyncio.Event()

    class Stuck:
        async def receive(self) -> str | bytes | None:
            await asyncio.Event().wait()
            return None

        async def send(self, frame: str | bytes) -> None:
            await reading.wait()

        async def close(self, code: int) -> None:
            closed.append(code)

    class Center:
        limits = Limits(queue_max=5)

    session = Session(Center(), Stuck(), V2, "", {})  # type: ignore[arg-type]
    running = asyncio.create_task(session.run())
    for n in range(20):
        session.send(str(n))
        await asyncio.sleep(0)
    reading.set()
    await running
    assert closed == [1001]


@awaited
async def test_a_table_without_todays_partition_is_told_as_such(scene: Scene) -> None:
    # The server makes them when it starts, perhaps only now.
    scene.db.execute(
        "CREATE OR REPLACE FUNCTION outbox.keep_realtime_partitions("
        "now timestamptz DEFAULT clock_timestamp()) RETURNS void LANGUAGE sql AS ''"
    )
    making = (
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()"
        " AND datname = current_database() AND query ~ 'keep_realtime_partitions'"
    )
    while scene.db.execute(making).fetchall() != [(0,)]:
        await asyncio.sleep(0.005)
    scene.db.execute(
        "DO $$ DECLARE t text; BEGIN FOR t IN SELECT inhrelid::regclass FROM pg_inherits"
        " WHERE inhparent = 'realtime.messages'::regclass LOOP EXECUTE 'DROP TABLE ' || t;"
        " END LOOP; END $$"
    )
    admin = {"authorization": f"Bearer {token(role='service_role')}"}
    body = {"topic": "orders:acme", "event": "e", "payload": {}, "private": True}
    async with peer(scene.ws, token("alice")) as alice:
        assert (await alice.refused("orders:acme")).startswith("MissingPartition: ")
    with httpx.Client(base_url=scene.url, headers=admin) as rest:
        for answer in (
            rest.post("/api/broadcast", json={"messages": [body]}),
            rest.post("/api/broadcast/orders:acme/events/e?private=true", json={}),
        ):
            assert (answer.status_code, answer.json()) == (
                422,
                {"message": "Missing messages partition"},
            )


# -- presence and what is not served ---------------------------------------------------------------


@both_versions
@awaited
async def test_presence_is_told_to_those_who_asked(shared: Scene, version: str) -> None:
    async with (
        peer(shared.ws, token("alice"), version) as alice,
        peer(shared.ws, token("greta"), version) as greta,
        peer(shared.ws, token("both"), version) as deaf,
    ):
        await alice.joined("lobby", private=False, presence={"enabled": True, "key": "a"})
        assert (await alice.event("presence_state")).payload == {}
        await deaf.joined("lobby", private=False)
        track = {"type": "presence", "event": "track", "payload": {"typing": True}}
        await alice.send("realtime:lobby", "presence", track, join_ref="1", ref="5")
        diff = (await alice.event("presence_diff")).payload
        assert diff["joins"]["a"]["metas"][0]["typing"] is True
        assert (await alice.event("phx_reply")).payload["status"] == "ok"
        await greta.joined("lobby", private=False, presence={"enabled": True, "key": "g"})
        state = (await greta.event("presence_state")).payload
        assert list(state) == ["a"]
        await alice.send("realtime:lobby", "phx_leave", {}, join_ref="1")
        assert list((await greta.event("presence_diff")).payload["leaves"]) == ["a"]
        await greta.send("realtime:lobby", "presence", track, join_ref="1")
        assert list((await greta.event("presence_diff")).payload["joins"]) == ["g"]
        untrack = {"type": "presence", "event": "untrack"}
        await greta.send("realtime:lobby", "presence", untrack, join_ref="1")
        assert list((await greta.event("presence_diff")).payload["leaves"]) == ["g"]
        assert await deaf.silent() == []


@awaited
async def test_presence_in_a_private_channel_needs_a_policy_and_table_changes_are_not_served(
    shared: Scene,
) -> None:
    async with peer(shared.ws, token("alice")) as alice:
        changes = [{"event": "*", "schema": "public", "table": "orders"}]
        await alice.joined(
            "orders:acme", presence={"enabled": True, "key": "a"}, postgres_changes=changes
        )
        told = await alice.event("system")
        assert told.payload["extension"] == "postgres_changes"
        assert told.payload["status"] == "error"
        track = {"type": "presence", "event": "track", "payload": {}}
        await alice.send(TOPIC, "presence", track, join_ref="1", ref="5")
        alice.passed.clear()
        assert await alice.silent() == []
