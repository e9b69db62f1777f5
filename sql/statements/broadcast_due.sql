-- Which broadcasts are due, and when the next are. Costs a look at the head of each lane.
--
-- now timestamptz or null
-- One row: sql, http (boolean: something is due for this transport), next_due_s (float8 or null),
-- known (boolean: there are subscriptions of this kind)
WITH RECURSIVE clock AS MATERIALIZED (
    SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now
),
scan (queue, lane, due_at) AS (
    SELECT q.queue, first.lane, first.due_at FROM (VALUES (0), (1), (2)) q (queue) CROSS JOIN LATERAL (
        SELECT d.lane, d.due_at FROM outbox.delivery d
        WHERE d.state = 'scheduled' AND d.queue = q.queue AND d.lane < 0
        ORDER BY d.lane, d.due_at LIMIT 1) first
    UNION ALL
    SELECT s.queue, next.lane, next.due_at FROM scan s CROSS JOIN LATERAL (
        SELECT d.lane, d.due_at FROM outbox.delivery d
        WHERE d.state = 'scheduled' AND d.queue = s.queue AND d.lane > s.lane AND d.lane < 0
        ORDER BY d.lane, d.due_at LIMIT 1) next
),
lanes AS MATERIALIZED (
    SELECT s.due_at + coalesce((x.config ->> 'coalesce_s')::float8, 0) * interval '1 s' AS due_at,
           x.config ->> 'transport' AS transport
    FROM scan s CROSS JOIN LATERAL (
        SELECT x.config FROM outbox.subscription x WHERE x.id = -s.lane AND x.state = 'active'
        OFFSET 0) x
)
SELECT EXISTS (SELECT FROM clock, lanes l WHERE l.transport = 'sql' AND l.due_at <= clock.now) AS sql,
       EXISTS (SELECT FROM clock, lanes l WHERE l.transport = 'http' AND l.due_at <= clock.now) AS http,
       (SELECT extract(epoch FROM min(l.due_at) - min(clock.now))::float8 FROM clock, lanes l
        WHERE l.due_at > clock.now) AS next_due_s,
       EXISTS (SELECT FROM outbox.subscription x WHERE x.lane < 0 AND x.state <> 'removed') AS known
