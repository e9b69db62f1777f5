-- Leases scheduled deliveries that are due, fair over lanes, within each lane's permits.
--
-- Runs under the dispatch lock. A loose scan visits at most `lanes_max` lanes that hold scheduled
-- work, from `lane_from` on; first attempts go before retries, retries before what is replayed or
-- redriven, and those two hold at most three quarters of a lane's permits, so that a storm of them
-- leaves room for fresh events. A lane whose circuit is open gets one delivery, when its probe is
-- due and nothing else of it is under way. What is past its age or expiry, or belongs to a paused,
-- disabled or removed destination, is left to tend_due.sql.
--
-- now         timestamptz or null
-- lanes_max   int
-- lane_from   bigint: lanes > lane_from
-- window      int: leases to hand out at most
-- later_max   int: of those, to retries, replays and redrives
-- token       bigint or null; lanes, oldest bigint[]: see route.sql
-- lease_s     float8
-- One row: ids (bytea, 16 bytes each), leased, lane_last (null when the scan reached the end),
-- next_due_s (float8: seconds until the next delivery or probe of the lanes visited is due, null if
-- none),
-- idle (int: due deliveries seen that are not to be leased: overdue, paused, disabled, removed),
-- blocked (boolean: something is due in a lane that has no permit or token left),
-- later (boolean: retries, replays or redrives were due), token, lanes and oldest (see route.sql)
WITH RECURSIVE clock AS MATERIALIZED (
    SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now
),
drawn AS MATERIALIZED (
    SELECT coalesce(%(token)s::bigint, (pg_catalog.nextval('outbox.lease_token') << 20)
                                       | pg_catalog.floor(pg_catalog.random() * 1048576)::bigint) AS token
),
-- The first due time of each lane that holds scheduled work, queue by queue.
scan (queue, lane, due_at, n) AS (
    SELECT q.queue, first.lane, first.due_at, 1 FROM (VALUES (0), (1), (2)) q (queue) CROSS JOIN LATERAL (
        SELECT d.lane, d.due_at FROM outbox.delivery d
        WHERE d.state = 'scheduled' AND d.queue = q.queue AND d.lane > %(lane_from)s::bigint
        ORDER BY d.lane, d.due_at LIMIT 1) first
    UNION ALL
    SELECT s.queue, next.lane, next.due_at, s.n + 1 FROM scan s CROSS JOIN LATERAL (
        SELECT d.lane, d.due_at FROM outbox.delivery d
        WHERE d.state = 'scheduled' AND d.queue = s.queue AND d.lane > s.lane
        ORDER BY d.lane, d.due_at LIMIT 1) next
    WHERE s.n < %(lanes_max)s::int
),
seen AS MATERIALIZED (
    SELECT s.lane, min(s.due_at) AS due_at FROM scan s
    GROUP BY s.lane ORDER BY s.lane LIMIT %(lanes_max)s::int
),
lanes AS MATERIALIZED (
    SELECT s.lane, n.rate_per_s, r.tokens, coalesce(n.concurrency, 2147483647) AS concurrency,
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
            WHERE d.lane = l.lane AND d.state = 'scheduled' AND d.queue = 0 AND d.due_at <= clock.now
            ORDER BY d.due_at LIMIT greatest(0, l.free)
            FOR UPDATE SKIP LOCKED) f
        UNION ALL
        SELECT o.*, false FROM (
            SELECT r.* FROM (
                SELECT d.id, d.subscription_id, d.expires_at, d.age_limit_at FROM outbox.delivery d
                WHERE d.lane = l.lane AND d.state = 'scheduled' AND d.queue = 1 AND d.due_at <= clock.now
                ORDER BY d.due_at LIMIT greatest(0, l.free)
                FOR UPDATE SKIP LOCKED) r
            UNION ALL
            SELECT a.* FROM (
                SELECT d.id, d.subscription_id, d.expires_at, d.age_limit_at FROM outbox.delivery d
                WHERE d.lane = l.lane AND d.state = 'scheduled' AND d.queue = 2 AND d.due_at <= clock.now
                ORDER BY d.due_at LIMIT greatest(0, l.free)
                FOR UPDATE SKIP LOCKED) a
            LIMIT greatest(0, least(l.free, %(later_max)s::int, greatest(1, l.concurrency::bigint * 3 / 4) - l.retries))) o
        LIMIT greatest(0, l.free)) c
),
chosen AS MATERIALIZED (
    SELECT y.id, y.lane FROM (
        SELECT x.*, row_number() OVER (PARTITION BY x.fresh ORDER BY x.turn) AS nth FROM (
            SELECT p.id, p.lane, p.fresh, row_number() OVER (PARTITION BY p.lane ORDER BY p.fresh DESC) AS turn
            FROM picked p WHERE p.fit) x) y
    WHERE y.fresh OR y.nth <= %(later_max)s::int
    ORDER BY y.turn LIMIT %(window)s::int
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
       (SELECT CASE WHEN count(*) >= %(lanes_max)s::int THEN max(s.lane) END FROM seen s) AS lane_last,
       (SELECT (extract(epoch FROM min(x.at)) - extract(epoch FROM clock.now))::float8 FROM clock, (
            SELECT s.due_at AS at FROM seen s UNION ALL SELECT l.probe_at FROM lanes l) x
        WHERE x.at > clock.now GROUP BY clock.now) AS next_due_s,
       (SELECT count(*) FROM picked p WHERE NOT p.fit)
       + (SELECT count(*) FROM clock, seen s LEFT JOIN lanes l USING (lane)
          WHERE s.due_at <= clock.now AND l.lane IS NULL) AS idle,
       EXISTS (SELECT FROM lanes l WHERE l.probe_at IS NULL AND (l.free <= 0 OR l.tokens < 2)) AS blocked,
       EXISTS (SELECT FROM clock, scan s WHERE s.queue > 0 AND s.due_at <= clock.now) AS later,
       (SELECT d.token FROM drawn d) AS token, o.lanes, o.oldest
FROM (SELECT array_agg(l.lane) AS lanes, array_agg(l.oldest) AS oldest FROM (
          SELECT l.lane, l.oldest FROM lanes l WHERE l.oldest IS NOT NULL ORDER BY l.used DESC LIMIT 64) l) o
