"""Mutants of order by key, and of circuits."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant, statement

_ORDER = "tests/engine/test_order.py::test_"
_HEALTH = "tests/engine/test_health.py::test_"
_LEVEL_10 = "sql/migrations/0010_order_health_replay.sql"

ORDERING = (
    Mutant(
        "order-ignored",
        "an ordered subscription is routed as if it were unordered",
        "I8",
        (
            statement(
                "route", "CASE WHEN s.order_mode IS NOT NULL THEN\n", "CASE WHEN false THEN\n"
            ),
        ),
        (_ORDER + "the_first_of_a_key_goes_and_the_others_wait_their_turn",),
    ),
    Mutant(
        "order-all-at-once",
        "every delivery of a key is scheduled at once",
        "I8",
        (
            statement(
                "route", "t.order_key IS NOT NULL AND NOT t.head AS behind", "false AS behind"
            ),
        ),
        (_ORDER + "the_first_of_a_key_goes_and_the_others_wait_their_turn",),
    ),
    Mutant(
        "order-leased-at-routing",
        "ordered deliveries are leased at routing",
        "I8",
        (
            statement(
                "route",
                "m.order_key IS NULL AND m.dropped IS NULL",
                "m.dropped IS NULL",
            ),
            statement("route", "m.lane > 0 AND m.order_key IS NULL) m", "m.lane > 0) m"),
        ),
        (_ORDER + "nothing_is_leased_at_routing_and_unordered_deliveries_are",),
    ),
    Mutant(
        "turn-while-live",
        "a key's next delivery has its turn while an earlier one is live",
        "I8",
        (
            statement(
                "order_advance",
                "AND d.order_key = k.order_key\n         ORDER BY d.event_id LIMIT 1)",
                "AND d.order_key = k.order_key AND d.held_reason = 'order'\n"
                "         ORDER BY d.event_id LIMIT 1)",
            ),
        ),
        (_ORDER + "a_signal_gives_nobody_a_turn_while_an_earlier_one_lives",),
    ),
    Mutant(
        "turn-before-routed",
        "a key's next delivery has its turn though an earlier event is still to be routed",
        "I8",
        (statement("order_advance", "< d.event_id, false) AS gated", "< 0, false) AS gated"),),
        (_ORDER + "an_event_waits_for_earlier_ones_that_are_not_routed",),
    ),
    Mutant(
        "dead-bars-nobody",
        "a dead letter does not block its key",
        "I8",
        (
            statement(
                "order_advance",
                "coalesce(s.order_mode, 'skip') NOT IN ('skip', 'share') AND EXISTS",
                "false AND EXISTS",
            ),
        ),
        (_ORDER + "block_waits_until_the_dead_letter_is_delivered_after_all",),
    ),
    Mutant(
        "dead-bars-nobody-new",
        "an event routed behind a dead letter of its key goes at once",
        "I8",
        (
            statement(
                "route", "m.order_mode NOT IN ('skip', 'share') AND EXISTS", "false AND EXISTS"
            ),
        ),
        (_ORDER + "what_is_routed_behind_a_dead_letter_of_its_key_does_not_go",),
    ),
    Mutant(
        "block-parks",
        "a blocked key goes into the dead letters",
        "order modes",
        (statement("order_advance", "f.barred AND f.order_mode = 'park'", "f.barred"),),
        (_ORDER + "block_waits_until_the_dead_letter_is_delivered_after_all",),
    ),
    Mutant(
        "expired-bars",
        "what expired blocks its key for ever",
        "order modes",
        (statement("order_advance", " AND l.reason <> 'expired'", ""),),
        (_ORDER + "what_expired_bars_nobody",),
    ),
    Mutant(
        "turn-forgotten",
        "a turn that could not be judged is not looked at again",
        "I1: an ordered key never stands still",
        (
            statement(
                "order_advance",
                "WHERE f.gated OR EXISTS (SELECT FROM wanted w",
                "WHERE false AND EXISTS (SELECT FROM wanted w",
            ),
        ),
        (_ORDER + "the_turn_comes_though_a_row_was_locked_when_it_came",),
    ),
    Mutant(
        "nobody-calls",
        "who ends an ordered delivery does not call the next of its key",
        "I1: an ordered key never stands still",
        (
            Edit(
                _LEVEL_10,
                "ON outbox.delivery\n    FOR EACH ROW WHEN (OLD.order_key IS NOT NULL)",
                "ON outbox.delivery\n    FOR EACH ROW WHEN (false)",
            ),
        ),
        (_ORDER + "the_first_of_a_key_goes_and_the_others_wait_their_turn",),
    ),
    Mutant(
        "keys-meet",
        "equal keys of two organizations are one key",
        "I14",
        (
            Edit(
                _LEVEL_10,
                "        coalesce(org_id, '') || E'\\x01' || coalesce(ordering_key,",
                "        coalesce(ordering_key,",
            ),
        ),
        (_ORDER + "keys_of_two_organizations_never_meet",),
    ),
    Mutant(
        "turn-without-fact",
        "a turn writes no journal row",
        "I13",
        (
            statement(
                "order_advance",
                "THEN o.due_at END\n    FROM clock, own o\n",
                "THEN o.due_at END\n    FROM clock, own o WHERE false\n",
            ),
        ),
        (_ORDER + "block_waits_until_the_dead_letter_is_delivered_after_all",),
    ),
    Mutant(
        "age-runs-in-line",
        "the maximum age runs while a delivery waits for its turn",
        "the maximum age stands still while held",
        (
            statement(
                "order_advance",
                "d.age_limit_at + greatest(interval '0', (SELECT now FROM clock) - d.held_at)",
                "d.age_limit_at",
            ),
        ),
        (_ORDER + "the_maximum_age_stands_still_while_a_delivery_waits_for_its_turn",),
    ),
    # -- circuits -------------------------------------------------------------------------------
    Mutant(
        "circuit-never-opens",
        "a destination that is down gets every attempt",
        "circuits",
        (statement("lane_report", "o.down_failures + o.down >= %(open_failures)s::int", "false"),),
        (_HEALTH + "a_circuit_opens_after_many_failures_and_some_time",),
    ),
    Mutant(
        "circuit-opens-at-once",
        "a moment of failures opens a circuit",
        "circuits",
        (
            statement(
                "lane_report",
                "AND clock.now - o.down_since >= make_interval(secs => %(open_after_s)s::float8)",
                "",
            ),
        ),
        (_HEALTH + "a_circuit_opens_after_many_failures_and_some_time",),
    ),
    Mutant(
        "circuit-stays-open",
        "a delivery does not close the circuit",
        "circuits",
        (
            statement(
                "lane_report",
                "FROM own o WHERE o.delivered))",
                "FROM own o WHERE o.delivered AND false))",
            ),
        ),
        (_HEALTH + "a_probe_that_is_delivered_closes_the_circuit",),
    ),
    Mutant(
        "probe-storm",
        "an open circuit lets everything through at its probe",
        "an open circuit lets one probe through",
        (
            statement(
                "lease_due", "AND used.n = 0 THEN 1 ELSE 0 END", "AND used.n = 0 THEN 99 ELSE 0 END"
            ),
        ),
        (_HEALTH + "an_open_circuit_lets_one_probe_through_at_a_time",),
    ),
    Mutant(
        "probe-beside-probe",
        "an open circuit lets a second probe through beside the first",
        "an open circuit lets one probe through",
        (statement("lease_due", " AND used.n = 0 THEN 1", " THEN 1"),),
        (_HEALTH + "an_open_circuit_lets_one_probe_through_at_a_time",),
    ),
    Mutant(
        "open-circuit-routed",
        "routing leases through an open circuit",
        "an open circuit lets one probe through",
        (statement("route", "AND NOT coalesce(l.open, false) AND", "AND"),),
        (_HEALTH + "an_open_circuit_lets_one_probe_through_at_a_time",),
    ),
    Mutant(
        "probes-keep-pace",
        "probes of a destination that stays down grow no rarer",
        "circuits",
        (statement("lane_report", "least(o.probe_gap * 2,", "least(o.probe_gap,"),),
        (_HEALTH + "probes_grow_rarer_up_to_a_bound_and_late_failures_move_none",),
    ),
    Mutant(
        "warnings-warn-of-warnings",
        "a warning that cannot be delivered counts against its destination",
        "no loops",
        (Edit("outbox/health.py", ' and not event_type.startswith("outbox.")', ""),),
        (_HEALTH + "failures_of_our_own_events_are_not_held_against_a_lane",),
    ),
)
