-- Holds every delivery that an adopted copy owes. Runs under the lock of configuration; rows are locked in
-- order of id, as everywhere. A lease dies with its token.
--
-- now  timestamptz or null
-- One row: held (count)
WITH own AS MATERIALIZED (
    SELECT d.* FROM outbox.delivery d WHERE d.state IN ('scheduled', 'leased') ORDER BY d.id FOR UPDATE
),
-- The clock is read when all rows are locked: facts of whoever held one of them come before ours.
clock AS MATERIALIZED (
    SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now,
           (SELECT last_value FROM outbox.ring_slot)::smallint AS slot
    FROM (SELECT count(*) FROM own) locked
),
stopped AS (
    UPDATE outbox.delivery d
    SET state = 'held', held_at = clock.now, held_reason = 'adopted',
        token = NULL, lease_until = NULL, started_at = NULL
    FROM clock, own o WHERE d.id = o.id
),
told AS (
    INSERT INTO outbox.journal (slot, at, fact, event_id, delivery_id, subscription_id, org_id, revision,
        budget, attempt, charged, reason)
    SELECT clock.slot, clock.now, 'held', o.event_id, o.id, o.subscription_id, o.org_id, o.revision,
           o.budget, o.attempts, false, 'adopted'
    FROM clock, own o
)
SELECT count(*) AS held FROM own
