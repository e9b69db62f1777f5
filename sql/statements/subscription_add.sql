-- Subscribes an existing endpoint to more events. Runs under the dispatch lock; note_revisions.sql
-- follows.
--
-- id bigint: drawn before
-- endpoint_id bigint, org_id text or null: only an endpoint of this organization
-- patterns text[], filter text or null, retry text, max_age interval or null, body_format int
-- One row, none if there is no such endpoint: id
INSERT INTO outbox.subscription (id, kind, endpoint_id, lane, org_id, all_orgs, patterns, filter, retry, max_age, body_format)
SELECT %(id)s::bigint, 'webhook', n.id, n.id, n.org_id, n.org_id IS NULL,
       %(patterns)s::text[], %(filter)s::text, %(retry)s::text, %(max_age)s::interval, %(body_format)s::int
FROM outbox.endpoint n
WHERE n.id = %(endpoint_id)s::bigint AND n.state <> 'removed'
  AND (%(org_id)s::text IS NULL OR n.org_id = %(org_id)s::text)
RETURNING id
