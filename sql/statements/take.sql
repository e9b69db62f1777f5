-- Starts leased deliveries: the one moment at which a lease becomes an attempt. A row comes back
-- only where the token holds, the lease runs, it was not started before, and the destination is
-- active.
--
-- now     timestamptz or null
-- ids     uuid[]
-- tokens  bigint[]
-- A row each: id, token, lease_left_s, attempt, event_id, type, occurred_at (text), payload (text),
-- headers (text), org_id, subject, subscription_id, kind, body_format, retry, age_left_s,
-- endpoint_id, endpoint_revision, revision (of the subscription, at routing); generation, original_id (the
-- id of generation 0): null in generation 0
WITH clock AS MATERIALIZED (SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now),
-- Rows are locked in order of id, as everywhere: an index is walked in its own order, whatever the
-- order of the array. The CASE keeps all other conditions out of the choice of the index.
-- `attempts` stays what it is: an update of no column that a generated one depends on makes
-- PostgreSQL read that column's definition anew for each row: a seventh of this statement.
started AS (
    UPDATE outbox.delivery d SET started_at = (SELECT now FROM clock), attempts = d.attempts
    WHERE d.id = ANY (%(ids)s::uuid[])
      AND CASE WHEN (d.id, d.token) IN (SELECT u.id, u.token FROM unnest(%(ids)s::uuid[], %(tokens)s::bigint[]) u (id, token))
                    AND d.state = 'leased' AND d.started_at IS NULL AND d.lease_until > (SELECT now FROM clock)
          THEN (SELECT s.state = 'active' AND coalesce(n.state, 'active') = 'active'
                FROM outbox.subscription s LEFT JOIN outbox.endpoint n ON n.id = s.endpoint_id
                WHERE s.id = d.subscription_id) END
    RETURNING d.*
)
SELECT d.id, d.token, date_part('epoch', d.lease_until - clock.now) AS lease_left_s,
       d.attempts + 1 AS attempt, d.event_id, e.type,
       to_char(e.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS occurred_at,
       e.payload::text AS payload, e.headers::text AS headers, d.org_id, e.subject, d.subscription_id,
       s.kind, coalesce((r.config ->> 'body_format')::int, s.body_format::int) AS body_format, s.retry,
       date_part('epoch', d.age_limit_at - clock.now) AS age_left_s,
       s.endpoint_id, s.endpoint_revision, d.revision,
       CASE WHEN d.generation > 0 THEN d.generation END AS generation,
       CASE WHEN d.generation > 0 THEN outbox.delivery_id(d.event_id, e.created_at, d.subscription_id, 0, (
            SELECT i.salt FROM outbox.installation i WHERE i.first_event_id <= d.event_id
            ORDER BY i.first_event_id DESC LIMIT 1)) END AS original_id
FROM clock, started d
CROSS JOIN LATERAL (
    SELECT coalesce(s.processor, s.kind) AS kind, s.body_format, s.retry, s.endpoint_id, s.revision, n.revision AS endpoint_revision
    FROM outbox.subscription s LEFT JOIN outbox.endpoint n ON n.id = s.endpoint_id
    WHERE s.id = d.subscription_id
    OFFSET 0) s
LEFT JOIN LATERAL (
    SELECT r.config FROM outbox.subscription_revision r
    WHERE d.revision <> s.revision AND r.subscription_id = d.subscription_id AND r.revision = d.revision
    OFFSET 0) r ON true
CROSS JOIN LATERAL (
    SELECT e.type, e.created_at, e.payload, e.headers, e.subject FROM outbox.event e
    WHERE e.slot = d.event_slot AND e.id = d.event_id
    OFFSET 0) e
