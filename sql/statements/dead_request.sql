-- What an attempt of a dead letter would be made of if it were redriven now: the columns of
-- take.sql.
--
-- id uuid, org_id text or null: only a letter of this organization
-- One row, none if there is no such letter
SELECT d.id, 0::bigint AS token, 0::float8 AS lease_left_s, 1 AS attempt, d.event_id, e.type,
       to_char(e.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS occurred_at,
       e.payload::text AS payload, e.headers::text AS headers, d.org_id, e.subject, d.subscription_id,
       coalesce(s.processor, s.kind) AS kind, coalesce((r.config ->> 'body_format')::int, s.body_format::int) AS body_format, s.retry,
       NULL::float8 AS age_left_s, s.endpoint_id, n.revision AS endpoint_revision, d.revision,
       CASE WHEN d.generation > 0 THEN d.generation END AS generation,
       CASE WHEN d.generation > 0 THEN outbox.delivery_id(d.event_id, e.created_at, d.subscription_id, 0, (
            SELECT i.salt FROM outbox.installation i WHERE i.first_event_id <= d.event_id
            ORDER BY i.first_event_id DESC LIMIT 1)) END AS original_id
FROM outbox.dead_letter d
JOIN outbox.subscription s ON s.id = d.subscription_id
LEFT JOIN outbox.endpoint n ON n.id = s.endpoint_id
LEFT JOIN outbox.subscription_revision r
    ON d.revision <> s.revision AND r.subscription_id = d.subscription_id AND r.revision = d.revision
JOIN LATERAL (
    SELECT e.type, e.created_at, e.payload, e.headers, e.subject FROM outbox.event e
    WHERE e.slot = d.event_slot AND e.id = d.event_id) e ON true
WHERE d.id = %(id)s::uuid AND (%(org_id)s::text IS NULL OR d.org_id = %(org_id)s::text)
