-- One event with its payload and what became of it.
--
-- id bigint, org_id text or null: only an event of this organization
-- One row, none if there is no such event: a JSON object without the payload, payload (text)
SELECT jsonb_build_object(
    'id', e.id, 'type', e.type, 'org', e.org_id, 'subject', e.subject, 'ordering_key', e.ordering_key,
    'headers', e.headers, 'created_at', e.created_at, 'deliver_at', e.deliver_at, 'expires_at', e.expires_at,
    'pending', EXISTS (SELECT FROM outbox.pending p WHERE p.id = e.id),
    'journal', (SELECT coalesce(jsonb_agg(jsonb_build_object(
                    'at', j.at, 'fact', j.fact, 'delivery', j.delivery_id, 'subscription', j.subscription_id,
                    'budget', j.budget, 'attempt', j.attempt, 'charged', j.charged, 'reason', j.reason,
                    'due_at', j.due_at, 'detail', j.detail) ORDER BY j.at, j.fact = 'routed' DESC), '[]')
                FROM (SELECT * FROM outbox.journal j WHERE j.event_id = e.id ORDER BY j.at LIMIT 10000) j)),
    e.payload::text AS payload
FROM (
    SELECT e.* FROM generate_series(0, 7) AS ring (slot) CROSS JOIN LATERAL (
        SELECT * FROM outbox.event e WHERE e.slot = ring.slot AND e.id = %(id)s::bigint) e
    ORDER BY e.slot LIMIT 1) e
WHERE %(org_id)s::text IS NULL OR e.org_id = %(org_id)s::text
