-- Subscriptions.
--
-- id bigint or null, endpoint_id bigint or null, org_id text or null, tag text or null, removed boolean: also those
-- removed, after bigint: ids above, rows_max int
-- A row each: a JSON object
SELECT jsonb_build_object(
    'id', s.id, 'kind', coalesce(s.processor, s.kind), 'endpoint', s.endpoint_id, 'org', s.org_id, 'all_orgs', s.all_orgs,
    'events', s.patterns, 'filter', s.filter, 'retry', s.retry,
    'max_age_s', extract(epoch FROM s.max_age)::float8,
    'order', nullif(s.order_mode, 'share'), 'body', CASE s.body_format WHEN 2 THEN 'database-webhook' ELSE 'standard' END,
    'config', s.config, 'concurrency', s.concurrency_max, 'rate_per_s', s.rate_per_s_max,
    'timeout_s', extract(epoch FROM s.timeout)::float8, 'tags', s.tags,
    'delay_s', extract(epoch FROM s.delay)::float8, 'ttl_s', extract(epoch FROM s.ttl)::float8, 'priority', s.priority,
    'concurrency_key', s.key, 'key_concurrency', s.key_concurrency,
    'once_key', CASE WHEN s.once_for IS NOT NULL THEN s.use_key END, 'once_for_s', extract(epoch FROM s.once_for)::float8,
    'debounce_key', CASE WHEN s.debounce IS NOT NULL THEN s.use_key END, 'debounce_s', extract(epoch FROM s.debounce)::float8,
    'debounce_max_s', extract(epoch FROM s.debounce_max)::float8, 'state', s.state, 'state_reason', s.state_reason, 'endpoint_state', n.state, 'revision', s.revision,
    'active_from', s.active_from, 'created_at', s.created_at)
FROM outbox.subscription s LEFT JOIN outbox.endpoint n ON n.id = s.endpoint_id
WHERE (%(id)s::bigint IS NULL OR s.id = %(id)s::bigint)
  AND (%(endpoint_id)s::bigint IS NULL OR s.endpoint_id = %(endpoint_id)s::bigint)
  AND (%(org_id)s::text IS NULL OR s.org_id = %(org_id)s::text)
  AND (%(removed)s::boolean OR s.state <> 'removed') AND s.id > %(after)s::bigint
  AND (%(tag)s::text IS NULL OR s.tags @> ARRAY[%(tag)s::text])
ORDER BY s.id LIMIT %(rows_max)s::int
