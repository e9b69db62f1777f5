-- Gives back leases that no worker started, at once and free of charge: the broker refused them,
-- or the daemon is going down.
--
-- token bigint, ids uuid[]
-- A row each: lane, queue, due (float8, seconds since 1970)
WITH own AS MATERIALIZED (
    SELECT d.id, d.token, d.started_at FROM (SELECT u.id FROM unnest(%(ids)s::uuid[]) u (id) ORDER BY u.id) i
    CROSS JOIN LATERAL (
        SELECT d.id, d.token, d.started_at FROM outbox.delivery d WHERE d.id = i.id
        OFFSET 0 FOR UPDATE) d
)
UPDATE outbox.delivery d
SET state = 'scheduled', token = NULL, lease_until = NULL
WHERE d.id = ANY (ARRAY(SELECT o.id FROM own o WHERE o.token = %(token)s::bigint AND o.started_at IS NULL))
RETURNING d.lane, d.queue, extract(epoch FROM d.due_at)::float8 AS due
