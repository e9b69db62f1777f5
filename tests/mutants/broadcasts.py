"""Mutants of broadcasts: what a message holds, where it goes, what a refusal does to others."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant, statement

_SQL = "tests/broadcast/test_sql.py::test_"
_HTTP = "tests/broadcast/test_http.py::test_"
_DIRECT = "tests/broadcast/test_direct.py::test_"
_FRONTS = "tests/broadcast/test_fronts.py::test_"
_CUT_OFF = "tests/broadcast/test_cut_off.py::test_"
_LEVEL_15 = "sql/migrations/0015_broadcast.sql"
_LEVEL_19 = "sql/migrations/0019_due_walk.sql"
_STORE = "outbox/store/broadcasts.py"
_REST = "processors/broadcast.py"

BROADCASTS = (
    # -- what is told, and to whom ----------------------------------------------------------------
    Mutant(
        "broadcast-whole-record",
        "a broadcast holds columns that are not on the list",
        "broadcasts are hints",
        (
            Edit(
                _LEVEL_19,
                "jsonb_typeof(e.record) = 'object' THEN coalesce((",
                "jsonb_typeof(e.record) = 'object' THEN e.record || coalesce((",
            ),
        ),
        (_SQL + "a_broadcast_is_a_hint_with_the_columns_on_the_list",),
    ),
    Mutant(
        "broadcast-one-topic",
        "the topic does not name the organization: one topic for all",
        "I14",
        (
            Edit(
                _LEVEL_19,
                "(m.config ->> 'prefix') || ':' || m.event_org AS topic",
                "(m.config ->> 'prefix') || ':all' AS topic",
            ),
        ),
        (_SQL + "organizations_get_their_own_topics",),
    ),
    Mutant(
        "broadcast-numbers-damaged",
        "a number that a double cannot hold is sent as a number",
        "what clients read is what was written",
        (
            Edit(
                _LEVEL_19,
                "THEN outbox.broadcast_value(e.record -> n.name) ELSE",
                "THEN e.record -> n.name ELSE",
            ),
        ),
        (_SQL + "a_number_that_a_client_would_damage_is_a_string",),
    ),
    Mutant(
        "direct-tells-the-former",
        "a row that moved sends its former organization the new record",
        "I14",
        (
            Edit(
                _LEVEL_15,
                "'DELETE', TG_TABLE_NAME, TG_TABLE_SCHEMA, NULL, _old);",
                "'DELETE', TG_TABLE_NAME, TG_TABLE_SCHEMA, _new, _old);",
            ),
        ),
        (_DIRECT + "a_row_that_moves_is_gone_for_one_and_new_for_the_other",),
    ),
    Mutant(
        "direct-whole-row",
        "a table's own broadcasts hold every column of the row",
        "broadcasts are hints",
        (Edit(_LEVEL_15, "        SELECT %3$s INTO _new;\n", "        SELECT NEW.* INTO _new;\n"),),
        (_DIRECT + "each_change_goes_to_its_organization_with_the_columns_on_the_list",),
    ),
    # -- fronts -----------------------------------------------------------------------------------
    Mutant(
        "broadcast-front-too-far",
        "a broadcaster's front is where it last saw nothing, whatever is still to be committed",
        "live updates come at once",
        (Edit(_STORE, "Fronts(MARGIN_S, ", "Fronts(0.0, "),),
        (_FRONTS + "what_is_committed_later_than_it_says_is_found_without_a_walk",),
    ),
    Mutant(
        "broadcast-of-a-new-lane-waits",
        "a broadcaster that was rung and knows of nothing rests until its next look",
        "live updates come at once",
        (Edit(_STORE, "if not walk:  # whoever", "if False:  # whoever"),),
        (_FRONTS + "a_lane_that_nobody_knew_is_found_by_the_next_walk",),
    ),
    Mutant(
        "broadcasts-pass-the-dead",
        "broadcasts are claimed from the beginning of their lane on",
        "a held snapshot costs nothing",
        (Edit(_LEVEL_19, "d.due_at >= l.front AND ", ""),),
        (_FRONTS + "broadcasts_cost_the_same_while_somebody_holds_a_snapshot",),
    ),
    Mutant(
        "broadcast-walks-once",
        "what lies behind a front is never found",
        "live updates come",
        (Edit(_STORE, "walk = self._walks.due(began)", "walk = self._walks.next_at < 0"),),
        (_FRONTS + "what_is_committed_later_than_it_says_is_found_without_a_walk",),
    ),
    # -- message and settle -----------------------------------------------------------------------
    Mutant(
        "broadcast-unfit-vanishes",
        "what cannot be a message is gone without a dead letter",
        "I1",
        (
            statement(
                "broadcast_send",
                "FROM clock, judged j WHERE j.unfit IS NOT NULL AND NOT j.passed\n",
                "FROM clock, judged j WHERE false\n",
            ),
        ),
        (_SQL + "what_a_client_could_not_be_sent_is_a_dead_letter",),
    ),
    Mutant(
        "broadcast-silence-believed",
        "realtime.send, which never raises, is believed to have sent",
        "I1",
        (
            Edit(_STORE, "        if self._warnings:\n", "        if False:\n"),
            Edit(_STORE, "        if reads:\n", "        if False:\n"),
        ),
        (_SQL + "without_the_right_to_write_rows_the_function_sends",),
    ),
    Mutant(
        "broadcast-stale-written",
        "a message is written though somebody else has its lease by now",
        "I3",
        (
            Edit(
                _STORE,
                "kept = [message for message in messages if message.id in ours]",
                "kept = list(messages)",
            ),
        ),
        (_SQL + "who_lost_its_lease_writes_nothing",),
    ),
    Mutant(
        "broadcast-before-settle",
        "in halves, a message is committed before its settle",
        "message and settle are one transaction",
        (
            Edit(
                _STORE,
                "            async with self._connection.raw.transaction():\n",
                "            if True:\n",
            ),
        ),
        (_CUT_OFF + "over_rows_a_message_is_there_once_wherever_a_daemon_dies",),
    ),
    Mutant(
        "broadcast-place-condemns",
        "what is wrong with Supabase's table makes dead letters",
        "what passes is tried again",
        (
            Edit(
                _STORE,
                "MessageRefused(_PLACE[state], describe(error), lasting=False)",
                "MessageRefused(_PLACE[state], describe(error), lasting=True)",
            ),
        ),
        (_SQL + "a_message_and_its_settle_are_one_transaction",),
    ),
    Mutant(
        "broadcast-row-sinks",
        "one message that the table refuses condemns the batch",
        "a failure is its own",
        (
            Edit(
                "outbox/broadcast.py",
                "if len(messages) == 1 or not (refusal.lasting or not rows):",
                "if messages:",
            ),
        ),
        (_SQL + "one_bad_row_does_not_sink_the_batch",),
    ),
    # -- over http --------------------------------------------------------------------------------
    Mutant(
        "broadcast-422-sinks",
        "a 422 condemns the whole batch",
        "a failure is its own",
        (Edit(_REST, "if response.status == 422 and len(messages) > 1:", "if False:"),),
        (_HTTP + "one_bad_message_does_not_sink_the_batch",),
    ),
    Mutant(
        "broadcast-skip-delivered",
        "private messages that the server skips in silence count as delivered",
        "I1",
        (
            Edit(
                _REST,
                "if private is not None and self._clock() >= self._allowed_until:",
                "if False:",
            ),
        ),
        (_HTTP + "a_private_message_that_may_not_be_sent_is_found_out",),
    ),
)
