-- Brings the scheduled deliveries of a lane into line with the state of their destinations, batch
-- by batch in order of due time: paused or disabled ones are held, removed ones cancelled. Runs
-- under the lock of configuration, so that a state changed back meanwhile is seen.
--
-- lane      bigint
-- after_at  timestamptz, after_id uuid: where the batch before ended ('-infinity' at first)
-- rows_max  int
-- One row: looked (int), held, released, cancelled (counts), last_at (text), last_id
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now, (SELECT last_value FROM outbox.ring_slot)::smallint AS slot
),
looked AS MATERIALIZED (
    SELECT x.id, x.at FROM (
        (SELECT d.id, d.due_at AS at FROM outbox.delivery d
         WHERE d.lane = %(lane)s::bigint AND d.state = 'scheduled' AND d.queue = 0
           AND d.due_at >= %(after_at)s::timestamptz
           AND (d.due_at, d.id) > (%(after_at)s::timestamptz, %(after_id)s::uuid)
         ORDER BY d.due_at, d.id LIMIT %(rows_max)s::int)
        UNION ALL
        (SELECT d.id, d.due_at FROM outbox.delivery d
         WHERE d.lane = %(lane)s::bigint AND d.state = 'scheduled' AND d.queue = 1
           AND d.due_at >= %(after_at)s::timestamptz
           AND (d.due_at, d.id) > (%(after_at)s::timestamptz, %(after_id)s::uuid)
         ORDER BY d.due_at, d.id LIMIT %(rows_max)s::int)
        UNION ALL
        (SELECT d.id, d.due_at FROM outbox.delivery d
         WHERE d.lane = %(lane)s::bigint AND d.state = 'scheduled' AND d.queue = 2
           AND d.due_at >= %(after_at)s::timestamptz
           AND (d.due_at, d.id) > (%(after_at)s::timestamptz, %(after_id)s::uuid)
         ORDER BY d.due_at, d.id LIMIT %(rows_max)s::int)) x
    ORDER BY x.at, x.id LIMIT %(rows_max)s::int
),
own AS MATERIALIZED (
    SELECT d.*, CASE WHEN s.state = 'removed' OR n.state = 'removed' THEN 'removed'
                     WHEN s.state <> 'active' THEN s.state ELSE n.state END AS why
    FROM outbox.delivery d JOIN looked k ON k.id = d.id
    JOIN outbox.subscription s ON s.id = d.subscription_id
    LEFT JOIN outbox.endpoint n ON n.id = s.endpoint_id
    WHERE d.state = 'scheduled' AND (s.state <> 'active' OR n.state <> 'active')
    ORDER BY d.id FOR UPDATE OF d
),
stopped AS (
    UPDATE outbox.delivery d SET state = 'held', held_at = clock.now, held_reason = o.why
    FROM clock, own o WHERE d.id = o.id AND o.why <> 'removed'
),
gone AS (
    DELETE FROM outbox.delivery d USING own o WHERE d.id = o.id AND o.why = 'removed'
),
told AS (
    INSERT INTO outbox.journal (slot, at, fact, event_id, delivery_id, subscription_id, org_id, revision,
        budget, attempt, charged, reason)
    SELECT clock.slot, clock.now, CASE WHEN o.why = 'removed' THEN 'cancelled' ELSE 'held' END,
           o.event_id, o.id, o.subscription_id, o.org_id, o.revision, o.budget, o.attempts, false, o.why
    FROM clock, own o
)
SELECT (SELECT count(*) FROM looked)::int AS looked,
       (SELECT count(*) FROM own WHERE why <> 'removed') AS held, 0::bigint AS released,
       (SELECT count(*) FROM own WHERE why = 'removed') AS cancelled,
       l.at::text AS last_at, l.id AS last_id
FROM (SELECT 1) one LEFT JOIN LATERAL (SELECT k.at, k.id FROM looked k ORDER BY k.at DESC, k.id DESC LIMIT 1) l ON true
