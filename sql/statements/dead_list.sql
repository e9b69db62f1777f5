-- Dead letters, newest first. Looks at the newest `looked_max` that meet the other conditions to
-- find those of a type or a subject, so that its cost is bounded.
--
-- org_id text or null, endpoint_id bigint or null (a lane), reason text or null,
-- since, until timestamptz or null: died then; patterns text[] or null, subject text or null: of the event
-- looked_max, rows_max int
-- A row each: a JSON object
SELECT jsonb_build_object(
    'id', d.id, 'reason', d.reason, 'died_at', d.died_at, 'event', d.event_id, 'type', e.type,
    'subject', e.subject, 'org', d.org_id, 'subscription', d.subscription_id, 'endpoint', s.endpoint_id,
    'generation', d.generation, 'ordered', d.order_key IS NOT NULL, 'attempts', d.attempts, 'budget', d.budget,
    'expires_at', d.expires_at, 'detail', d.detail)
FROM (
    SELECT d.* FROM (
        SELECT d.* FROM outbox.dead_letter d
        WHERE (%(org_id)s::text IS NULL OR d.org_id = %(org_id)s::text)
          AND (%(endpoint_id)s::bigint IS NULL OR d.lane = %(endpoint_id)s::bigint)
          AND (%(reason)s::text IS NULL OR d.reason = %(reason)s::text)
          AND (%(since)s::timestamptz IS NULL OR d.died_at >= %(since)s::timestamptz)
          AND (%(until)s::timestamptz IS NULL OR d.died_at < %(until)s::timestamptz)
        ORDER BY d.died_at DESC LIMIT %(looked_max)s::int) d
    WHERE (%(patterns)s::text[] IS NULL AND %(subject)s::text IS NULL OR EXISTS (
           SELECT FROM outbox.event e WHERE e.slot = d.event_slot AND e.id = d.event_id
             AND (%(subject)s::text IS NULL OR e.subject = %(subject)s::text)
             AND (%(patterns)s::text[] IS NULL OR outbox.type_matches(
                  e.type, outbox.like_patterns(%(patterns)s::text[]), '*' = ANY (%(patterns)s::text[])))))
    ORDER BY d.died_at DESC, d.id LIMIT %(rows_max)s::int) d
LEFT JOIN outbox.subscription s ON s.id = d.subscription_id
LEFT JOIN LATERAL (
    SELECT e.type, e.subject FROM outbox.event e WHERE e.slot = d.event_slot AND e.id = d.event_id) e ON true
ORDER BY d.died_at DESC, d.id
