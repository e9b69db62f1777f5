-- Lengthens the leases of work that still runs.
--
-- now timestamptz or null, ids uuid[], tokens bigint[], lease_s float8
-- A row each for what is still held: id
WITH clock AS MATERIALIZED (SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now),
own AS MATERIALIZED (
    SELECT d.id FROM clock, (
        SELECT u.id, u.token FROM unnest(%(ids)s::uuid[], %(tokens)s::bigint[]) u (id, token) ORDER BY u.id) i
    CROSS JOIN LATERAL (
        SELECT d.id, d.token, d.state, d.lease_until FROM outbox.delivery d WHERE d.id = i.id
        OFFSET 0 FOR UPDATE) d
    WHERE d.state = 'leased' AND d.token = i.token AND d.lease_until > clock.now
)
UPDATE outbox.delivery d
SET lease_until = (SELECT now FROM clock) + make_interval(secs => %(lease_s)s::float8)
WHERE d.id = ANY (ARRAY(SELECT o.id FROM own o))
RETURNING d.id
