-- Endpoints with their keys (never the secrets) and subscriptions.
--
-- id bigint or null, org_id text or null, removed boolean: also those removed
-- after bigint: ids above, rows_max int
-- A row each: a JSON object
SELECT jsonb_build_object(
    'id', n.id, 'org', n.org_id, 'all_orgs', n.org_id IS NULL, 'url', n.url, 'state', n.state,
    'state_reason', n.state_reason, 'concurrency', n.concurrency, 'rate_per_s', n.rate_per_s,
    'timeout_s', extract(epoch FROM n.timeout)::float8, 'gone_disables', n.gone_disables,
    'circuit', n.circuit, 'disable_after_s', extract(epoch FROM n.disable_after)::float8,
    'failing_since', h.failing_since, 'failures', h.failures, 'next_probe_at', h.probe_at,
    'custom_headers', n.custom_headers, 'revision', n.revision, 'created_at', n.created_at,
    'keys', (SELECT coalesce(jsonb_agg(jsonb_build_object('id', k.id, 'kind', k.kind, 'created_at', k.created_at,
                                                          'expires_at', k.expires_at) ORDER BY k.id DESC), '[]')
             FROM outbox.secret k
             WHERE k.endpoint_id = n.id AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp())),
    'subscriptions', (SELECT coalesce(jsonb_agg(jsonb_build_object(
                          'id', s.id, 'events', s.patterns, 'filter', s.filter, 'retry', s.retry,
                          'max_age_s', extract(epoch FROM s.max_age)::float8,
                          'order', nullif(s.order_mode, 'share'), 'body', CASE s.body_format WHEN 2 THEN 'database-webhook' ELSE 'standard' END,
                          'state', s.state, 'revision', s.revision) ORDER BY s.id), '[]')
                      FROM outbox.subscription s WHERE s.lane = n.id AND (s.state <> 'removed' OR n.state = 'removed')))
FROM outbox.endpoint n LEFT JOIN outbox.lane_health h ON h.lane = n.id
WHERE (%(id)s::bigint IS NULL OR n.id = %(id)s::bigint)
  AND (%(org_id)s::text IS NULL OR n.org_id = %(org_id)s::text)
  AND (%(removed)s::boolean OR n.state <> 'removed') AND n.id > %(after)s::bigint
ORDER BY n.id LIMIT %(rows_max)s::int
