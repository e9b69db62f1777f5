-- One delivery and its story, whether it lives, is dead or has ended. Its routing and a redaction are
-- facts about the event; the facts of a delivery name it.
--
-- id uuid, org_id text or null: only a delivery of this organization
-- One row, none if nothing is known of it: a JSON object
WITH live AS MATERIALIZED (
    SELECT d.* FROM outbox.delivery d WHERE d.id = %(id)s::uuid
),
dead AS MATERIALIZED (
    SELECT d.* FROM outbox.dead_letter d WHERE d.id = %(id)s::uuid
),
facts AS MATERIALIZED (
    SELECT j.* FROM outbox.journal j WHERE j.delivery_id = %(id)s::uuid
),
subject AS MATERIALIZED (
    SELECT x.event_id, x.org_id, x.subscription_id FROM (
        SELECT event_id, org_id, subscription_id FROM live
        UNION ALL SELECT event_id, org_id, subscription_id FROM dead
        UNION ALL (SELECT event_id, org_id, subscription_id FROM facts ORDER BY at DESC LIMIT 1)) x
    LIMIT 1
),
story AS MATERIALIZED (
    SELECT f.at, f.fact, jsonb_build_object('at', f.at, 'fact', f.fact, 'budget', f.budget, 'attempt', f.attempt,
               'charged', f.charged, 'reason', f.reason, 'due_at', f.due_at, 'detail', f.detail) AS told
    FROM facts f
    UNION ALL
    SELECT j.at, j.fact, jsonb_build_object('at', j.at, 'fact', j.fact, 'revision', i.value -> 'revision',
               'reason', i.value -> 'held', 'due_at', i.value -> 'due_at')
    FROM subject x JOIN outbox.journal j ON j.event_id = x.event_id AND j.fact = 'routed'
    CROSS JOIN LATERAL jsonb_array_elements(
        CASE WHEN jsonb_typeof(j.detail) = 'array' THEN j.detail ELSE '[]' END) i (value)
    WHERE i.value ->> 'delivery' = %(id)s::uuid::text
    UNION ALL
    SELECT j.at, j.fact, jsonb_build_object('at', j.at, 'fact', j.fact, 'reason', j.reason, 'detail', j.detail)
    FROM subject x JOIN outbox.journal j ON j.event_id = x.event_id AND j.fact = 'redacted'
)
SELECT jsonb_build_object(
    'id', %(id)s::uuid,
    'state', coalesce((SELECT l.state FROM live l), (SELECT 'dead' FROM dead),
                      (SELECT CASE f.fact WHEN 'dead' THEN 'dead' WHEN 'expired' THEN 'dead' ELSE f.fact END
                       FROM facts f ORDER BY f.at DESC LIMIT 1)),
    'event', x.event_id, 'event_at', e.created_at, 'type', e.type, 'subject', e.subject, 'org', x.org_id,
    'subscription', x.subscription_id, 'kind', coalesce(s.processor, s.kind), 'tags', s.tags, 'endpoint', s.endpoint_id, 'url', n.url,
    'revision', coalesce((SELECT l.revision FROM live l), (SELECT d.revision FROM dead d),
                         (SELECT f.revision FROM facts f ORDER BY f.at DESC LIMIT 1)),
    'generation', coalesce((SELECT l.generation FROM live l), (SELECT d.generation FROM dead d),
                           (SELECT (f.detail ->> 'generation')::int FROM facts f
                            WHERE f.fact IN ('replayed', 'carried') AND f.detail ? 'generation' LIMIT 1), 0),
    'ordered', coalesce((SELECT l.order_key FROM live l), (SELECT d.order_key FROM dead d)) IS NOT NULL,
    'attempts', coalesce((SELECT l.attempts FROM live l), (SELECT d.attempts FROM dead d),
                         (SELECT f.attempt FROM facts f ORDER BY f.at DESC LIMIT 1)),
    'budget', coalesce((SELECT l.budget FROM live l), (SELECT d.budget FROM dead d),
                       (SELECT f.budget FROM facts f ORDER BY f.at DESC LIMIT 1)),
    'due_at', (SELECT l.due_at FROM live l), 'lease_until', (SELECT l.lease_until FROM live l),
    'held_reason', (SELECT l.held_reason FROM live l), 'held_at', (SELECT l.held_at FROM live l),
    'started_at', (SELECT l.started_at FROM live l),
    'progress', (SELECT jsonb_build_object('percent', p.percent, 'note', p.note, 'metadata', p.metadata, 'at', p.at)
                 FROM live l JOIN outbox.progress p ON p.delivery_id = l.id),
    'expires_at', coalesce((SELECT l.expires_at FROM live l), (SELECT d.expires_at FROM dead d)),
    'reason', (SELECT d.reason FROM dead d), 'died_at', (SELECT d.died_at FROM dead d),
    'journal', (SELECT coalesce(jsonb_agg(t.told ORDER BY t.at, t.fact = 'routed' DESC), '[]') FROM story t))
FROM subject x
LEFT JOIN outbox.subscription s ON s.id = x.subscription_id
LEFT JOIN outbox.endpoint n ON n.id = s.endpoint_id
LEFT JOIN LATERAL (
    SELECT e.* FROM generate_series(0, 7) AS ring (slot) CROSS JOIN LATERAL (
        SELECT e.type, e.subject, e.created_at FROM outbox.event e WHERE e.slot = ring.slot AND e.id = x.event_id) e
    LIMIT 1) e ON true
WHERE %(org_id)s::text IS NULL OR x.org_id = %(org_id)s::text
