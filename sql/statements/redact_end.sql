-- Ends what is still owed of some events, whose rows are locked, and says that they are redacted.
--
-- A pending one is not routed any more: nobody is to get it. Its `routed` fact lists no match, so
-- that it is neither pending nor unaccounted for.
--
-- ids bigint[], deliveries uuid[]: all of their deliveries
-- why text
-- One row: events, pending, cancelled, discarded (counts), xid (text): this transaction
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now, (SELECT last_value FROM outbox.ring_slot)::smallint AS slot
),
-- Two sessions may redact the same event: it is told once.
events AS MATERIALIZED (
    SELECT DISTINCT ON (e.id) e.id, e.org_id FROM outbox.event e
    WHERE e.slot = ANY ('{0,1,2,3,4,5,6,7}') AND e.id = ANY (%(ids)s::bigint[])
      AND NOT EXISTS (SELECT FROM outbox.journal j WHERE j.event_id = e.id AND j.fact = 'redacted')
    ORDER BY e.id
),
unrouted AS (
    DELETE FROM outbox.pending p WHERE p.id = ANY (%(ids)s::bigint[]) RETURNING p.id, nullif(p.org, '') AS org_id
),
live AS (
    DELETE FROM outbox.delivery d WHERE d.id = ANY (%(deliveries)s::uuid[])
    RETURNING d.id, d.event_id, d.subscription_id, d.org_id, d.revision, d.budget, d.attempts
),
dead AS (
    DELETE FROM outbox.dead_letter d WHERE d.id = ANY (%(deliveries)s::uuid[])
    RETURNING d.id, d.event_id, d.subscription_id, d.org_id, d.revision, d.budget, d.attempts
),
told AS (
    INSERT INTO outbox.journal (slot, at, fact, event_id, delivery_id, subscription_id, org_id, revision,
        budget, attempt, charged, reason, detail)
    SELECT clock.slot, clock.now, 'routed', u.id, NULL::uuid, NULL::bigint, u.org_id, NULL::int,
           NULL::int, NULL::int, NULL::boolean, 'redacted', NULL::jsonb
    FROM clock, unrouted u
    UNION ALL
    SELECT clock.slot, clock.now, 'cancelled', o.event_id, o.id, o.subscription_id, o.org_id, o.revision,
           o.budget, o.attempts, false, 'redacted', NULL
    FROM clock, live o
    UNION ALL
    SELECT clock.slot, clock.now, 'discarded', o.event_id, o.id, o.subscription_id, o.org_id, o.revision,
           o.budget, o.attempts, false, 'redacted', NULL
    FROM clock, dead o
    UNION ALL
    SELECT clock.slot, clock.now + interval '1 microsecond', 'redacted', e.id, NULL, NULL, e.org_id, NULL,
           NULL, NULL, NULL, %(why)s::text, jsonb_build_object('by', session_user)
    FROM clock, events e
)
SELECT (SELECT count(*) FROM events) AS events, (SELECT count(*) FROM unrouted) AS pending,
       (SELECT count(*) FROM live) AS cancelled, (SELECT count(*) FROM dead) AS discarded,
       pg_current_xact_id()::xid::text AS xid
