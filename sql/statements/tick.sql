-- One cheap look at everything a relay waits for.
--
-- floor bigint
-- bell  int or null: 1 says that a relay is awake, 2 asks capture to ring
-- One row: pending (boolean: an unrouted event above the floor), expired (boolean: a lease ran
-- out), snapshot (text: transactions in progress), newest_id (bigint: the last event id drawn),
-- bell_was (bigint: before this statement), bell_is (bigint, or null)
SELECT EXISTS (SELECT FROM outbox.pending p WHERE p.id > %(floor)s::bigint ORDER BY p.id LIMIT 1) AS pending,
       EXISTS (SELECT FROM outbox.delivery d WHERE d.state = 'leased' AND d.lease_until AT TIME ZONE 'UTC' <= clock_timestamp() AT TIME ZONE 'UTC'
               ORDER BY d.lease_until AT TIME ZONE 'UTC' LIMIT 1) AS expired,
       pg_catalog.pg_current_snapshot()::text AS snapshot,
       -- A sequence that was never used says 1.
       (SELECT last_value - (NOT is_called)::int FROM outbox.event_id) AS newest_id,
       (SELECT last_value FROM outbox.bell) AS bell_was,
       CASE WHEN %(bell)s::bigint IS NOT NULL
            THEN pg_catalog.setval('outbox.bell', %(bell)s::bigint, true) END AS bell_is
