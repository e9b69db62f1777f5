-- Carries what is still owed out of a slot: the event is copied to the newest slot under its id, the
-- rows point there, and a `carried` fact holds their whole state, for the facts before it go.
-- Runs on rows that carry_pick.sql locked in the same transaction.
--
-- The fact bears the time of the latest fact before it, plus a microsecond: a settle that waits for
-- our lock has looked at its clock already, and its fact must come after this one.
--
-- now         timestamptz or null
-- slot        int
-- deliveries  uuid[]
-- dead        uuid[]
-- pending     bigint[]
-- One row: carried (count)
WITH clock AS MATERIALIZED (
    SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now,
           (SELECT last_value FROM outbox.ring_slot)::smallint AS slot
),
live AS (
    UPDATE outbox.delivery d SET event_slot = clock.slot
    FROM clock WHERE d.id = ANY (%(deliveries)s::uuid[]) AND d.event_slot = %(slot)s::smallint
    RETURNING d.*
),
dead AS (
    UPDATE outbox.dead_letter d SET event_slot = clock.slot
    FROM clock WHERE d.id = ANY (%(dead)s::uuid[]) AND d.event_slot = %(slot)s::smallint
    RETURNING d.*
),
unrouted AS (
    UPDATE outbox.pending p SET slot = clock.slot
    FROM clock WHERE p.id = ANY (%(pending)s::bigint[]) AND p.slot = %(slot)s::smallint
    RETURNING p.*
),
-- What was frozen for them goes with them.
messages AS (
    UPDATE outbox.email e SET slot = clock.slot
    FROM clock WHERE e.slot = %(slot)s::smallint AND e.delivery_id = ANY (%(deliveries)s::uuid[] || %(dead)s::uuid[])
),
recipients AS (
    UPDATE outbox.email_recipient r SET slot = clock.slot
    FROM clock WHERE r.slot = %(slot)s::smallint AND r.delivery_id = ANY (%(deliveries)s::uuid[] || %(dead)s::uuid[])
),
owed AS MATERIALIZED (
    SELECT d.event_id, d.id, d.subscription_id, d.org_id, d.revision, d.budget, d.attempts,
           d.held_reason AS reason, d.due_at, to_jsonb(d) - '{token,lease_until,started_at}'::text[] AS state
    FROM live d
    UNION ALL
    SELECT d.event_id, d.id, d.subscription_id, d.org_id, d.revision, d.budget, d.attempts,
           d.reason, NULL, to_jsonb(d) || '{"state": "dead"}'
    FROM dead d
    UNION ALL
    SELECT p.id, NULL, NULL, nullif(p.org, ''), NULL, NULL, NULL, NULL, NULL, '{"state": "pending"}'
    FROM unrouted p
),
copied AS (
    INSERT INTO outbox.event (id, slot, type, org_id, subject, ordering_key, payload, headers, created_at,
        deliver_at, expires_at)
    SELECT e.id, clock.slot, e.type, e.org_id, e.subject, e.ordering_key, e.payload, e.headers, e.created_at,
           e.deliver_at, e.expires_at
    FROM clock, (SELECT DISTINCT event_id FROM owed) o CROSS JOIN LATERAL (
        SELECT e.* FROM outbox.event e WHERE e.slot = %(slot)s::smallint AND e.id = o.event_id OFFSET 0) e
    ON CONFLICT (slot, id) DO NOTHING
),
told AS (
    INSERT INTO outbox.journal (slot, at, fact, event_id, delivery_id, subscription_id, org_id, revision,
        budget, attempt, charged, reason, due_at, detail)
    SELECT clock.slot, coalesce(own.at, routed.at, clock.now) + interval '1 microsecond', 'carried',
           o.event_id, o.id, o.subscription_id, o.org_id, o.revision, o.budget, o.attempts, false,
           coalesce(own.reason, o.reason), o.due_at,
           o.state || jsonb_build_object('from_slot', %(slot)s::int, 'carried_at', clock.now)
    FROM clock, owed o
    LEFT JOIN LATERAL (
        SELECT j.at, j.reason FROM outbox.journal j WHERE j.delivery_id = o.id ORDER BY j.at DESC LIMIT 1) own ON true
    LEFT JOIN LATERAL (
        SELECT max(j.at) AS at FROM outbox.journal j
        WHERE own.at IS NULL AND j.event_id = o.event_id AND j.fact = 'routed') routed ON true
)
SELECT count(*) AS carried FROM owed
