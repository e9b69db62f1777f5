-- Subscriptions.
--
-- id bigint or null, endpoint_id bigint or null, org_id text or null, removed boolean: also those
-- removed, after bigint: ids above, rows_max int
-- A row each: a JSON object
SELECT jsonb_build_object(
    'id', s.id, 'kind', s.kind, 'endpoint', s.endpoint_id, 'org', s.org_id, 'all_orgs', s.all_orgs,
    'events', s.patterns, 'filter', s.filter, 'retry', s.retry,
    'max_age_s', extract(epoch FROM s.max_age)::float8,
    'body', CASE s.body_format WHEN 2 THEN 'database-webhook' ELSE 'standard' END,
    'state', s.state, 'state_reason', s.state_reason, 'endpoint_state', n.state, 'revision', s.revision,
    'active_from', s.active_from, 'created_at', s.created_at)
FROM outbox.subscription s LEFT JOIN outbox.endpoint n ON n.id = s.endpoint_id
WHERE (%(id)s::bigint IS NULL OR s.id = %(id)s::bigint)
  AND (%(endpoint_id)s::bigint IS NULL OR s.endpoint_id = %(endpoint_id)s::bigint)
  AND (%(org_id)s::text IS NULL OR s.org_id = %(org_id)s::text)
  AND (%(removed)s::boolean OR s.state <> 'removed') AND s.id > %(after)s::bigint
ORDER BY s.id LIMIT %(rows_max)s::int
