-- Writes down the revisions of a lane's subscriptions that are not written down yet. Runs in the
-- transaction that made them.
--
-- lane bigint or null, subscription_id bigint or null: the lane, or a subscription of it
INSERT INTO outbox.subscription_revision (subscription_id, revision, config)
SELECT s.id, s.revision, jsonb_build_object(
    'kind', s.kind, 'endpoint_id', s.endpoint_id, 'org_id', s.org_id, 'all_orgs', s.all_orgs,
    'patterns', s.patterns, 'filter', s.filter, 'retry', s.retry,
    'max_age_s', extract(epoch FROM s.max_age), 'body_format', s.body_format, 'state', s.state)
FROM outbox.subscription s
WHERE s.lane = coalesce(%(lane)s::bigint, (SELECT x.lane FROM outbox.subscription x WHERE x.id = %(subscription_id)s::bigint))
ON CONFLICT (subscription_id, revision) DO NOTHING
