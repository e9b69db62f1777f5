-- Gives up dead letters past their retention.
--
-- now       timestamptz or null
-- keep_s    float8
-- rows_max  int
-- One row: done (count)
WITH clock AS MATERIALIZED (
    SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now,
           (SELECT last_value FROM outbox.ring_slot)::smallint AS slot
),
old AS MATERIALIZED (
    SELECT d.* FROM outbox.dead_letter d
    WHERE d.died_at <= (SELECT clock.now - make_interval(secs => %(keep_s)s::float8) FROM clock)
    ORDER BY d.died_at LIMIT %(rows_max)s::int FOR UPDATE SKIP LOCKED
),
gone AS (
    DELETE FROM outbox.dead_letter d USING old o WHERE d.id = o.id
),
told AS (
    INSERT INTO outbox.journal (slot, at, fact, event_id, delivery_id, subscription_id, org_id, revision,
        budget, attempt, charged, reason)
    SELECT clock.slot, clock.now, 'discarded', o.event_id, o.id, o.subscription_id, o.org_id, o.revision,
           o.budget, o.attempts, false, 'retention'
    FROM clock, old o
)
SELECT count(*) AS done FROM old
