-- Schedules.
--
-- name text or null, org_id text or null
-- A row each: a JSON object
SELECT jsonb_build_object(
    'name', s.name, 'cron', s.cron, 'timezone', s.timezone, 'type', s.type, 'org', s.org_id, 'payload', s.payload,
    'missed', s.missed, 'state', s.state, 'next_at', CASE WHEN s.state = 'active' THEN s.next_at END,
    'last_at', s.last_at, 'emitted', s.emitted, 'skipped', s.skipped,
    'created_at', s.created_at, 'made_by', s.made_by)
FROM outbox.schedule s
WHERE (%(name)s::text IS NULL OR s.name = %(name)s::text)
  AND (%(org_id)s::text IS NULL OR s.org_id = %(org_id)s::text)
ORDER BY s.name
