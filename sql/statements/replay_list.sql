-- Replays, newest first.
--
-- id text or null, org_id text or null, state text or null, rows_max int
-- A row each: a JSON object
SELECT jsonb_build_object(
    'id', r.id, 'state', r.state, 'mode', r.mode, 'org', r.org_id, 'filter', r.filter, 'made_by', r.made_by,
    'why', r.why, 'rate_per_s', r.rate_per_s, 'position', r.position, 'ceiling', r.ceiling, 'counts', r.counts,
    'made_at', r.made_at, 'moved_at', r.moved_at, 'ended_at', r.ended_at)
FROM outbox.replay r
WHERE (%(id)s::text IS NULL OR r.id = %(id)s::text)
  AND (%(org_id)s::text IS NULL OR r.org_id = %(org_id)s::text)
  AND (%(state)s::text IS NULL OR r.state = %(state)s::text)
ORDER BY r.made_at DESC, r.id LIMIT %(rows_max)s::int
