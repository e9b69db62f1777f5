-- Live deliveries, newest first (an id begins with the time of its event).
--
-- org_id text or null, endpoint_id bigint or null (a lane), subscription_id bigint or null,
-- state text or null, tag text or null: of the subscription, before uuid or null: ids below, rows_max int
-- A row each: a JSON object
SELECT jsonb_build_object(
    'id', d.id, 'state', d.state, 'event', d.event_id, 'org', d.org_id, 'subscription', d.subscription_id,
    'kind', coalesce(s.processor, s.kind), 'endpoint', s.endpoint_id, 'generation', d.generation, 'budget', d.budget, 'attempts', d.attempts,
    'expiries', d.expiries, 'due_at', d.due_at, 'lease_until', d.lease_until, 'started_at', d.started_at,
    'percent', p.percent, 'note', p.note,
    'held_reason', d.held_reason, 'held_at', d.held_at, 'expires_at', d.expires_at, 'age_limit_at', d.age_limit_at)
FROM outbox.delivery d JOIN outbox.subscription s ON s.id = d.subscription_id
LEFT JOIN outbox.progress p ON p.delivery_id = d.id
WHERE (%(org_id)s::text IS NULL OR d.org_id = %(org_id)s::text)
  AND (%(endpoint_id)s::bigint IS NULL OR d.lane = %(endpoint_id)s::bigint)
  AND (%(subscription_id)s::bigint IS NULL OR d.subscription_id = %(subscription_id)s::bigint)
  AND (%(state)s::text IS NULL OR d.state = %(state)s::text)
  AND (%(tag)s::text IS NULL OR s.tags @> ARRAY[%(tag)s::text])
  AND (%(before)s::uuid IS NULL OR d.id < %(before)s::uuid)
ORDER BY d.id DESC LIMIT %(rows_max)s::int
