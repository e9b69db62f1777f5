"""Mutants of what looks back at the log: rebuild, redaction, replay."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant, statement

_DAMAGE = "tests/rebuild/test_damage.py::test_"
_MENDING = "tests/rebuild/test_mending.py::test_"
_REDACTION = "tests/admin/test_redaction.py::test_"
_FATES = "tests/replay/test_fates.py::test_"
_CHOICE = "tests/replay/test_choice.py::test_"
_GENERATIONS = "tests/replay/test_generations.py::test_"
_RUNNING = "tests/replay/test_running.py::test_"
_LEVEL_10 = "sql/migrations/0010_order_health_replay.sql"

REPEATING = (
    # -- rebuild --------------------------------------------------------------------------------
    Mutant(
        "rebuild-blind",
        "a rebuild does not compare attempts",
        "I13",
        (
            Edit(
                "outbox/store/rebuild_fold.py",
                '*("order_key", "attempts", "budget",',
                '*("order_key", "budget",',
            ),
        ),
        (_DAMAGE + "the_lists_above_know_every_column",),
    ),
    Mutant(
        "rebuild-forgets-held",
        "a rebuild counts the time held against the maximum age",
        "I13",
        (
            Edit(
                "outbox/store/rebuild_fold.py",
                "self.age_limit_at = after(self.age_limit_at, stood)",
                "pass",
            ),
        ),
        (_DAMAGE + "damage_is_named_and_mended",),
    ),
    Mutant(
        "rebuild-keeps-extra",
        "a rebuild leaves one of the rows that no fact asks for",
        "I6, I13",
        (
            statement(
                "rebuild_drop_live",
                "ANY (%(ids)s::uuid[])",
                "ANY ((%(ids)s::uuid[])[2:])",
            ),
        ),
        (_DAMAGE + "damage_is_named_and_mended[ended ones alive]",),
    ),
    Mutant(
        "rebuild-touches-leased",
        "a rebuild changes a row that is leased",
        "I2, I13",
        (
            Edit("outbox/store/rebuild_mend.py", "sorted(differs - leased)", "sorted(differs)"),
            statement(
                "rebuild_put_live",
                "excluded.again\nWHERE %(known)s::boolean AND d.state <> 'leased'",
                "excluded.again, token = NULL, lease_until = NULL, started_at = NULL",
            ),
        ),
        (_MENDING + "a_leased_row_is_left_alone_until_its_lease_ends",),
    ),
    Mutant(
        "rebuild-without-row-locks",
        "a rebuild does not wait for who holds the row",
        "I13 under load",
        (statement("rebuild_lock_dead", "FOR UPDATE", ""),),
        (_MENDING + "mending_waits_for_who_holds_the_row_and_believes_what_he_wrote",),
    ),
    Mutant(
        "rebuild-without-lock",
        "a rebuild does not take the dispatch lock",
        "one order of locks",
        (
            Edit(
                "outbox/store/rebuild_mend.py",
                'statement("config_lock"))\n        writer.execute(statement("rebuild_lock',
                'statement("rebuild_lock',
            ),
        ),
        (_MENDING + "mending_keeps_the_order_of_locks",),
    ),
    Mutant(
        "rebuild-calls-nobody",
        "ordered deliveries that a rebuild brings back get no turn",
        "I1: an ordered key never stands still",
        (
            Edit(
                "outbox/store/rebuild_mend.py",
                '        writer.execute(statement("rebuild_signal"), {"ids": mended})\n',
                "",
            ),
        ),
        (_MENDING + "ordered_deliveries_that_come_back_get_their_turns",),
    ),
    # -- redaction ------------------------------------------------------------------------------
    Mutant(
        "redact-leaves-headers",
        "a redacted event keeps its headers",
        "erasure",
        (
            statement("redact_events", " headers = NULL,", ""),
            Edit(_LEVEL_10, "AND NEW.headers IS NULL AND", "AND"),
        ),
        (_REDACTION + "no_trace_is_left_in_any_table_nor_in_the_statistics",),
    ),
    Mutant(
        "redact-leaves-answers",
        "the journal keeps what receivers answered about a redacted event",
        "erasure",
        (
            statement(
                "redact_facts", "AND j.fact NOT IN ('routed', 'redacted')", "AND j.fact = 'nothing'"
            ),
        ),
        (_REDACTION + "no_trace_is_left_in_any_table_nor_in_the_statistics",),
    ),
    Mutant(
        "redact-one-slot",
        "an event that was carried keeps its contents in one of its slots",
        "erasure",
        (statement("redact_events", "'{0,1,2,3,4,5,6,7}'", "'{0,1}'"),),
        (_REDACTION + "an_event_in_two_slots_is_found_once_and_redacted_in_both",),
    ),
    Mutant(
        "redact-without-fact",
        "a redaction leaves no fact",
        "I7: redaction is a fact",
        (
            statement(
                "redact_end", "    FROM clock, events e\n", "    FROM clock, events e WHERE false\n"
            ),
        ),
        (_REDACTION + "what_stays_is_which_event_when_and_what_became_of_it",),
    ),
    Mutant(
        "redact-writes-anything",
        "whoever says that he redacts may write other contents into the log",
        "I7",
        (
            Edit(
                _LEVEL_10,
                "NEW.payload::pg_catalog.text = outbox.tombstone()::pg_catalog.text",
                "true",
            ),
        ),
        ("tests/schema/test_rights.py::test_who_redacts_may_write_the_tombstone_and_nothing_else",),
    ),
    # -- replay ---------------------------------------------------------------------------------
    Mutant(
        "replay-the-cancelled",
        "a replay sends what was called off",
        "I6",
        (
            statement(
                "replay_batch",
                "p.state NOT IN ('dead', 'delivered', 'ended', 'new')",
                "p.state NOT IN ('dead', 'delivered', 'ended', 'new', 'cancelled')",
            ),
        ),
        (_FATES + "each_pair_meets_its_fate_and_the_dry_run_said_so",),
    ),
    Mutant(
        "replay-the-redacted",
        "a replay sends tombstones",
        "erasure",
        (
            statement(
                "replay_batch", "WHEN p.redacted THEN 'redacted'", "WHEN false THEN 'redacted'"
            ),
        ),
        (_FATES + "each_pair_meets_its_fate_and_the_dry_run_said_so",),
    ),
    Mutant(
        "replay-the-expired",
        "a replay sends what is past its expiry, unasked",
        "expired ones need --ignore-expiry",
        (
            statement(
                "replay_batch",
                "s.expires_at <= clock.now AND NOT %(ignore_expiry)s::boolean",
                "false",
            ),
        ),
        (_FATES + "what_is_past_its_expiry_goes_out_only_when_asked_for_and_then_without_one",),
    ),
    Mutant(
        "replay-without-fact",
        "a replay writes no facts about what it sends",
        "I13",
        (
            statement(
                "replay_batch",
                "    FROM clock, judged j\n    WHERE j.fate IN ('due_now',",
                "    FROM clock, judged j\n    WHERE false AND j.fate IN ('due_now',",
            ),
        ),
        (_FATES + "a_delivered_one_starts_again_under_its_key_with_a_fresh_budget",),
    ),
    Mutant(
        "replay-without-budget",
        "a replayed delivery goes on in its old budget",
        "I4",
        (
            statement(
                "replay_batch",
                "f.age_limit_at, 0, f.budget + 1, 0,",
                "f.age_limit_at, 0, f.budget, 0,",
            ),
        ),
        (_FATES + "a_delivered_one_starts_again_under_its_key_with_a_fresh_budget",),
    ),
    Mutant(
        "replay-keeps-the-dead",
        "a replay of a dead letter leaves the letter: dead and live at once",
        "I6, I13",
        (
            statement(
                "replay_batch",
                "SELECT f.id FROM fresh f WHERE f.fate = 'redriven'",
                "SELECT f.id FROM fresh f WHERE f.fate = 'nothing'",
            ),
        ),
        (_FATES + "a_dead_one_is_redriven_and_keeps_its_history",),
    ),
    Mutant(
        "replay-in-front",
        "replayed deliveries go before fresh ones",
        "I15",
        (statement("replay_batch", "f.key, true, CASE WHEN", "f.key, false, CASE WHEN"),),
        (_FATES + "fresh_deliveries_go_before_replayed_ones",),
    ),
    Mutant(
        "replay-out-of-turn",
        "a replayed delivery of an ordered subscription does not wait for its turn",
        "I8",
        (
            statement(
                "replay_batch",
                "CASE WHEN x.key IS NOT NULL THEN 'order' ELSE x.stopped END AS held_reason",
                "x.stopped AS held_reason",
            ),
        ),
        (_FATES + "an_ordered_one_waits_for_its_turn",),
    ),
    Mutant(
        "replay-unfenced",
        "a batch of a replay counts wherever the replay stands by now",
        "I12",
        (
            statement(
                "replay_batch",
                "AND r.position = %(position)s::bigint",
                "",
            ),
        ),
        (_RUNNING + "a_batch_that_was_overtaken_counts_for_nothing_while_the_replay_goes_on",),
    ),
    Mutant(
        "replay-though-paused",
        "a paused replay goes on",
        "a replay can be paused and aborted",
        (statement("replay_batch", "AND r.state = 'running' AND r.position", "AND r.position"),),
        (_RUNNING + "a_batch_that_a_pause_overtakes_changes_nothing",),
    ),
    Mutant(
        "replay-begins-anew",
        "a replay of an id that exists begins again",
        "I12",
        (
            statement(
                "replay_add",
                "ON CONFLICT (id) DO NOTHING",
                "ON CONFLICT (id) DO UPDATE SET state = 'running', position = excluded.position",
            ),
        ),
        (_RUNNING + "the_same_id_twice_is_one_replay",),
    ),
    Mutant(
        "backfill-any-organization",
        "a backfill gives a subscription the events of another organization",
        "I14",
        (
            statement(
                "replay_look",
                "SELECT FROM subs s WHERE (s.all_orgs OR s.org_id = e.org_id)",
                "SELECT FROM subs s WHERE (true)",
            ),
            statement(
                "replay_batch",
                "WHERE s.id = p.subscription_id AND (s.all_orgs OR s.org_id = p.org_id)",
                "WHERE s.id = p.subscription_id",
            ),
        ),
        (_CHOICE + "a_backfill_gives_a_subscription_no_event_of_another_organization",),
    ),
    Mutant(
        "replay-any-organization",
        "a replay for one organization sends what another got",
        "I14",
        (
            statement(
                "replay_look",
                "WHERE (%(org_id)s::text IS NULL OR e.org_id = %(org_id)s::text)\n",
                "WHERE true\n",
            ),
            statement(
                "replay_batch",
                "\n          AND (%(org_id)s::text IS NULL OR e.org_id = %(org_id)s::text)",
                "",
            ),
        ),
        (_CHOICE + "a_replay_for_one_organization_touches_no_other",),
    ),
    Mutant(
        "backfill-overtakes-routing",
        "a backfill does not wait for events that are still to be routed",
        "a pair is routed or backfilled once",
        (
            statement(
                "replay_look",
                "SELECT p.id - 1 FROM outbox.pending p WHERE",
                "SELECT p.id - 1 FROM outbox.pending p WHERE false AND",
            ),
        ),
        (_GENERATIONS + "a_backfill_waits_until_what_is_pending_is_routed",),
    ),
    Mutant(
        "re-emit-beside-live",
        "a re-emission does not leave alone what is still owed",
        "no duplicates of what is under way",
        (
            statement(
                "replay_batch",
                "WHEN bool_or(f.state IN ('scheduled', 'leased', 'held', 'busy')) THEN 'live'",
                "WHEN false THEN 'live'",
            ),
        ),
        (_GENERATIONS + "a_re_emission_leaves_alone_what_is_live_or_was_called_off",),
    ),
    Mutant(
        "replay-rate-ignored",
        "a replay spends no tokens",
        "a replay keeps its rate",
        (Edit("outbox/store/replaying.py", "        walk.tokens -= done.changed\n", ""),),
        (_RUNNING + "a_replay_keeps_its_rate",),
    ),
    Mutant(
        "re-emit-in-disguise",
        "a re-emitted request does not say that it is one",
        "a new generation says so in its headers",
        (
            Edit(
                "processors/webhook.py",
                "            lines += _generation_headers(work.generation, work.original_id)\n",
                "            pass\n",
            ),
        ),
        ("tests/replay/test_headers.py::test_a_receiver_can_tell_a_redelivery_from_a_re_emission",),
    ),
)
