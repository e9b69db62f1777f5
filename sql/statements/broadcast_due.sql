-- Which broadcasts are due, and when the next are. Costs a look at the head of each lane.
--
-- now     timestamptz or null
-- walk    boolean: look in all lanes, from their beginning on
-- lanes   bigint[], queues int[], fronts float8[] (seconds since 1970): else, where to look, and from when on
-- One row: known (boolean: there are subscriptions of this kind), now (float8, seconds since 1970),
-- lanes (bigint[]), queues (int[]), dues (float8[]; null where there is none), transports (text[]; null where
-- nothing is to be sent), ripe_at (float8[]: when it may be sent): the first delivery of each place looked at
WITH clock AS MATERIALIZED (
    SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now
),
scan AS MATERIALIZED (
    SELECT w.lane, w.queue, w.due_at
    FROM outbox.due_walk(CASE WHEN %(walk)s::boolean THEN -9223372036854775808 END, 0, 2147483647) w
    UNION ALL
    SELECT k.lane, k.queue, (
        SELECT d.due_at FROM outbox.delivery d
        WHERE d.state = 'scheduled' AND d.queue = k.queue AND d.lane = k.lane AND d.due_at >= to_timestamp(k.front)
        ORDER BY d.due_at LIMIT 1)
    FROM unnest(%(lanes)s::bigint[], %(queues)s::int[], %(fronts)s::float8[]) k (lane, queue, front)
    WHERE NOT %(walk)s::boolean
)
SELECT EXISTS (SELECT FROM outbox.subscription x WHERE x.lane < 0 AND x.state <> 'removed') AS known,
       (SELECT extract(epoch FROM now)::float8 FROM clock) AS now, s.*
FROM (
    SELECT array_agg(s.lane) AS lanes, array_agg(s.queue) AS queues,
           array_agg(extract(epoch FROM s.due_at)::float8) AS dues, array_agg(x.transport) AS transports,
           array_agg(extract(epoch FROM s.due_at)::float8 + x.coalesce_s) AS ripe_at
    FROM scan s LEFT JOIN LATERAL (
        SELECT x.config ->> 'transport' AS transport, coalesce((x.config ->> 'coalesce_s')::float8, 0) AS coalesce_s
        FROM outbox.subscription x WHERE x.id = -s.lane AND x.state = 'active'
        OFFSET 0) x ON true) s
