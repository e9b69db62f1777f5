-- What subscriptions without an endpoint are configured with, by revision: a delivery is performed as the
-- revision says that routed it.
--
-- ids bigint[], revisions int[]
-- A row each: subscription_id, revision, config (JSON text), timeout_s
SELECT w.id AS subscription_id, w.revision, (r.config -> 'config')::text AS config,
       (r.config ->> 'timeout_s')::float8 AS timeout_s
FROM unnest(%(ids)s::bigint[], %(revisions)s::int[]) AS w (id, revision)
JOIN outbox.subscription_revision r ON r.subscription_id = w.id AND r.revision = w.revision
