-- Moves the due time of live deliveries by id. Rows are locked in order of id. One that is leased is
-- left alone.
--
-- ids uuid[], org_id text or null: only deliveries of this organization
-- at timestamptz or null, wait_s float8 or null: the due time, or seconds from now
-- A row each for what is live: id, was (its state)
WITH own AS MATERIALIZED (
    SELECT d.* FROM outbox.delivery d
    WHERE d.id = ANY (%(ids)s::uuid[]) AND (%(org_id)s::text IS NULL OR d.org_id = %(org_id)s::text)
    ORDER BY d.id FOR UPDATE
),
-- The clock is read when all rows are locked: facts of whoever held one of them come before ours.
clock AS MATERIALIZED (
    SELECT c.now, coalesce(%(at)s::timestamptz, c.now + make_interval(secs => %(wait_s)s::float8)) AS due_at,
           (SELECT last_value FROM outbox.ring_slot)::smallint AS slot
    FROM (SELECT clock_timestamp() AS now FROM (SELECT count(*) FROM own) locked) c
),
moved AS (
    UPDATE outbox.delivery d SET due_at = clock.due_at
    FROM clock, own o WHERE d.id = o.id AND o.state <> 'leased'
),
told AS (
    INSERT INTO outbox.journal (slot, at, fact, event_id, delivery_id, subscription_id, org_id, revision,
        budget, attempt, charged, reason, due_at)
    SELECT clock.slot, clock.now, 'rescheduled', o.event_id, o.id, o.subscription_id, o.org_id, o.revision,
           o.budget, o.attempts, false, o.held_reason, clock.due_at
    FROM clock, own o WHERE o.state <> 'leased'
)
SELECT o.id, o.state AS was FROM own o
