-- Makes a replay; one that exists stays as it is.
--
-- id text, mode text, org_id text or null, filter jsonb, made_by text or null, why text, rate_per_s float8
-- position, ceiling bigint
-- One row, none if it exists: id
INSERT INTO outbox.replay (id, mode, state, org_id, filter, made_by, why, rate_per_s, position, ceiling, ended_at)
SELECT %(id)s::text, %(mode)s::text, CASE WHEN b.empty THEN 'done' ELSE 'running' END, %(org_id)s::text,
       %(filter)s::jsonb, coalesce(%(made_by)s::text || ' (' || session_user || ')', session_user), %(why)s::text,
       %(rate_per_s)s::float8, %(position)s::bigint, %(ceiling)s::bigint,
       CASE WHEN b.empty THEN clock_timestamp() END
FROM (SELECT %(position)s::bigint >= %(ceiling)s::bigint AS empty) b
ON CONFLICT (id) DO NOTHING
RETURNING id
