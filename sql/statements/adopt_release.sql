-- Releases what adoption held: due as before, the age limit moved by the time held. Events of
-- before the adoption that are still to be routed are held no longer. Runs under the lock of configuration.
--
-- now  timestamptz or null
-- One row: released (count)
WITH opened AS (
    UPDATE outbox.installation SET hold_event_id = 0 WHERE hold_event_id <> 0
),
own AS MATERIALIZED (
    SELECT d.* FROM outbox.delivery d WHERE d.state = 'held' AND d.held_reason = 'adopted' ORDER BY d.id FOR UPDATE
),
-- The clock is read when all rows are locked: facts of whoever held one of them come before ours.
clock AS MATERIALIZED (
    SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now,
           (SELECT last_value FROM outbox.ring_slot)::smallint AS slot
    FROM (SELECT count(*) FROM own) locked
),
freed AS (
    UPDATE outbox.delivery d
    SET state = 'scheduled', held_at = NULL, held_reason = NULL,
        age_limit_at = d.age_limit_at + greatest(clock.now - o.held_at, interval '0')
    FROM clock, own o WHERE d.id = o.id
),
told AS (
    INSERT INTO outbox.journal (slot, at, fact, event_id, delivery_id, subscription_id, org_id, revision,
        budget, attempt, charged, reason, due_at)
    SELECT clock.slot, clock.now, 'released', o.event_id, o.id, o.subscription_id, o.org_id, o.revision,
           o.budget, o.attempts, false, 'adopted', o.due_at
    FROM clock, own o
)
SELECT count(*) AS released FROM own
