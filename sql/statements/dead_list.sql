-- Dead letters, newest first.
--
-- org_id text or null, endpoint_id bigint or null (a lane), reason text or null,
-- since timestamptz or null, rows_max int
-- A row each: a JSON object
SELECT jsonb_build_object(
    'id', d.id, 'reason', d.reason, 'died_at', d.died_at, 'event', d.event_id, 'type', e.type, 'org', d.org_id,
    'subscription', d.subscription_id, 'endpoint', s.endpoint_id, 'attempts', d.attempts, 'budget', d.budget,
    'expires_at', d.expires_at, 'detail', d.detail)
FROM (
    SELECT d.* FROM outbox.dead_letter d
    WHERE (%(org_id)s::text IS NULL OR d.org_id = %(org_id)s::text)
      AND (%(endpoint_id)s::bigint IS NULL OR d.lane = %(endpoint_id)s::bigint)
      AND (%(reason)s::text IS NULL OR d.reason = %(reason)s::text)
      AND (%(since)s::timestamptz IS NULL OR d.died_at >= %(since)s::timestamptz)
    ORDER BY d.died_at DESC, d.id LIMIT %(rows_max)s::int) d
LEFT JOIN outbox.subscription s ON s.id = d.subscription_id
LEFT JOIN LATERAL (SELECT e.type FROM outbox.event e WHERE e.slot = d.event_slot AND e.id = d.event_id) e ON true
ORDER BY d.died_at DESC, d.id
