"""Mutants of an attempt's life: take, settle, extend, release, expiry, the worker's loop."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant, statement

_ATTEMPTS = "tests/engine/test_attempts.py::test_"
_ENDS = "tests/engine/test_lease_ends.py::test_"
_WORKER = "tests/engine/test_worker.py::test_"

ATTEMPTS = (
    Mutant(
        "take-any-token",
        "a lease starts whatever token the message bears",
        "I2, I3",
        (
            statement(
                "take", "(d.id, d.token) IN (SELECT u.id, u.token FROM", "d.id IN (SELECT u.id FROM"
            ),
        ),
        (_ATTEMPTS + "nothing_starts_after_its_lease_or_with_a_stale_token",),
    ),
    Mutant(
        "take-twice",
        "a lease that was started starts again",
        "I2",
        (statement("take", "AND d.started_at IS NULL ", ""),),
        (_ATTEMPTS + "a_lease_is_started_once",),
    ),
    Mutant(
        "take-after-lease",
        "a lease that ran out may still be started",
        "I2",
        (statement("take", " AND d.lease_until > (SELECT now FROM clock)", ""),),
        (_ATTEMPTS + "nothing_starts_after_its_lease_or_with_a_stale_token",),
    ),
    Mutant(
        "take-paused",
        "an attempt starts for a subscription that is paused, disabled or removed",
        "a pause is one",
        (statement("take", "SELECT s.state = 'active' AND", "SELECT"),),
        (_ATTEMPTS + "nothing_starts_for_a_destination_that_rests",),
    ),
    Mutant(
        "settle-any-token",
        "the token is dropped from a settle",
        "I3",
        (statement("settle", "AND d.token = i.token ", ""),),
        (_ATTEMPTS + "a_stale_token_changes_nothing",),
    ),
    Mutant(
        "settle-unstarted",
        "a lease that never started can be settled",
        "I3",
        (statement("settle", " AND d.started_at IS NOT NULL", ""),),
        (_ATTEMPTS + "what_never_started_cannot_be_settled",),
    ),
    Mutant(
        "plain-any-token",
        "the token is dropped from the settle of what was delivered",
        "I3",
        (
            statement(
                "settle_delivered",
                "(d.id, d.token) IN (SELECT i.id, i.token FROM",
                "d.id IN (SELECT i.id FROM",
            ),
        ),
        (_ATTEMPTS + "a_stale_token_changes_nothing",),
    ),
    Mutant(
        "plain-unstarted",
        "a lease that never started can be settled as delivered",
        "I3",
        (statement("settle_delivered", " AND d.started_at IS NOT NULL", ""),),
        (_ATTEMPTS + "what_never_started_cannot_be_settled",),
    ),
    Mutant(
        "plain-without-fact",
        "what was delivered writes no journal row",
        "I13",
        (statement("settle_delivered", "i.token = e.token\n", "i.token = e.token WHERE false\n"),),
        (_ATTEMPTS + "delivered_ends_it_with_a_fact_and_no_row",),
    ),
    Mutant(
        "charge-twice",
        "an attempt is charged twice",
        "I4",
        (
            statement(
                "settle", "d.attempts + i.charged::int AS", "d.attempts + 2 * i.charged::int AS"
            ),
        ),
        (_ATTEMPTS + "a_retry_is_charged_and_due_after_its_delay",),
    ),
    Mutant(
        "charge-nothing",
        "attempts are not charged: a delivery is tried for ever",
        "I4",
        (statement("settle", "d.attempts + i.charged::int AS", "d.attempts AS"),),
        (_ATTEMPTS + "a_retry_is_charged_and_due_after_its_delay",),
    ),
    Mutant(
        "charge-our-fault",
        "what our side got wrong costs the receiver an attempt",
        "I4",
        (Edit("outbox/verdict.py", "charged = outcome.kind in CHARGED", "charged = True"),),
        ("tests/engine/test_verdict.py::test_the_charge_is_the_outcomes",),
    ),
    Mutant(
        "retry-at-once",
        "a settle forgets the delay of a retry",
        "I5",
        (
            statement(
                "settle",
                "d.id::text ->> 'delay_s')::float8, 0)",
                "d.id::text ->> 'nothing')::float8, 0)",
            ),
        ),
        (_ATTEMPTS + "a_retry_is_charged_and_due_after_its_delay",),
    ),
    Mutant(
        "settle-without-fact",
        "a settle writes no journal row",
        "I13",
        (
            statement(
                "settle",
                "o.detail::jsonb\n    FROM clock, own o\n)",
                "o.detail::jsonb\n    FROM clock, own o WHERE false\n)",
            ),
        ),
        (_ATTEMPTS + "delivered_ends_it_with_a_fact_and_no_row",),
    ),
    Mutant(
        "delivered-stays",
        "what was delivered stays leased, and is tried again when the lease ends",
        "I6",
        (statement("settle", "o.verdict IN ('delivered', 'dead')", "o.verdict = 'dead'"),),
        (_ATTEMPTS + "delivered_ends_it_with_a_fact_and_no_row",),
    ),
    Mutant(
        "dead-stays-live",
        "a dead delivery keeps its live row beside its dead letter, and is tried again",
        "I6",
        (statement("settle", "o.verdict IN ('delivered', 'dead')", "o.verdict = 'delivered'"),),
        (_ATTEMPTS + "dead_goes_to_the_dead_letters_with_its_reason",),
    ),
    Mutant(
        "dead-vanishes",
        "a dead delivery leaves no dead letter",
        "I1",
        (
            statement(
                "settle",
                "FROM clock, own o WHERE o.verdict = 'dead'",
                "FROM clock, own o WHERE o.verdict = 'buried'",
            ),
        ),
        (_ATTEMPTS + "dead_goes_to_the_dead_letters_with_its_reason",),
    ),
    Mutant(
        "extend-revives",
        "a lease that ran out can be lengthened, beside the one that follows it",
        "I2",
        (statement("extend", " AND d.lease_until > clock.now", ""),),
        (_ATTEMPTS + "an_expired_lease_is_not_revived",),
    ),
    Mutant(
        "extend-any-token",
        "whoever knows the id lengthens a lease of another",
        "I3",
        (statement("extend", " AND d.token = i.token", ""),),
        (_ATTEMPTS + "a_stale_token_changes_nothing",),
    ),
    Mutant(
        "extend-too-long",
        "a lease is lengthened by twice what was asked for",
        "I10",
        (statement("extend", "secs => %(lease_s)s", "secs => 2 * %(lease_s)s"),),
        (_ATTEMPTS + "a_running_attempt_is_extended_by_the_servers_clock",),
    ),
    Mutant(
        "release-started",
        "a lease whose attempt is under way is given back, and tried beside it",
        "I2",
        (
            statement("release", " AND o.started_at IS NULL", ""),
            statement("release", "lease_until = NULL\n", "lease_until = NULL, started_at = NULL\n"),
        ),
        (_ATTEMPTS + "a_started_lease_is_not_given_back",),
    ),
    Mutant(
        "release-any-token",
        "a release gives back leases of others",
        "I3",
        (statement("release", "o.token = %(token)s::bigint AND", "%(token)s::bigint > 0 AND"),),
        (_ATTEMPTS + "a_stale_release_gives_nothing_back",),
    ),
    Mutant(
        "expiry-charges-attempt",
        "a lease that ran out costs an attempt",
        "I4",
        (
            statement(
                "expire_leases",
                "due_at = (SELECT now FROM clock), expiries",
                "due_at = (SELECT now FROM clock), attempts = d.attempts + 1, expiries",
            ),
        ),
        (_ENDS + "a_started_lease_that_ran_out_counts_apart_from_attempts",),
    ),
    Mutant(
        "expiry-unstarted-counts",
        "a message that the broker lost counts as a started expiry",
        "I4",
        (
            statement(
                "expire_leases",
                "expiries = d.expiries + (d.started_at IS NOT NULL)::int",
                "expiries = d.expiries + 1",
            ),
        ),
        (_ENDS + "a_lease_that_never_started_costs_nothing",),
    ),
    Mutant(
        "expiry-for-ever",
        "started expiries are not counted: one that kills its worker loops for ever",
        "I4",
        (
            statement(
                "expire_leases",
                "expiries = d.expiries + (d.started_at IS NOT NULL)::int",
                "expiries = d.expiries",
            ),
        ),
        (_ENDS + "started_leases_that_run_out_end_in_a_dead_letter_at_their_limit",),
    ),
    Mutant(
        "expiry-too-early",
        "a lease is taken back a second before it ends",
        "I2",
        (
            statement(
                "expire_leases",
                "<= (SELECT now FROM clock) AT TIME ZONE 'UTC'",
                "<= (SELECT now FROM clock) AT TIME ZONE 'UTC' + interval '1 second'",
            ),
        ),
        (_ENDS + "what_runs_still_is_left_alone",),
    ),
    Mutant(
        "expiry-without-fact",
        "a lease that ran out writes no journal row",
        "I13",
        (
            statement(
                "expire_leases",
                "    FROM clock, ended e\n)",
                "    FROM clock, ended e WHERE false\n)",
            ),
        ),
        (_ENDS + "a_started_lease_that_ran_out_counts_apart_from_attempts",),
    ),
    Mutant(
        "worker-forgets-to-extend",
        "a worker does not lengthen the leases of what runs",
        "I2: tried twice while it runs",
        (Edit("outbox/worker.py", "                await self._extend(attempts)\n", ""),),
        (_WORKER + "leases_are_lengthened_also_while_more_keeps_coming",),
    ),
    Mutant(
        "worker-runs-past-lease",
        "an attempt goes on after its lease was lost",
        "I2",
        (Edit("outbox/worker.py", "if running.until <= now and", "if running.until <= 0 and"),),
        (_WORKER + "an_attempt_ends_with_the_lease_that_nobody_could_extend",),
    ),
    Mutant(
        "worker-begins-past-lease",
        "a worker that stood still begins attempts whose lease ended meanwhile",
        "I2, I10",
        (
            Edit(
                "outbox/worker.py",
                "if self._clock() >= running.until - margin_s:",
                "if self._clock() >= running.until + ATTEMPT_S_MAX:",
            ),
        ),
        (_WORKER + "nothing_begins_at_the_end_of_its_lease",),
    ),
    Mutant(
        "worker-forgets-outcomes",
        "outcomes are dropped before they are settled: a lost connection loses them",
        "duplicates only for what was in flight",
        (
            Edit(
                "outbox/settling.py",
                "batch = fitting(queue[: self._size], SETTLE_BYTES_MAX)\n",
                "batch = fitting(queue[: self._size], SETTLE_BYTES_MAX)\n"
                "        del queue[: len(batch)]\n",
            ),
            Edit(
                "outbox/settling.py",
                "and the token tells.\n        del queue[: len(batch)]\n",
                "and the token tells.\n",
            ),
        ),
        (_WORKER + "an_outcome_outlives_the_connection_it_was_to_be_settled_on",),
    ),
)
