"""Mutants of what is kept: facts, dead letters, holding, retention, the fold."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant, statement

_DEAD = "tests/admin/test_dead.py::test_"
_DELIVERIES = "tests/admin/test_deliveries.py::test_"
_ENDPOINTS = "tests/admin/test_endpoints.py::test_"
_DUE = "tests/engine/test_lease_due.py::test_"
_IDENTITY = "tests/schema/test_identity.py::test_"
_RETENTION = "tests/retention/test_retention.py::test_"

RECORDS = (
    # -- facts ----------------------------------------------------------------------------------
    Mutant(
        "tend-without-fact",
        "what is ended or held when due writes no journal row",
        "I13",
        (
            statement(
                "tend_due",
                "    FROM clock, locked l\n)\nSELECT",
                "    FROM clock, locked l WHERE false\n)\nSELECT",
            ),
        ),
        (_DUE + "what_must_not_be_tried_is_seen_and_left",),
    ),
    Mutant(
        "tend-forgets-age",
        "the maximum age ends nothing that waits",
        "the maximum age",
        (
            statement(
                "tend_due",
                "WHEN d.state = 'scheduled' AND d.age_limit_at <= clock.now THEN",
                "WHEN false THEN",
            ),
        ),
        (_DUE + "what_must_not_be_tried_is_seen_and_left",),
    ),
    Mutant(
        "cancel-without-fact",
        "a cancel writes no journal row",
        "I13",
        (
            statement(
                "cancel_ids", "    FROM clock, own o\n)", "    FROM clock, own o WHERE false\n)"
            ),
        ),
        (_DELIVERIES + "a_cancelled_delivery_is_gone_and_its_story_stays",),
    ),
    Mutant(
        "cancel-leaves-leased",
        "a cancel leaves the row, and its worker's lease",
        "I6",
        (
            statement(
                "cancel_ids",
                "USING own o WHERE d.id = o.id",
                "USING own o WHERE d.id = o.id AND d.state <> 'leased'",
            ),
        ),
        (_DELIVERIES + "cancelling_takes_the_lease_from_its_worker",),
    ),
    Mutant(
        "cancel-any-organization",
        "an organization cancels the deliveries of another",
        "I14",
        (
            statement(
                "cancel_ids", "(%(org_id)s::text IS NULL OR d.org_id = %(org_id)s::text)", "true"
            ),
        ),
        (_DELIVERIES + "another_organizations_delivery_is_unknown",),
    ),
    Mutant(
        "facts-change",
        "facts may be changed and deleted",
        "I7",
        (
            Edit(
                "sql/migrations/0010_order_health_replay.sql",
                "    RAISE EXCEPTION 'outbox: % is append-only",
                "    RETURN coalesce(NEW, OLD);\n    RAISE EXCEPTION 'outbox: % is append-only",
            ),
        ),
        ("tests/schema/test_rights.py::test_nobody_changes_a_fact",),
    ),
    # -- dead letters ---------------------------------------------------------------------------
    Mutant(
        "redrive-without-budget",
        "a redrive goes on with the old budget",
        "I4",
        (
            statement(
                "dead_redrive",
                "clock.now + c.max_age, 0, c.budget + 1, 0",
                "clock.now + c.max_age, 0, c.budget, 0",
            ),
        ),
        (_DEAD + "a_redriven_letter_is_due_now_with_a_fresh_budget",),
    ),
    Mutant(
        "redrive-keeps-attempts",
        "a redriven delivery has its old attempts and dies at the next failure",
        "I4",
        (
            statement(
                "dead_redrive",
                "clock.now + c.max_age, 0, c.budget + 1, 0",
                "clock.now + c.max_age, c.attempts, c.budget + 1, 0",
            ),
        ),
        (_DEAD + "a_redriven_letter_is_due_now_with_a_fresh_budget",),
    ),
    Mutant(
        "redrive-keeps-the-dead",
        "a redrive leaves the dead letter: dead and live at once",
        "I6, I13",
        (
            statement(
                "dead_redrive",
                "DELETE FROM outbox.dead_letter d USING chosen c WHERE d.id = c.id",
                "DELETE FROM outbox.dead_letter d USING chosen c WHERE d.id = c.id AND false",
            ),
        ),
        (_DEAD + "a_redriven_letter_is_due_now_with_a_fresh_budget",),
    ),
    Mutant(
        "redrive-without-fact",
        "a redrive writes no journal row",
        "I13",
        (
            statement(
                "dead_redrive",
                "'redriven' AS fact, NULL AS reason, clock.now AS due_at",
                "'redriven' AS fact, NULL AS reason, clock.now AS due_at WHERE false",
            ),
        ),
        (_DEAD + "a_redriven_letter_is_due_now_with_a_fresh_budget",),
    ),
    Mutant(
        "redrive-any-organization",
        "an organization redrives the dead letters of another",
        "I14",
        (
            statement(
                "dead_redrive", "(%(org_id)s::text IS NULL OR d.org_id = %(org_id)s::text)", "true"
            ),
        ),
        (_DEAD + "another_organizations_letters_are_neither_seen_nor_changed",),
    ),
    Mutant(
        "redrive-expired",
        "what is past its expiry is redriven unasked",
        "expired ones need --ignore-expiry",
        (statement("dead_redrive", "AND NOT %(ignore_expiry)s::boolean", "AND false"),),
        (_DEAD + "what_is_past_its_expiry_needs_to_be_asked_for",),
    ),
    Mutant(
        "dry-run-changes",
        "a dry run redrives",
        "a dry run changes nothing",
        (
            statement(
                "dead_redrive",
                "o.fate = 'redriven' AND NOT %(dry_run)s::boolean",
                "o.fate = 'redriven'",
            ),
        ),
        (_DEAD + "a_dry_run_counts_and_changes_nothing",),
    ),
    Mutant(
        "discard-without-fact",
        "dead letters past retention vanish without a fact",
        "I13",
        (statement("discard_dead", "FROM clock, old o\n)", "FROM clock, old o WHERE false\n)"),),
        (_RETENTION + "dead_letters_past_their_time_are_discarded_with_a_fact",),
    ),
    # -- holding --------------------------------------------------------------------------------
    Mutant(
        "age-runs-while-held",
        "the maximum age does not stand still while held",
        "the maximum age stands still while held",
        (
            statement(
                "sweep_held",
                "o.age_limit_at + greatest(interval '0', clock.now - o.held_at)",
                "o.age_limit_at",
            ),
        ),
        (_ENDPOINTS + "maximum_age_stands_still_while_held",),
    ),
    Mutant(
        "pause-stops-started",
        "a pause takes the lease of an attempt under way",
        "I2",
        (
            statement("sweep_leased", "(d.started_at IS NULL AND (", "(true AND ("),
            statement(
                "sweep_leased", "lease_until = NULL,", "lease_until = NULL, started_at = NULL,"
            ),
        ),
        (_ENDPOINTS + "a_pause_leaves_a_started_attempt_to_its_worker",),
    ),
    Mutant(
        "resume-releases-adopted",
        "a resume releases what an adoption holds",
        "a copy of production sends nothing by itself",
        (
            statement(
                "sweep_held", "d.held_reason IN ('paused', 'disabled')", "d.held_reason <> 'order'"
            ),
        ),
        (_ENDPOINTS + "a_resume_leaves_alone_what_an_adoption_holds",),
    ),
    Mutant(
        "copy-not-noticed",
        "a copied database is taken for the original",
        "a copy of production sends nothing by itself",
        (
            Edit(
                "outbox/store/identity.py",
                "if identity.database_oid != identity.here_database_oid:",
                "if False:",
            ),
        ),
        (_IDENTITY + "a_copy_in_the_same_cluster_is_refused_until_it_is_adopted",),
    ),
    Mutant(
        "adopted-not-held",
        "adopting lets leases of the original run on",
        "a copy of production sends nothing by itself",
        (statement("adopt_hold", "d.state IN ('scheduled', 'leased')", "d.state = 'scheduled'"),),
        (_IDENTITY + "adopting_holds_everything_live_with_a_fact_each",),
    ),
    # -- retention ------------------------------------------------------------------------------
    Mutant(
        "carry-forgets-dead",
        "dead letters are not carried when their slot is cleared",
        "I1 across retention",
        (
            statement(
                "carry_pick",
                "FROM outbox.dead_letter d WHERE d.event_slot = %(slot)s",
                "FROM outbox.dead_letter d WHERE false AND d.event_slot = %(slot)s",
            ),
            statement(
                "slot_owed",
                "FROM outbox.dead_letter d WHERE d.event_slot = %(slot)s",
                "FROM outbox.dead_letter d WHERE false AND d.event_slot = %(slot)s",
            ),
        ),
        (_RETENTION + "a_dead_letter_and_an_unrouted_event_are_carried_too",),
    ),
    Mutant(
        "carry-forgets-event",
        "the event of what is carried is not copied",
        "I1 across retention",
        (
            statement(
                "carry",
                "e.id = o.event_id OFFSET 0) e\n",
                "e.id = o.event_id AND false OFFSET 0) e\n",
            ),
        ),
        (_RETENTION + "a_live_delivery_takes_its_event_along",),
    ),
    Mutant(
        "carry-forgets-state",
        "a carried fact does not hold the attempts",
        "I13 across retention",
        (
            statement(
                "carry",
                "o.org_id, o.revision, o.budget, o.attempts, false,",
                "o.org_id, o.revision, o.budget, 0, false,",
            ),
        ),
        (_RETENTION + "the_fold_is_the_same_before_and_after_the_old_facts_are_gone",),
    ),
    Mutant(
        "carry-too-late",
        "a carried fact bears the present time, after facts that waited for it",
        "I13 across retention",
        (
            statement(
                "carry",
                "coalesce(own.at, routed.at, clock.now) + interval '1 microsecond'",
                "clock.now + interval '1 second'",
            ),
        ),
        (_RETENTION + "a_fact_that_waited_for_the_carrying_comes_after_it",),
    ),
    Mutant(
        "retention-clears-owed",
        "a slot is cleared without carrying what is owed",
        "I1 across retention",
        (
            Edit(
                "outbox/store/retention.py",
                "            if not owed:\n",
                "            if owed is not None:\n",
            ),
            Edit("outbox/store/retention.py", "        await self._carry_most(slot)\n", ""),
        ),
        (_RETENTION + "a_live_delivery_takes_its_event_along",),
    ),
    Mutant(
        "retention-clears-locked",
        "a slot is cleared though a row that points there is locked",
        "I1 across retention",
        (
            Edit(
                "outbox/store/retention.py",
                "            if not owed:\n",
                "            if owed is not None:\n",
            ),
        ),
        (_RETENTION + "a_locked_row_is_left_for_the_next_time",),
    ),
    Mutant(
        "retention-too-early",
        "events go before their retention time is over",
        "events stay for the retention time",
        (
            Edit(
                "outbox/store/retention.py",
                "if closed is None or self.now - closed < keep:",
                "if closed is None or self.now - closed < keep / 2:",
            ),
        ),
        (_RETENTION + "a_slot_is_past_retention_when_its_last_row_is",),
    ),
    Mutant(
        "retention-queues",
        "clearing a slot queues behind a long transaction",
        "captured writes never wait",
        (
            Edit(
                "outbox/store/retention.py",
                "            if first & await self._holders(slot):",
                "            if not first:",
            ),
        ),
        (_RETENTION + "behind_a_long_transaction_nobody_ever_queues",),
    ),
    # -- the fold -------------------------------------------------------------------------------
    Mutant(
        "fold-counts-uncharged",
        "the fold counts attempts that were not charged",
        "I13",
        (
            Edit(
                "outbox/history.py",
                "attempts=before.attempts + (fact.charged and not expired)",
                "attempts=before.attempts + (not expired)",
            ),
        ),
        ("tests/engine/test_attempts.py::test_our_own_fault_charges_nothing",),
    ),
    Mutant(
        "dead-may-be-leased",
        "the table of edges lets a dead delivery be leased",
        "I6",
        (
            Edit(
                "outbox/lifecycle.py",
                "Edge.LEASE: {State.SCHEDULED: State.LEASED}",
                "Edge.LEASE: {State.SCHEDULED: State.LEASED, State.DEAD: State.LEASED}",
            ),
        ),
        ("tests/unit/test_lifecycle.py::test_only_redrive_and_replay_lead_back_from_an_end",),
    ),
)
