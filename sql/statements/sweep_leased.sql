-- Brings the leased deliveries of a lane into line with the state of their destinations, batch by
-- batch in order of token: removed ones are cancelled; paused or disabled ones are held unless an
-- attempt has started. The token goes, so that a late take or settle changes nothing. Runs under
-- the lock of configuration.
--
-- lane      bigint
-- after_at  text: the token, after_id uuid: where the batch before ended ('-infinity' at first)
-- rows_max  int
-- One row: looked (int), held, released, cancelled (counts), last_at (text), last_id
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now, (SELECT last_value FROM outbox.ring_slot)::smallint AS slot
),
looked AS MATERIALIZED (
    SELECT d.id, d.token AS at FROM outbox.delivery d, (
        SELECT coalesce(nullif(%(after_at)s::text, '-infinity')::bigint, 0) AS token) a
    WHERE d.lane = %(lane)s::bigint AND d.state = 'leased' AND d.token >= a.token
      AND (d.token, d.id) > (a.token, %(after_id)s::uuid)
    ORDER BY d.token, d.id LIMIT %(rows_max)s::int
),
own AS MATERIALIZED (
    SELECT d.*, CASE WHEN s.state = 'removed' OR n.state = 'removed' THEN 'removed'
                     WHEN s.state <> 'active' THEN s.state ELSE n.state END AS why
    FROM outbox.delivery d JOIN looked k ON k.id = d.id
    JOIN outbox.subscription s ON s.id = d.subscription_id
    LEFT JOIN outbox.endpoint n ON n.id = s.endpoint_id
    WHERE d.state = 'leased'
      AND (s.state = 'removed' OR n.state = 'removed'
           OR (d.started_at IS NULL AND (s.state <> 'active' OR n.state <> 'active')))
    ORDER BY d.id FOR UPDATE OF d
),
stopped AS (
    UPDATE outbox.delivery d
    SET state = 'held', token = NULL, lease_until = NULL, held_at = clock.now, held_reason = o.why
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
