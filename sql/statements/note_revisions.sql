-- Writes down the revisions of a lane's subscriptions that are not written down yet. Runs in the
-- transaction that made them.
--
-- lane bigint or null, subscription_id bigint or null: the lane, or a subscription of it
INSERT INTO outbox.subscription_revision (subscription_id, revision, config)
SELECT s.id, s.revision, jsonb_build_object(
    'kind', s.kind, 'processor', s.processor, 'endpoint_id', s.endpoint_id, 'org_id', s.org_id, 'all_orgs', s.all_orgs,
    'patterns', s.patterns, 'filter', s.filter, 'retry', s.retry,
    'max_age_s', extract(epoch FROM s.max_age), 'body_format', s.body_format, 'order', s.order_mode, 'state', s.state,
    'config', s.config, 'concurrency', s.concurrency_max, 'rate_per_s', s.rate_per_s_max,
    'timeout_s', extract(epoch FROM s.timeout), 'delay_s', extract(epoch FROM s.delay), 'ttl_s', extract(epoch FROM s.ttl),
    'priority', s.priority, 'tags', s.tags, 'key', s.key, 'key_concurrency', s.key_concurrency, 'use_key', s.use_key,
    'once_for_s', extract(epoch FROM s.once_for), 'debounce_s', extract(epoch FROM s.debounce),
    'debounce_max_s', extract(epoch FROM s.debounce_max))
FROM outbox.subscription s
WHERE s.lane = coalesce(%(lane)s::bigint, (SELECT x.lane FROM outbox.subscription x WHERE x.id = %(subscription_id)s::bigint))
ON CONFLICT (subscription_id, revision) DO NOTHING
