"""Mutants of the options of subscriptions, of schedules, and of attempts that last."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant, statement

_OPTIONS = "tests/engine/test_options.py::test_"
_SCHEDULES = "tests/own/test_schedules.py::test_"
_RUNNING = "tests/own/test_running.py::test_"
_PERFORMING = "tests/own/test_performing.py::test_"
_KINDS = "tests/engine/test_kinds.py::test_"
_LEVEL_11 = "sql/migrations/0011_kinds.sql"

OWN = (
    Mutant(
        "key-without-limit",
        "a key's turns are not counted at routing",
        "concurrency by key",
        (
            statement(
                "route", "LIMIT m.key_concurrency) x) <= m.key_concurrency", "LIMIT 0) x) <= 9"
            ),
        ),
        (_OPTIONS + "of_a_key_only_so_many_are_under_way",),
    ),
    Mutant(
        "key-turn-too-many",
        "a signal gives a key one turn more than it has",
        "concurrency by key",
        (
            statement(
                "order_advance", "s.key_concurrency - count(*)", "s.key_concurrency + 1 - count(*)"
            ),
        ),
        (_OPTIONS + "of_a_key_only_so_many_are_under_way",),
    ),
    Mutant(
        "keys-of-all-organizations",
        "keys of two organizations are one",
        "I14",
        (
            Edit(
                _LEVEL_11,
                "convert_to(coalesce(org_id, '') || E'\\x01' || key, 'UTF8')",
                "convert_to(key, 'UTF8')",
            ),
        ),
        (_OPTIONS + "keys_of_two_organizations_never_meet",),
    ),
    Mutant(
        "once-is-for-ever",
        "a key that was used once is never free again",
        "once by key",
        (Edit(_LEVEL_11, "WHERE k.until <= use_keys.now\n", "WHERE false\n"),),
        (_OPTIONS + "of_a_key_the_first_is_delivered_and_the_others_are_told_of",),
    ),
    Mutant(
        "dropped-untold",
        "what a key drops is not told of",
        "I13",
        (
            Edit(
                _LEVEL_11,
                "WHERE j.dropped IS NOT NULL\n        UNION",
                "WHERE false\n        UNION",
            ),
        ),
        (_OPTIONS + "of_a_key_the_first_is_delivered_and_the_others_are_told_of",),
    ),
    Mutant(
        "debounce-for-ever",
        "a key that never rests is never delivered",
        "debounce",
        (Edit(_LEVEL_11, "x.begun + x.debounce_max))", "x.due_at + interval '1 day'))"),),
        (_OPTIONS + "of_a_key_the_latest_is_delivered_when_it_rests",),
    ),
    Mutant(
        "tick-of-each-daemon",
        "a schedule is moved on from wherever it stands",
        "a tick is one event",
        (statement("schedule_fire", "AND s.next_at = %(expected)s::timestamptz", ""),),
        (_SCHEDULES + "a_tick_is_one_event_however_many_daemons_run",),
    ),
    Mutant(
        "pause-is-missed",
        "ticks of a pause are emitted after it",
        "a pause is one",
        (
            statement(
                "schedule_state",
                "ELSE coalesce(%(next_at)s::timestamptz, s.next_at) END",
                "ELSE s.next_at END",
            ),
        ),
        (_SCHEDULES + "a_pause_emits_nothing_and_misses_nothing",),
    ),
    Mutant(
        "cancel-unheard",
        "a running attempt hears of its cancel when its lease ends",
        "a cancel stops a running attempt",
        (
            Edit(
                "outbox/watch.py",
                "        lost = [one.id for one in told if one.id not in held]",
                "        lost = list[UUID]()",
            ),
        ),
        (_RUNNING + "a_cancel_stops_the_attempt_long_before_its_lease_ends",),
    ),
    Mutant(
        "thread-uncounted",
        "a thread that does not end leaves its place to the next",
        "threads are bounded",
        (
            Edit(
                "outbox/performing.py",
                "    return await ended\n",
                "    try:\n        return await ended\n    finally:\n        room.release()\n",
            ),
            Edit(
                "outbox/performing.py",
                "        room.release()\n        if ended.done():",
                "        if ended.done():",
            ),
        ),
        (_PERFORMING + "a_thread_that_does_not_end_counts_until_it_does",),
    ),
    # -- when -------------------------------------------------------------------------------------
    Mutant(
        "priority-too-early",
        "priority sends before the time that an event asks for",
        "a delivery waits for its due time",
        (
            statement(
                "route",
                "s.delay IS NOT NULL OR ev.deliver_at > clock.now THEN",
                "s.delay IS NOT NULL THEN",
            ),
        ),
        (_OPTIONS + "priority_hurries_nothing_that_is_not_due",),
    ),
    Mutant(
        "debounce-keeps-first",
        "of a burst the first event is delivered",
        "debounce",
        (Edit(_LEVEL_11, "ORDER BY g.event_id DESC) = 1", "ORDER BY g.event_id) = 1"),),
        (_OPTIONS + "of_a_key_the_latest_is_delivered_when_it_rests",),
    ),
    Mutant(
        "own-limits-ignored",
        "a subscription's own concurrency bounds nothing",
        "an own processor's concurrency",
        (statement("route", "coalesce(n.concurrency, s.concurrency_max) AS", "n.concurrency AS"),),
        (_KINDS + "its_own_concurrency_and_rate_are_permits",),
    ),
    Mutant(
        "newest-configuration",
        "a delivery is performed as its subscription is configured by now",
        "a delivery keeps the revision that routed it",
        (
            statement(
                "load_setups",
                "r.subscription_id = w.id AND r.revision = w.revision",
                "r.subscription_id = w.id AND r.revision = ("
                "SELECT max(x.revision) FROM outbox.subscription_revision x"
                " WHERE x.subscription_id = w.id)",
            ),
        ),
        (_KINDS + "a_processor_gets_the_configuration_of_the_revision_that_routed",),
    ),
    Mutant(
        "reschedule-running",
        "a delivery that is being tried is moved: its settle finds another due time",
        "a leased delivery is its worker's",
        (
            statement(
                "reschedule_ids",
                "FROM clock, own o WHERE d.id = o.id AND o.state <> 'leased'",
                "FROM clock, own o WHERE d.id = o.id",
            ),
            statement(
                "reschedule_ids",
                "FROM clock, own o WHERE o.state <> 'leased'\n",
                "FROM clock, own o\n",
            ),
        ),
        (_OPTIONS + "a_waiting_delivery_is_rescheduled_and_a_running_one_is_not",),
    ),
    Mutant(
        "schedule-in-utc",
        "ticks do not follow the time zone",
        "ticks follow the zone",
        (
            Edit(
                "outbox/ticks.py",
                "at.astimezone(zone(timezone)).replace(microsecond=0)",
                "at.astimezone(zone(timezone) and UTC).replace(microsecond=0)",
            ),
        ),
        (_SCHEDULES + "ticks_follow_the_zone",),
    ),
    Mutant(
        "schedule-skips-nothing",
        "a tick that was missed is emitted though it should be skipped",
        "what is missed is skipped, or emitted once, or each",
        (
            Edit(
                "outbox/ticks.py",
                'if missed == "one" or now - last <= LATE else ()',
                "if missed else ()",
            ),
        ),
        (_SCHEDULES + "what_is_missed_is_skipped_or_emitted_once_or_each",),
    ),
    Mutant(
        "schedule-unbounded",
        "a year of missed ticks is emitted",
        "everything has a limit",
        (Edit("outbox/ticks.py", "if len(due) > BEHIND_MAX:", "if len(due) > 10**9:"),),
        (_SCHEDULES + "all_is_bounded",),
    ),
)
