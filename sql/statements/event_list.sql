-- Events, newest first, without their payloads. Looks at no more than the newest `looked_max`
-- below the start, so that its cost is bounded.
--
-- patterns text[] or null, org_id text or null, subject text or null
-- since, until timestamptz or null
-- before bigint or null: ids below, looked_max int, rows_max int
-- A row each: a JSON object
SELECT jsonb_build_object(
    'id', e.id, 'type', e.type, 'org', e.org_id, 'subject', e.subject, 'created_at', e.created_at,
    'deliver_at', e.deliver_at, 'expires_at', e.expires_at, 'bytes', octet_length(e.payload::text),
    'pending', EXISTS (SELECT FROM outbox.pending p WHERE p.id = e.id))
FROM (
    -- Slot by slot: only then is the index an order by id.
    SELECT e.* FROM generate_series(0, 7) AS ring (slot) CROSS JOIN LATERAL (
        SELECT e.id, e.type, e.org_id, e.subject, e.created_at, e.deliver_at, e.expires_at, e.payload
        FROM outbox.event e
        WHERE e.slot = ring.slot AND e.id < coalesce(%(before)s::bigint, 9223372036854775807)
          AND e.id > (SELECT last_value FROM outbox.event_id) - %(looked_max)s::bigint
          AND (%(org_id)s::text IS NULL OR e.org_id = %(org_id)s::text)
          AND (%(since)s::timestamptz IS NULL OR e.created_at >= %(since)s::timestamptz)
          AND (%(until)s::timestamptz IS NULL OR e.created_at < %(until)s::timestamptz)
          AND (%(subject)s::text IS NULL OR e.subject = %(subject)s::text)
          AND (%(patterns)s::text[] IS NULL OR outbox.type_matches(
               e.type, outbox.like_patterns(%(patterns)s::text[]), '*' = ANY (%(patterns)s::text[])))
        ORDER BY e.id DESC LIMIT %(rows_max)s::int) e
    ORDER BY e.id DESC LIMIT %(rows_max)s::int) e
ORDER BY e.id DESC
