"""Mutants of Realtime: the policies that keep organizations apart, and the stand-in's judgement."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant, statement

_POLICIES = "tests/realtime/test_policies.py::test_"
_CROSSING = "tests/realtime/test_crossing.py::test_"
_PROTOCOL = "tests/realtime/test_protocol.py::test_"
_REST = "tests/realtime/test_rest.py::test_"
_LEVEL_14 = "sql/migrations/0014_realtime.sql"

REALTIME = (
    # -- policies ---------------------------------------------------------------------------------
    Mutant(
        "policy-any-topic",
        "the policy does not compare the row's topic with the member's organization",
        "I14",
        (
            Edit(
                _LEVEL_14,
                'AND messages.topic = (%L || m.%I::text) COLLATE "C"))',
                "AND (%L || m.%I::text) IS NOT NULL))",
            ),
        ),
        (
            _CROSSING + "by_sql_nothing_of_acmes_is_seen_or_changed"
            "[SQL: acme's topic set, select everything]",
        ),
    ),
    Mutant(
        "policy-any-user",
        "the policy does not ask who the user is",
        "I14",
        (
            Edit(
                _LEVEL_14,
                "WHERE %s AND m.%I::text <> ''",
                "WHERE (%s OR true) AND m.%I::text <> ''",
            ),
        ),
        (_CROSSING + "by_sql_no_odd_subject_is_a_member",),
    ),
    Mutant(
        "policy-lets-send",
        "who may receive may send as well",
        "nobody may send",
        (
            Edit(
                _LEVEL_14,
                "ON realtime.messages FOR SELECT TO authenticated USING (",
                "ON realtime.messages TO authenticated USING (",
            ),
        ),
        (_PROTOCOL + "who_may_not_send_gets_no_reply_and_nobody_gets_the_message",),
    ),
    Mutant(
        "policy-open-membership",
        "a table that any user may write is taken for the list of members",
        "policies that would not hold are refused",
        (
            Edit(
                _LEVEL_14,
                "ELSIF NOT v_secured AND pg_catalog.has_any_column_privilege(",
                "ELSIF v_secured AND pg_catalog.has_any_column_privilege(",
            ),
        ),
        (_POLICIES + "policies_that_would_not_hold_are_refused",),
    ),
    # -- the stand-in -----------------------------------------------------------------------------
    Mutant(
        "realtime-join-unasked",
        "a private topic is joined without asking the policies",
        "I14",
        (
            Edit(
                "outbox/realtime/channel.py",
                "        if self._join.private and not await self._may_read():\n"
                "            return joining.unreadable",
                "        if False:\n            return joining.unreadable",
            ),
        ),
        (_CROSSING + "by_network_nothing_of_acmes_comes_through[websocket: join acme's topic]",),
    ),
    Mutant(
        "realtime-send-unasked",
        "a batch's private messages are sent without asking the policies",
        "nobody may send",
        (Edit("outbox/realtime/rest.py", "if private and not may[topic]:", "if False:"),),
        (_REST + "of_a_batch_the_private_messages_that_may_not_be_sent_are_skipped_silently",),
    ),
    Mutant(
        "realtime-one-room",
        "who joins a public room gets what is sent to the private one of its name",
        "I14",
        (
            Edit(
                "outbox/realtime/hub.py",
                "        room.members[member] = None\n        return room\n",
                "        room.members[member] = None\n"
                "        self._rooms.setdefault((True, sub_topic), Room()).members[member] = None\n"
                "        return room\n",
            ),
        ),
        (_PROTOCOL + "a_private_room_and_a_public_one_of_the_same_name_are_two",),
    ),
    Mutant(
        "realtime-right-outlives-token",
        "a new token does not end the right to read that the former one had",
        "a right ends with what gave it",
        (
            Edit(
                "outbox/realtime/channel.py",
                "            if self._join.private and not await self._may_read():\n"
                "                return self._shut(",
                "            if False:\n                return self._shut(",
            ),
        ),
        (_PROTOCOL + "a_new_token_is_judged_anew_and_who_lost_the_right_is_closed",),
    ),
    Mutant(
        "realtime-send-outlives-token",
        "the right to send is that of the first token",
        "a right ends with what gave it",
        (Edit("outbox/realtime/channel.py", "        self._writable.clear()\n", ""),),
        (_PROTOCOL + "a_new_token_is_asked_anew_whether_it_may_send",),
    ),
    Mutant(
        "realtime-role-not-in-force",
        "policies are asked as the server where the token's role is a word that changes nothing",
        "I14",
        (
            statement(
                "realtime_seen", " AND current_user = %(role)s", " AND %(role)s::text IS NOT NULL"
            ),
        ),
        (
            _CROSSING + "by_network_nothing_of_acmes_comes_through"
            "[websocket: signed tokens with an odd subject or claims that are not asked]",
        ),
    ),
    Mutant(
        "realtime-token-unsigned",
        "a token is believed without its signature",
        "a token of no known key is none",
        (
            Edit(
                "outbox/realtime/tokens.py",
                '_OURS: Options = {"verify_exp": False,',
                '_OURS: Options = {"verify_signature": False, "verify_exp": False,',
            ),
        ),
        ("tests/realtime/test_tokens.py::test_a_token_of_no_known_key_is_not",),
    ),
)
