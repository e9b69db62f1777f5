-- One event with its payload, its deliveries and what became of them.
--
-- id bigint, org_id text or null: only an event of this organization
-- One row, none if there is no such event: a JSON object without the payload, payload (text)
WITH facts AS MATERIALIZED (
    SELECT j.* FROM outbox.journal j WHERE j.event_id = %(id)s::bigint ORDER BY j.at LIMIT 10000
),
named AS MATERIALIZED (
    SELECT f.delivery_id AS id, f.subscription_id FROM facts f WHERE f.delivery_id IS NOT NULL
    UNION
    SELECT (i.value ->> 'delivery')::uuid, (i.value ->> 'subscription')::bigint
    FROM facts f CROSS JOIN LATERAL jsonb_array_elements(
        CASE WHEN f.fact = 'routed' AND jsonb_typeof(f.detail) = 'array' THEN f.detail ELSE '[]' END) i (value)
),
told AS MATERIALIZED (
    SELECT n.id, n.subscription_id, s.kind, s.endpoint_id,
           coalesce(d.state, CASE WHEN l.id IS NOT NULL THEN 'dead' END, last.fact) AS state,
           coalesce(d.attempts, l.attempts, last.attempt, 0) AS attempts,
           coalesce(d.budget, l.budget, last.budget, 1) AS budget,
           coalesce(l.reason, d.held_reason, last.reason) AS reason, d.due_at
    FROM named n
    LEFT JOIN outbox.delivery d ON d.id = n.id
    LEFT JOIN outbox.dead_letter l ON l.id = n.id
    LEFT JOIN outbox.subscription s ON s.id = n.subscription_id
    LEFT JOIN LATERAL (
        SELECT CASE f.fact WHEN 'expired' THEN 'dead' ELSE f.fact END AS fact, f.attempt, f.budget, f.reason
        FROM facts f WHERE f.delivery_id = n.id ORDER BY f.at DESC LIMIT 1) last ON true
)
SELECT jsonb_build_object(
    'id', e.id, 'type', e.type, 'org', e.org_id, 'subject', e.subject, 'ordering_key', e.ordering_key,
    'headers', e.headers, 'created_at', e.created_at, 'deliver_at', e.deliver_at, 'expires_at', e.expires_at,
    'pending', EXISTS (SELECT FROM outbox.pending p WHERE p.id = e.id),
    'redacted', EXISTS (SELECT FROM facts f WHERE f.fact = 'redacted'),
    'deliveries', (SELECT coalesce(jsonb_agg(jsonb_build_object(
                    'id', t.id, 'subscription', t.subscription_id, 'kind', t.kind, 'endpoint', t.endpoint_id,
                    'state', t.state, 'attempts', t.attempts, 'budget', t.budget, 'reason', t.reason,
                    'due_at', t.due_at) ORDER BY t.subscription_id, t.id), '[]') FROM told t),
    'journal', (SELECT coalesce(jsonb_agg(jsonb_build_object(
                    'at', j.at, 'fact', j.fact, 'delivery', j.delivery_id, 'subscription', j.subscription_id,
                    'budget', j.budget, 'attempt', j.attempt, 'charged', j.charged, 'reason', j.reason,
                    'due_at', j.due_at, 'detail', j.detail) ORDER BY j.at, j.fact = 'routed' DESC), '[]')
                FROM facts j)),
    e.payload::text AS payload
FROM (
    SELECT e.* FROM generate_series(0, 7) AS ring (slot) CROSS JOIN LATERAL (
        SELECT * FROM outbox.event e WHERE e.slot = ring.slot AND e.id = %(id)s::bigint) e
    ORDER BY e.slot LIMIT 1) e
WHERE %(org_id)s::text IS NULL OR e.org_id = %(org_id)s::text
