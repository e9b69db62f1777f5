-- Cancels leased deliveries of removed destinations, batch by batch in order of lease. The token
-- goes with the row, so that a late settle changes nothing. Runs under the dispatch lock.
--
-- lane      bigint
-- after_at  timestamptz, after_id uuid: where the batch before ended ('-infinity' at first)
-- rows_max  int
-- One row: looked (int), held, released, cancelled (counts), last_at (text), last_id
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now, (SELECT last_value FROM outbox.ring_slot)::smallint AS slot
),
looked AS MATERIALIZED (
    SELECT d.id, d.lease_until AS at FROM outbox.delivery d
    WHERE d.lane = %(lane)s::bigint AND d.state = 'leased' AND d.lease_until >= %(after_at)s::timestamptz
      AND (d.lease_until, d.id) > (%(after_at)s::timestamptz, %(after_id)s::uuid)
    ORDER BY d.lease_until, d.id LIMIT %(rows_max)s::int
),
own AS MATERIALIZED (
    SELECT d.* FROM outbox.delivery d JOIN looked k ON k.id = d.id
    JOIN outbox.subscription s ON s.id = d.subscription_id
    LEFT JOIN outbox.endpoint n ON n.id = s.endpoint_id
    WHERE d.state = 'leased' AND (s.state = 'removed' OR n.state = 'removed')
    ORDER BY d.id FOR UPDATE OF d
),
gone AS (
    DELETE FROM outbox.delivery d USING own o WHERE d.id = o.id
),
told AS (
    INSERT INTO outbox.journal (slot, at, fact, event_id, delivery_id, subscription_id, org_id, revision,
        budget, attempt, charged, reason)
    SELECT clock.slot, clock.now, 'cancelled', o.event_id, o.id, o.subscription_id, o.org_id, o.revision,
           o.budget, o.attempts, false, 'removed'
    FROM clock, own o
)
SELECT (SELECT count(*) FROM looked)::int AS looked, 0::bigint AS held, 0::bigint AS released,
       (SELECT count(*) FROM own) AS cancelled,
       l.at::text AS last_at, l.id AS last_id
FROM (SELECT 1) one LEFT JOIN LATERAL (SELECT k.at, k.id FROM looked k ORDER BY k.at DESC, k.id DESC LIMIT 1) l ON true
