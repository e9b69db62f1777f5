-- Subscribes an existing endpoint to more events. Runs under the lock of configuration; note_revisions.sql
-- follows.
--
-- id bigint: drawn before
-- endpoint_id bigint, org_id text or null: only an endpoint of this organization
-- patterns text[], filter text or null, retry text, max_age interval or null, body_format int,
-- order_mode text or null
-- One row, none if there is no such endpoint: id
INSERT INTO outbox.subscription (id, kind, endpoint_id, lane, org_id, all_orgs, patterns, filter, retry, max_age, body_format, order_mode)
SELECT %(id)s::bigint, 'webhook', n.id, n.id, n.org_id, n.org_id IS NULL,
       %(patterns)s::text[], %(filter)s::text, %(retry)s::text, make_interval(secs => extract(epoch FROM %(max_age)s::interval)::float8), %(body_format)s::int, %(order_mode)s::text
FROM outbox.endpoint n
WHERE n.id = %(endpoint_id)s::bigint AND n.state <> 'removed'
  AND (%(org_id)s::text IS NULL OR n.org_id = %(org_id)s::text)
RETURNING id
