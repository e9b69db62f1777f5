"""Mutants of the relay: matching, claims, turns, permits, the floor, the window, the bell."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant, statement

_ROUTE = "tests/engine/test_route.py::test_"
_DUE = "tests/engine/test_lease_due.py::test_"
_HORIZON = "tests/engine/test_horizon.py::test_"
_FRONTS = "tests/engine/test_fronts.py::test_"
_PLANS = "tests/engine/test_plans.py::test_"
_RELAY = "tests/engine/test_relay.py::test_"
_BELL = "tests/engine/test_bell.py::test_"
_RING = "sql/migrations/0016_bell.sql"
_RUNG = "tests/emit/test_emit.py::test_whoever_rings_after_another_leaves_it_at_that_for_a_moment"
_FUNCTIONS = "sql/migrations/0002_functions.sql"

ROUTING = (
    # -- matching -------------------------------------------------------------------------------
    Mutant(
        "match-any-organization",
        "a subscription matches the events of every organization",
        "I14",
        (statement("route", "WHERE s.org_id = ev.org_id AND", "WHERE"),),
        (_ROUTE + "an_organization_sees_its_own_events_and_operators_see_all",),
    ),
    Mutant(
        "match-without-filter",
        "filters are ignored",
        "only what matched is delivered",
        (statement("route", "s.filter IS NULL OR", "true OR"),),
        (_ROUTE + "a_filter_decides_and_what_it_cannot_judge_passes",),
    ),
    Mutant(
        "match-the-past",
        "a subscription matches events of before it was active",
        "only what matched is delivered",
        (statement("route", "WHERE s.active_from <= ev.created_at", "WHERE true"),),
        (_ROUTE + "an_event_before_active_from_does_not_match",),
    ),
    Mutant(
        "match-paused-as-active",
        "what a paused subscription matches is sent",
        "a pause is one",
        (
            statement(
                "route", "WHEN s.state <> 'active' THEN s.state\n", "WHEN false THEN s.state\n"
            ),
        ),
        (_ROUTE + "paused_and_disabled_destinations_hold_what_matches",),
    ),
    Mutant(
        "match-removed",
        "a removed endpoint still gets events",
        "removed is removed",
        (statement("route", "AND coalesce(n.state, 'active') <> 'removed'", ""),),
        (_ROUTE + "removed_destinations_get_nothing",),
    ),
    Mutant(
        "match-own-events",
        "a star matches the engine's own events",
        "no loops",
        (
            Edit(
                _FUNCTIONS,
                " OR (every AND NOT pg_catalog.starts_with(type, 'outbox.'))",
                " OR every",
            ),
        ),
        (_ROUTE + "a_star_does_not_match_our_own_events",),
    ),
    Mutant(
        "id-without-salt",
        "two installations give the same delivery ids",
        "a copy of production never uses its keys",
        (Edit(_FUNCTIONS, "pg_catalog.uuid_send(salt) || ", ""),),
        (_ROUTE + "another_event_subscription_generation_or_installation_is_another_key",),
    ),
    Mutant(
        "id-without-generation",
        "a re-emitted delivery has the key of the first",
        "a new generation is a new key",
        (Edit(_FUNCTIONS, " || pg_catalog.int4send(generation)", ""),),
        (_ROUTE + "another_event_subscription_generation_or_installation_is_another_key",),
    ),
    # -- claiming -------------------------------------------------------------------------------
    Mutant(
        "unmatched-without-fact",
        "an event that matched nothing leaves no fact",
        "I13",
        (
            statement(
                "route",
                "FROM clock, fated f GROUP BY f.event_id",
                "FROM clock, drawn, fated f WHERE f.real GROUP BY f.event_id",
            ),
        ),
        (_ROUTE + "an_event_that_matches_nothing_still_has_its_fact",),
    ),
    Mutant(
        "waiting-vanishes",
        "a delivery without a permit is not created",
        "I1",
        (
            statement(
                "route",
                "FROM clock, drawn, fated f WHERE f.real AND f.dropped IS NULL\n",
                "FROM clock, drawn, fated f WHERE f.real AND f.state = 'leased'\n",
            ),
        ),
        (_ROUTE + "the_window_bounds_leases_and_organizations_take_turns",),
    ),
    Mutant(
        "claim-waits-for-locks",
        "a claim waits for pending rows that others hold",
        "I9: nobody delays the others",
        (
            statement(
                "route",
                "ORDER BY p.id LIMIT %(events_max)s::int\n    FOR UPDATE SKIP LOCKED",
                "ORDER BY p.id LIMIT %(events_max)s::int\n    FOR UPDATE",
            ),
        ),
        (_ROUTE + "a_claim_leaves_out_what_another_holds",),
    ),
    Mutant(
        "claim-without-lock",
        "relays do not take the dispatch lock",
        "permits are exact",
        (
            statement(
                "dispatch_lock", "SELECT pg_catalog.pg_advisory_xact_lock(78610002)", "SELECT 1"
            ),
        ),
        (_ROUTE + "permits_are_exact_with_two_relays_racing",),
    ),
    Mutant(
        "route-without-lock",
        "routing alone does not take the dispatch lock",
        "permits are exact",
        (
            Edit(
                "outbox/store/dispatch.py",
                '            lock="dispatch_lock",\n            limit_ms=ROUTE',
                "            limit_ms=ROUTE",
            ),
        ),
        (_RELAY + "a_relay_leases_under_the_dispatch_lock",),
    ),
    Mutant(
        "claim-unfair",
        "a fair claim takes all it can from the first organization",
        "I15",
        (
            statement(
                "route", "LIMIT greatest(1, %(events_max)s::int / o.n)", "LIMIT %(events_max)s::int"
            ),
        ),
        (_ROUTE + "a_fair_claim_gives_each_organization_its_part",),
    ),
    Mutant(
        "claims-never-fair",
        "a relay with a backlog claims in order of id alone",
        "I15",
        (Edit("outbox/relay.py", "rhythm.fair = not fair and", "rhythm.fair = False and"),),
        (_RELAY + "one_organizations_backlog_does_not_hide_anothers_event",),
    ),
    Mutant(
        "turns-ignored",
        "the window goes to the oldest events, whoever's they are",
        "I15",
        (
            statement(
                "route",
                "row_number() OVER (PARTITION BY m.org_id ORDER BY m.event_id, m.subscription_id)",
                "row_number() OVER (ORDER BY m.event_id, m.subscription_id)",
            ),
        ),
        (_ROUTE + "the_window_bounds_leases_and_organizations_take_turns",),
    ),
    # -- the floor ------------------------------------------------------------------------------
    Mutant(
        "cursor",
        "only ids above the highest one seen are claimed: `id > cursor`, without a sweep",
        "I9",
        (
            Edit(
                "outbox/horizon.py",
                "if self.value == 0:",
                "if self.value >= 0:",
            ),
        ),
        (_HORIZON + "no_event_below_the_floor_outlives_the_end_of_its_transaction",),
    ),
    Mutant(
        "floor-forgets-writers",
        "transactions in progress are not remembered when the floor rises",
        "I9",
        (Edit("outbox/horizon.py", "self._watched.setdefault(xid, self.value)", "pass"),),
        (_HORIZON + "no_event_below_the_floor_outlives_the_end_of_its_transaction",),
    ),
    Mutant(
        "floor-without-margin",
        "the floor rises to the newest id at once",
        "I9",
        (Edit("outbox/horizon.py", "if at > looked_at - MARGIN_S:", "if at > looked_at:"),),
        (_HORIZON + "a_claim_that_waited_raises_the_floor_only_to_what_its_look_knew",),
    ),
    Mutant(
        "floor-raised-by-the-clock-after-the-claim",
        "a claim that waited raises the floor past writers that no snapshot has shown",
        "I9",
        (
            Edit(
                "outbox/relay.py",
                "self._floor.candidate(self._rhythm.looked_at)",
                "self._floor.candidate(self._clock())",
            ),
        ),
        (_HORIZON + "a_claim_that_waited_raises_the_floor_only_to_what_its_look_knew",),
    ),
    Mutant(
        "sweep-from-the-risen-floor",
        "a sweep begins where the floor stood after the transaction was seen",
        "I9",
        (
            Edit(
                "outbox/horizon.py",
                "self._watched.setdefault(xid, self.value)",
                "self._watched.setdefault(xid, max(self.value, to))",
            ),
        ),
        (_HORIZON + "no_event_below_the_floor_outlives_the_end_of_its_transaction",),
    ),
    Mutant(
        "floor-never-rises",
        "every claim walks the dead rows at the old end",
        "flat cost under a held snapshot",
        (
            Edit(
                "outbox/horizon.py",
                "self.value = max(self.value, to)",
                "self.value = max(self.value, 0)",
            ),
        ),
        (_HORIZON + "the_floor_rises_under_steady_traffic_and_under_a_backlog",),
    ),
    # -- permits --------------------------------------------------------------------------------
    Mutant(
        "route-beyond-concurrency",
        "routing leases without counting what is leased",
        "an endpoint's concurrency",
        (
            statement(
                "route",
                "least(coalesce(l.concurrency, 2147483647) - used.n,",
                "least(coalesce(l.concurrency, 2147483647),",
            ),
        ),
        (_ROUTE + "what_is_leased_already_counts_against_the_concurrency",),
    ),
    Mutant(
        "permits-counted-from-now",
        "a claim tells the next one to count from itself on, whatever older leases live",
        "an endpoint's concurrency",
        (statement("route", "least(used.oldest, drawn.token) END", "drawn.token END"),),
        (_ROUTE + "a_claim_tells_the_oldest_live_lease_of_its_lane",),
    ),
    Mutant(
        "due-beyond-concurrency",
        "due work is leased without counting what is leased",
        "an endpoint's concurrency",
        (
            statement(
                "lease_due",
                "THEN coalesce(n.concurrency, 2147483647) - used.n",
                "THEN coalesce(n.concurrency, 2147483647)",
            ),
        ),
        (_DUE + "permits_of_a_lane_hold",),
    ),
    Mutant(
        "expired-hold-permits",
        "leases that ran out still hold permits",
        "no limiter state leaks",
        (
            statement(
                "route",
                "AND d.token >= l.since AND d.lease_until > clock.now",
                "AND d.token >= l.since",
            ),
        ),
        (_ROUTE + "expired_leases_hold_no_permit",),
    ),
    Mutant(
        "rate-ignored",
        "routing leases beyond an endpoint's rate",
        "an endpoint's rate",
        (statement("route", "floor(coalesce(r.tokens, 2147483647))", "2147483647"),),
        (_ROUTE + "rate_tokens_are_spent_and_refill_with_time",),
    ),
    Mutant(
        "rate-unspent",
        "a lease of due work spends no token",
        "an endpoint's rate",
        (
            statement(
                "lease_due",
                "l.tokens - (SELECT count(*) FROM chosen c WHERE c.lane = l.lane)",
                "l.tokens",
            ),
        ),
        (_ROUTE + "rate_tokens_are_spent_and_refill_with_time",),
    ),
    Mutant(
        "retries-first",
        "retries go before first attempts",
        "I15",
        (statement("lease_due", "ORDER BY p.fresh DESC", "ORDER BY p.fresh"),),
        (_DUE + "first_attempts_of_every_lane_go_before_retries_of_any",),
    ),
    Mutant(
        "retries-take-all",
        "a storm of retries may take every permit",
        "I15",
        (statement("lease_due", "l.concurrency::bigint * 3 / 4", "l.concurrency::bigint"),),
        (_DUE + "retries_leave_a_quarter_of_the_permits_free",),
    ),
    Mutant(
        "too-early",
        "a delivery is leased before it is due",
        "I5",
        (
            statement(
                "lease_due",
                "d.due_at >= l.retries_from AND d.due_at <= clock.now",
                "d.due_at >= l.retries_from",
            ),
        ),
        (_DUE + "each_delivery_waits_for_its_own_due_time",),
    ),
    # -- fronts ---------------------------------------------------------------------------------
    Mutant(
        "front-beyond-now",
        "a front lies where the first is due, however much later that is",
        "retries are made when they are due",
        (
            Edit(
                "outbox/fronts.py",
                "front = min(due, self._now - self._margin_s)",
                "front = due - self._margin_s",
            ),
        ),
        (_FRONTS + "what_comes_before_a_delivery_that_is_due_later_is_not_behind_the_front",),
    ),
    Mutant(
        "front-rounded-up",
        "a front of centuries ago is what a float makes of it",
        "nothing is lost",
        (Edit("outbox/fronts.py", "front if front > 0 else -math.inf", "front"),),
        (_FRONTS + "a_front_that_a_float_rounds_up_hides_nothing",),
    ),
    Mutant(
        "front-forgotten-before-its-turn",
        "a relay remembers a thousand lanes that wait",
        "retries are made when they are due",
        (Edit("outbox/fronts.py", "KEPT = 16384", "KEPT = 1024"),),
        (_FRONTS + "thousands_of_lanes_that_wait_have_their_turn_before_they_are_forgotten",),
    ),
    Mutant(
        "blocked-lanes-spin",
        "a relay goes on looking at lanes that are all blocked",
        "no work on a hot path that finds nothing",
        (Edit("outbox/rhythm.py", "self.places_seen += places", "self.places_seen += 0"),),
        (_FRONTS + "places_that_are_blocked_are_all_looked_at_and_then_left_alone_for_a_while",),
    ),
    Mutant(
        "lanes-by-place",
        "of more lanes than may be leased at a time the same go first each time",
        "I15",
        (
            statement("lease_due", "ORDER BY x.turn, x.lot)", "ORDER BY x.turn)"),
            statement("lease_due", "ORDER BY y.turn, y.lot LIMIT", "ORDER BY y.turn LIMIT"),
        ),
        (_DUE + "more_lanes_than_the_window_take_turns_by_lot",),
    ),
    Mutant(
        "front-not-lowered",
        "what is put behind a front stays there",
        "retries are made when they are due",
        (Edit("outbox/fronts.py", "min(due, self._fronts.get(place, due))", "due"),),
        (_FRONTS + "what_is_put_lowers_the_front_and_is_due_at_its_time",),
    ),
    Mutant(
        "clear-forgets-later",
        "where nothing is due now, what is due later is forgotten until the next walk",
        "retries are made when they are due",
        (
            Edit(
                "outbox/fronts.py", "if self._waiting.get(place, now) <= now:\n                ", ""
            ),
        ),
        (_FRONTS + "nothing_due_says_nothing_of_what_is_due_later",),
    ),
    Mutant(
        "places-without-turns",
        "the same lanes go each time where not all go",
        "I15",
        (Edit("outbox/fronts.py", "self._waiting[place] = self._waiting.pop(place)", "pass"),),
        (_FRONTS + "places_take_turns_where_not_all_go",),
    ),
    Mutant(
        "walk-without-pace",
        "a walk over everything is made with every look",
        "a held snapshot costs nothing",
        (Edit("outbox/fronts.py", "self.next_at = now + min(", "self.next_at = now + 0 * min("),),
        (_FRONTS + "walks_take_their_share_of_the_time_and_are_made_all_the_same",),
    ),
    Mutant(
        "walk-after-a-standstill",
        "a server that stood still for a minute hides for twenty what others made ready",
        "retries are made when they are due",
        (Edit("outbox/fronts.py", "            WALK_S_MAX, seconds / WALK", "seconds / WALK"),),
        (_FRONTS + "walks_take_their_share_of_the_time_and_are_made_all_the_same",),
    ),
    Mutant(
        "walk-of-many-parts",
        "of a walk in parts each rests as if it were all",
        "retries are made when they are due",
        (Edit("outbox/fronts.py", "max(self._parts, self._parts_before)", "1"),),
        (_FRONTS + "all_lanes_are_passed_in_time_however_many_parts_it_takes",),
    ),
    Mutant(
        "walk-over-all-at-once",
        "claims wait for a walk over all lanes, however long it takes",
        "a held snapshot costs nothing",
        (Edit("outbox/fronts.py", "lanes_max >> self._halvings", "lanes_max"),),
        (_FRONTS + "walks_begin_small_and_that_take_long_are_made_over_fewer_lanes",),
    ),
    Mutant(
        "walk-not-continued",
        "a walk that was cut is not gone on with before the next look",
        "retries are made when they are due",
        (Edit("outbox/rhythm.py", "if self.lane_from else look_at", "if False else look_at"),),
        (_FRONTS + "a_walk_that_was_cut_goes_on_as_soon_as_its_share_allows",),
    ),
    Mutant(
        "expired-behind-front",
        "leases that are taken back wait for a walk",
        "retries are made when they are due",
        (
            statement(
                "expire_leases",
                "extract(epoch FROM clock.now)",
                "extract(epoch FROM NULL::timestamptz)",
            ),
        ),
        (_FRONTS + "what_a_relay_makes_ready_it_leases_without_a_walk",),
    ),
    Mutant(
        "turn-behind-front",
        "an ordered delivery that has its turn waits for a walk",
        "retries are made when they are due",
        (statement("order_advance", "NOT o.park AND o.lane > 0", "NOT o.park AND o.lane < 0"),),
        (_FRONTS + "what_a_relay_makes_ready_it_leases_without_a_walk",),
    ),
    Mutant(
        "claim-passes-the-dead",
        "a claim looks for who waits from the beginning of the lane on",
        "a held snapshot costs nothing",
        (statement("route", "d.queue = 0 AND d.due_at >= l.front AND", "d.queue = 0 AND"),),
        (_PLANS + "what_has_waited_costs_nothing_while_somebody_holds_a_snapshot",),
    ),
    Mutant(
        "lease-passes-the-dead",
        "due work is leased from the beginning of the lane on",
        "a held snapshot costs nothing",
        (statement("lease_due", "d.due_at >= l.fresh_from AND ", ""),),
        (_PLANS + "what_has_waited_costs_nothing_while_somebody_holds_a_snapshot",),
    ),
    Mutant(
        "clear-lane-unsaid",
        "a claim does not say where nobody waits, and fronts stay where they were",
        "a held snapshot costs nothing",
        (
            statement(
                "route",
                "array_agg(x.lane) FILTER (WHERE x.due_at IS NULL)",
                "array_agg(x.lane) FILTER (WHERE false)",
            ),
        ),
        (_FRONTS + "a_claim_tells_where_first_attempts_wait_and_where_none_do",),
    ),
    Mutant(
        "floor-over-a-cut-list",
        "the floor rises though not all who write were listed",
        "I1",
        (Edit("outbox/horizon.py", "if before.cut:", "if False:"),),
        (_HORIZON + "the_floor_stays_where_the_list_of_who_writes_was_cut",),
    ),
    Mutant(
        "cut-list-unsaid",
        "a look does not say that its list of who writes is cut",
        "I1",
        (statement("tick", "CASE WHEN x.more > 1000 THEN ':cut' END", "NULL"),),
        (_HORIZON + "a_look_says_that_its_list_of_who_writes_is_cut",),
    ),
    # -- the window, the broker, the bell ---------------------------------------------------------
    Mutant(
        "window-ignored",
        "routing leases more than the window",
        "waiting never outlives the lease",
        (statement("route", "WHEN r.may AND r.nth <= %(window)s::int THEN", "WHEN r.may THEN"),),
        (_ROUTE + "the_window_bounds_leases_and_organizations_take_turns",),
    ),
    Mutant(
        "window-unbounded",
        "the window is not bounded by what starts in a quarter of a lease",
        "waiting never outlives the lease",
        (
            Edit(
                "outbox/horizon.py",
                "aim = min(max(self._first, rate * QUEUE_S), rate * self._quarter_s)",
                "aim = max(self._first, rate * QUEUE_S)",
            ),
        ),
        (_HORIZON + "what_waits_is_started_within_a_quarter_of_a_lease",),
    ),
    Mutant(
        "window-never-shrinks",
        "a broker that loses everything goes on getting full windows",
        "waiting never outlives the lease",
        (Edit("outbox/horizon.py", "max(0.05, self._factor / 2)", "max(0.05, self._factor)"),),
        (_HORIZON + "unstarted_expiries_shrink_the_window_and_it_recovers",),
    ),
    Mutant(
        "refusal-not-released",
        "what the broker refused keeps its lease",
        "a broker's failure costs no lease",
        (Edit("outbox/handover.py", "            await dispatch.release(token, ids)\n", ""),),
        (_RELAY + "what_the_broker_refused_is_given_back_and_sent_later_free_of_charge",),
    ),
    Mutant(
        "sweep-leaves-the-rest",
        "of a large transaction that commits late a batch is swept, and the floor stays",
        "late commits count",
        (
            Edit(
                "outbox/horizon.py",
                "        self.value = id_max\n        self._ahead",
                "        self._ahead",
            ),
        ),
        (_HORIZON + "a_large_late_commit_is_a_backlog_like_any_other",),
    ),
    Mutant(
        "bell-without-gate",
        "a relay sleeps without waiting for those who saw it awake",
        "no wake-up is lost",
        (
            Edit(
                "outbox/relay.py",
                "found = not self._rhythm.quiet and await self._gate(dispatch, rung, until)",
                "found = await self._tick(dispatch, asleep=True) is None",
            ),
        ),
        (_BELL + "a_writer_that_read_awake_and_commits_after_all_sleep_is_found",),
    ),
    Mutant(
        "gate-passed-by-the-long",
        "a relay sleeps without waiting for who has been writing for long",
        "no wake-up is lost",
        (Edit("outbox/rhythm.py", "            return GATE_S_MAX\n", "            return None\n"),),
        (_BELL + "a_gate_waits_for_all_who_were_there_and_hurries_for_those_of_late",),
    ),
    Mutant(
        "gate-hurries-for-all",
        "each sleep beside a writer who is open for hours begins with hurried looks",
        "no work on a hot path that finds nothing",
        (Edit("outbox/rhythm.py", "if not seen.cut and not any(", "if False and any("),),
        (
            _BELL + "a_transaction_open_for_long_is_looked_at_with_less_haste",
            _BELL + "a_gate_waits_for_all_who_were_there_and_hurries_for_those_of_late",
        ),
    ),
    Mutant(
        "gate-hurries-for-none",
        "who began a moment ago counts as open for long",
        "an event comes at once",
        (
            Edit(
                "outbox/rhythm.py",
                "self.long_below, self.long_next = below,",
                "self.long_below, self.long_next = xmax,",
            ),
        ),
        (_BELL + "a_gate_waits_for_all_who_were_there_and_hurries_for_those_of_late",),
    ),
    Mutant(
        "gate-trusts-a-cut-list",
        "who is missing in a list that was cut counts as open for long",
        "an event comes at once",
        (Edit("outbox/rhythm.py", "if not seen.cut and not any(", "if not any("),),
        (_BELL + "a_gate_waits_for_all_who_were_there_and_hurries_for_those_of_late",),
    ),
    Mutant(
        "full-looked-at-all-the-time",
        "a relay claims as fast as it can beside an organization without permits",
        "no work on a hot path that finds nothing",
        (Edit("outbox/relay.py", "if rhythm.resting(self._clock()):", "if False:"),),
        (_HORIZON + "beside_an_organization_without_permits_the_relay_looks_at_leisure",),
    ),
    Mutant(
        "permits-unasked",
        "a claim asks for more than there are permits for",
        "a row without a permit is written twice",
        (
            Edit(
                "outbox/horizon.py",
                "if permits >= PERMITS_LEAST:",
                "if True:\n            return room\n        if True:",
            ),
        ),
        (_HORIZON + "a_claim_takes_no_more_than_there_are_permits_for",),
    ),
    Mutant(
        "permits-waited-for",
        "a claim waits for the permits of a slow destination",
        "I15",
        (
            Edit(
                "outbox/horizon.py",
                "return 0 if permits + self._rate() * PERMITS_S >= PERMITS_LEAST else room",
                "return 0",
            ),
        ),
        (_HORIZON + "a_slow_destination_without_permits_does_not_hold_up_the_others",),
    ),
    Mutant(
        "later-unsaid",
        "nobody says that retries were due while fresh events flowed",
        "retries go on beside fresh events",
        (
            statement(
                "lease_due",
                "WHERE s.queue > 0 AND s.due_at <= clock.now AND l.free > 0)",
                "WHERE s.queue > 9 AND s.due_at <= clock.now AND l.free > 0)",
            ),
        ),
        (_DUE + "it_tells_whether_something_was_due_that_is_no_first_attempt",),
    ),
    Mutant(
        "bell-silent",
        "capture rings nobody",
        "no wake-up is lost",
        (Edit(_RING, "PERFORM pg_catalog.pg_notify('outbox', '');", ""),),
        (_BELL + "a_commit_wakes_a_sleeping_relay",),
    ),
    Mutant(
        "bell-always",
        "capture rings a relay that is awake, in every transaction",
        "fast: NOTIFY takes a lock of the whole cluster",
        (Edit(_RING, "IF was = 2 OR", "IF was = 1 OR was = 2 OR"),),
        ("tests/emit/test_emit.py::test_the_bell_rings_only_for_a_sleeping_relay",),
    ),
    Mutant(
        "bell-rings-for-each",
        "capture rings again though somebody just did",
        "fast: NOTIFY takes a lock of the whole cluster",
        (Edit(_RING, " AND now_ms - was NOT BETWEEN 0 AND 20 THEN", " THEN"),),
        (_RUNG,),
    ),
    Mutant(
        "bell-rings-once",
        "once it was rung and nobody woke, it is not rung again",
        "no wake-up is lost",
        (Edit(_RING, "NOT BETWEEN 0 AND 20 THEN", "NOT BETWEEN -99999 AND 9999999 THEN"),),
        (_RUNG,),
    ),
    Mutant(
        "bell-left-rung",
        "a relay that is awake leaves the bell as somebody rang it",
        "fast: NOTIFY takes a lock of the whole cluster",
        (
            Edit(
                "outbox/relay.py",
                "1 if rhythm.bell != 1 else None",
                "1 if rhythm.bell == 2 else None",
            ),
        ),
        (_BELL + "a_relay_that_is_awake_says_so_whatever_the_bell_said",),
    ),
    Mutant(
        "idle-relay-asks",
        "a relay looks for due deliveries though none has a due time",
        "an idle daemon makes fewer than 5 statements a second",
        (Edit("outbox/relay.py", "        if not places:\n", "        if False:\n"),),
        (_BELL + "a_relay_that_has_nothing_to_do_makes_one_statement_a_look",),
    ),
    Mutant(
        "idle-relay-sleeps-on",
        "a relay that slept with nothing due does not see that something is",
        "nothing is lost",
        (
            Edit(
                "outbox/relay.py",
                "        rhythm.due_at = min(rhythm.due_at, self._due_at(dispatch))\n        seen",
                "        seen",
            ),
        ),
        (_BELL + "a_relay_that_had_nothing_to_do_sees_what_is_due",),
    ),
)
