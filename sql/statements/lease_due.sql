-- Leases scheduled deliveries that are due, fair over lanes, within each lane's permits.
--
-- Runs under the dispatch lock. Looks at the lanes and queues given, from their fronts on. First
-- attempts go before retries, retries before what is replayed or redriven, and those two hold at most three quarters of a lane's permits, so that a storm of them
-- leaves room for fresh events. A lane whose circuit is open gets one delivery, when its probe is
-- due and nothing else of it is under way. What is past its age or expiry, or belongs to a paused,
-- disabled or removed destination, is left to tend_due.sql.
--
-- now         timestamptz or null
-- due_lanes   bigint[], due_queues int[], fronts float8[] (seconds since 1970): where to look, and a time before
--             which nothing of that lane and queue is due
-- window      int: leases to hand out at most
-- later_max   int: of those, to retries, replays and redrives
-- token       bigint or null; lanes, oldest bigint[]: see route.sql
-- lease_s     float8
-- One row: ids (bytea, 16 bytes each), leased,
-- next_due_s (float8: seconds until the next delivery or probe of what was looked at is due, null if
-- none),
-- idle (int: due deliveries seen that are not to be leased: overdue, paused, disabled, removed),
-- blocked (boolean: something is due in a lane that has no permit or token left),
-- later (boolean: retries, replays or redrives were due that had a permit), now (float8, seconds since 1970), met_lanes (bigint[]),
-- met_queues (int[]), met_dues (float8[]; null where there is none): the first delivery from each front on,
-- token, lanes and oldest (see route.sql)
WITH clock AS MATERIALIZED (
    SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now
),
drawn AS MATERIALIZED (
    SELECT coalesce(%(token)s::bigint, (pg_catalog.nextval('outbox.lease_token') << 20)
                                       | pg_catalog.floor(pg_catalog.random() * 1048576)::bigint) AS token
),
scan AS MATERIALIZED (
    SELECT k.lane, k.queue, (
        SELECT d.due_at FROM outbox.delivery d
        WHERE d.state = 'scheduled' AND d.queue = k.queue AND d.lane = k.lane AND d.due_at >= to_timestamp(k.front)
        ORDER BY d.due_at LIMIT 1) AS due_at
    FROM unnest(%(due_lanes)s::bigint[], %(due_queues)s::int[], %(fronts)s::float8[]) k (lane, queue, front)
),
seen AS MATERIALIZED (
    SELECT s.lane, min(s.due_at) AS due_at, min(s.due_at) FILTER (WHERE s.queue = 0) AS fresh_from,
           min(s.due_at) FILTER (WHERE s.queue = 1) AS retries_from, min(s.due_at) FILTER (WHERE s.queue = 2) AS again_from
    FROM scan s WHERE s.due_at IS NOT NULL GROUP BY s.lane
),
lanes AS MATERIALIZED (
    SELECT s.lane, s.fresh_from, s.retries_from, s.again_from, n.rate_per_s, r.tokens, coalesce(n.concurrency, 2147483647) AS concurrency,
           used.n AS used, used.retries, h.probe_at, CASE WHEN n.concurrency IS NOT NULL THEN least(used.oldest, drawn.token) END AS oldest,
           least(CASE WHEN h.probe_at IS NULL THEN coalesce(n.concurrency, 2147483647) - used.n
                      WHEN h.probe_at <= clock.now AND used.n = 0 THEN 1 ELSE 0 END,
                 floor(coalesce(r.tokens, 2147483647)), %(window)s::int)::bigint AS free
    FROM clock, drawn, (
        SELECT s.*, coalesce((SELECT k.oldest FROM unnest(%(lanes)s::bigint[], %(oldest)s::bigint[]) k (lane, oldest)
                              WHERE k.lane = s.lane LIMIT 1), 0) AS since FROM seen s
        OFFSET 0) s
    LEFT JOIN LATERAL (
        SELECT n.state, n.concurrency, n.rate_per_s FROM outbox.endpoint n WHERE n.id = s.lane
        UNION ALL
        SELECT o.state, o.concurrency_max, o.rate_per_s_max FROM outbox.subscription o WHERE o.id = s.lane
        OFFSET 0) n ON true
    LEFT JOIN LATERAL (SELECT h.probe_at FROM outbox.lane_health h WHERE h.lane = s.lane OFFSET 0) h ON true
    CROSS JOIN LATERAL (
        SELECT count(*) AS n, count(*) FILTER (WHERE x.queue > 0) AS retries, min(x.token) AS oldest FROM (
            SELECT d.queue, d.token FROM outbox.delivery d
            WHERE d.lane = s.lane AND d.state = 'leased' AND d.token >= s.since AND d.lease_until > clock.now
            ORDER BY d.token -- see route.sql
            LIMIT coalesce(n.concurrency, 1)) x) used
    CROSS JOIN LATERAL (
        SELECT CASE WHEN n.rate_per_s IS NOT NULL THEN coalesce((
            SELECT least(greatest(1, n.rate_per_s / 10),
                         r.tokens + n.rate_per_s * greatest(0, extract(epoch FROM clock.now - r.at)))
            FROM outbox.lane_rate r WHERE r.lane = s.lane), greatest(1, n.rate_per_s / 10)) END AS tokens) r
    WHERE s.due_at <= clock.now AND coalesce(n.state, 'active') = 'active'
),
picked AS MATERIALIZED (
    SELECT l.lane, c.id, c.fresh,
           -- A subselect, which nothing is put in front of: joined, it was remembered or not as statistics had it.
           coalesce(least(c.expires_at, c.age_limit_at) > clock.now, true)
           AND coalesce((SELECT s.state = 'active' FROM outbox.subscription s WHERE s.id = c.subscription_id), false) AS fit
    FROM clock, lanes l CROSS JOIN LATERAL (
        SELECT f.*, true AS fresh FROM (
            SELECT d.id, d.subscription_id, d.expires_at, d.age_limit_at FROM outbox.delivery d
            WHERE d.lane = l.lane AND d.state = 'scheduled' AND d.queue = 0 AND d.due_at >= l.fresh_from AND d.due_at <= clock.now
            ORDER BY d.due_at LIMIT greatest(0, l.free)
            FOR UPDATE SKIP LOCKED) f
        UNION ALL
        SELECT o.*, false FROM (
            SELECT r.* FROM (
                SELECT d.id, d.subscription_id, d.expires_at, d.age_limit_at FROM outbox.delivery d
                WHERE d.lane = l.lane AND d.state = 'scheduled' AND d.queue = 1 AND d.due_at >= l.retries_from AND d.due_at <= clock.now
                ORDER BY d.due_at LIMIT greatest(0, l.free)
                FOR UPDATE SKIP LOCKED) r
            UNION ALL
            SELECT a.* FROM (
                SELECT d.id, d.subscription_id, d.expires_at, d.age_limit_at FROM outbox.delivery d
                WHERE d.lane = l.lane AND d.state = 'scheduled' AND d.queue = 2 AND d.due_at >= l.again_from AND d.due_at <= clock.now
                ORDER BY d.due_at LIMIT greatest(0, l.free)
                FOR UPDATE SKIP LOCKED) a
            LIMIT greatest(0, least(l.free, %(later_max)s::int, greatest(1, l.concurrency::bigint * 3 / 4) - l.retries))) o
        LIMIT greatest(0, l.free)) c
),
chosen AS MATERIALIZED (
    SELECT y.id, y.lane FROM (
        -- Lanes by lot: where there are more of them than may be leased, the same would win each time.
        SELECT x.*, row_number() OVER (PARTITION BY x.fresh ORDER BY x.turn, x.lot) AS nth FROM (
            SELECT p.id, p.lane, p.fresh, row_number() OVER (PARTITION BY p.lane ORDER BY p.fresh DESC) AS turn,
                   pg_catalog.hashint8extended(p.lane, drawn.token) AS lot
            FROM drawn, picked p WHERE p.fit) x) y
    WHERE y.fresh OR y.nth <= %(later_max)s::int
    ORDER BY y.turn, y.lot LIMIT %(window)s::int
),
leased AS (
    UPDATE outbox.delivery d
    SET state = 'leased', token = (SELECT token FROM drawn), started_at = NULL, attempts = d.attempts, -- see take.sql
        lease_until = (SELECT now FROM clock) + make_interval(secs => %(lease_s)s::float8)
    WHERE d.id = ANY (ARRAY(SELECT c.id FROM chosen c))
    RETURNING d.id
),
probed AS (
    UPDATE outbox.lane_health h SET probing = true, probe_at = (SELECT now FROM clock) + h.probe_gap
    WHERE h.lane = ANY (ARRAY(
        SELECT k.lane FROM outbox.lane_health k
        WHERE k.lane = ANY (ARRAY(SELECT l.lane FROM lanes l WHERE l.probe_at IS NOT NULL AND l.lane = ANY (ARRAY(SELECT c.lane FROM chosen c))))
        ORDER BY k.lane FOR UPDATE)) AND h.probe_at IS NOT NULL
),
spent AS (
    INSERT INTO outbox.lane_rate AS r (lane, tokens, at)
    SELECT l.lane, l.tokens - (SELECT count(*) FROM chosen c WHERE c.lane = l.lane), clock.now
    FROM clock, lanes l WHERE l.rate_per_s IS NOT NULL
    ON CONFLICT (lane) DO UPDATE SET tokens = excluded.tokens, at = excluded.at
)
SELECT (SELECT string_agg(uuid_send(l.id), '') FROM leased l) AS ids,
       (SELECT count(*) FROM leased) AS leased,
       (SELECT (extract(epoch FROM min(x.at)) - extract(epoch FROM clock.now))::float8 FROM clock, (
            SELECT s.due_at AS at FROM scan s UNION ALL SELECT l.probe_at FROM lanes l) x
        WHERE x.at > clock.now GROUP BY clock.now) AS next_due_s,
       (SELECT count(*) FROM picked p WHERE NOT p.fit)
       + (SELECT count(*) FROM clock, seen s LEFT JOIN lanes l USING (lane)
          WHERE s.due_at <= clock.now AND l.lane IS NULL) AS idle,
       EXISTS (SELECT FROM lanes l WHERE l.probe_at IS NULL AND (l.free <= 0 OR l.tokens < 2)) AS blocked,
       EXISTS (SELECT FROM clock, scan s JOIN lanes l USING (lane)
               WHERE s.queue > 0 AND s.due_at <= clock.now AND l.free > 0) AS later,
       (SELECT extract(epoch FROM now)::float8 FROM clock) AS now, m.met_lanes, m.met_queues, m.met_dues,
       (SELECT d.token FROM drawn d) AS token, o.lanes, o.oldest
FROM (SELECT array_agg(l.lane) AS lanes, array_agg(l.oldest) AS oldest FROM (
          SELECT l.lane, l.oldest FROM lanes l WHERE l.oldest IS NOT NULL ORDER BY l.used DESC LIMIT 64) l) o
CROSS JOIN (SELECT array_agg(s.lane) AS met_lanes, array_agg(s.queue) AS met_queues,
                   array_agg(extract(epoch FROM s.due_at)::float8) AS met_dues FROM scan s) m
