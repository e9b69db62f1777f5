-- Leases scheduled deliveries that are due, fair over lanes, within each lane's permits.
--
-- Runs under the dispatch lock. A loose scan visits at most `lanes_max` lanes that hold scheduled
-- work, from `lane_from` on; first attempts go before retries, and retries hold at most three
-- quarters of a lane's permits, so that a storm of them leaves room for fresh events. What is
-- past its age or expiry, or belongs to a paused, disabled or removed destination, is left to
-- tend_due.sql.
--
-- now         timestamptz or null
-- lanes_max   int
-- lane_from   bigint: lanes > lane_from
-- window      int: leases to hand out at most
-- token       bigint
-- lease_s     float8
-- One row: ids (bytea, 16 bytes each), leased, lane_last (null when the scan reached the end),
-- next_due_s (float8: seconds until the next delivery of the lanes visited is due, null if none),
-- idle (int: due deliveries seen that are not to be leased: overdue, paused, disabled, removed),
-- blocked (boolean: something is due in a lane that has no permit or token left)
WITH RECURSIVE clock AS MATERIALIZED (
    SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now
),
fresh (lane, due_at, n) AS (
    (SELECT d.lane, d.due_at, 1 FROM outbox.delivery d
     WHERE d.state = 'scheduled' AND d.attempts = 0 AND d.lane > %(lane_from)s::bigint
     ORDER BY d.lane, d.due_at LIMIT 1)
    UNION ALL
    SELECT next.lane, next.due_at, f.n + 1 FROM fresh f CROSS JOIN LATERAL (
        SELECT d.lane, d.due_at FROM outbox.delivery d
        WHERE d.state = 'scheduled' AND d.attempts = 0 AND d.lane > f.lane
        ORDER BY d.lane, d.due_at LIMIT 1) next
    WHERE f.n < %(lanes_max)s::int
),
retry (lane, due_at, n) AS (
    (SELECT d.lane, d.due_at, 1 FROM outbox.delivery d
     WHERE d.state = 'scheduled' AND d.attempts > 0 AND d.lane > %(lane_from)s::bigint
     ORDER BY d.lane, d.due_at LIMIT 1)
    UNION ALL
    SELECT next.lane, next.due_at, r.n + 1 FROM retry r CROSS JOIN LATERAL (
        SELECT d.lane, d.due_at FROM outbox.delivery d
        WHERE d.state = 'scheduled' AND d.attempts > 0 AND d.lane > r.lane
        ORDER BY d.lane, d.due_at LIMIT 1) next
    WHERE r.n < %(lanes_max)s::int
),
seen AS MATERIALIZED (
    SELECT x.lane, min(x.due_at) AS due_at FROM (
        SELECT lane, due_at FROM fresh UNION ALL SELECT lane, due_at FROM retry) x
    GROUP BY x.lane ORDER BY x.lane LIMIT %(lanes_max)s::int
),
lanes AS MATERIALIZED (
    SELECT s.lane, n.rate_per_s, r.tokens, coalesce(n.concurrency, 2147483647) AS concurrency,
           used.n AS used, used.retries,
           least(coalesce(n.concurrency, 2147483647) - used.n,
                 floor(coalesce(r.tokens, 2147483647)), %(window)s::int)::bigint AS free
    FROM clock, seen s
    LEFT JOIN LATERAL (SELECT * FROM outbox.endpoint n WHERE n.id = s.lane OFFSET 0) n ON true
    CROSS JOIN LATERAL (
        SELECT count(*) AS n, count(*) FILTER (WHERE x.attempts > 0) AS retries FROM (
            SELECT d.attempts FROM outbox.delivery d
            WHERE d.lane = s.lane AND d.state = 'leased' AND d.lease_until > clock.now
            LIMIT n.concurrency) x) used
    CROSS JOIN LATERAL (
        SELECT CASE WHEN n.rate_per_s IS NOT NULL THEN coalesce((
            SELECT least(greatest(1, n.rate_per_s / 10),
                         r.tokens + n.rate_per_s * greatest(0, extract(epoch FROM clock.now - r.at)))
            FROM outbox.lane_rate r WHERE r.lane = s.lane), greatest(1, n.rate_per_s / 10)) END AS tokens) r
    WHERE s.due_at <= clock.now AND coalesce(n.state, 'active') = 'active'
),
picked AS MATERIALIZED (
    SELECT l.lane, c.id, c.fresh,
           coalesce(least(c.expires_at, c.age_limit_at) > clock.now, true) AND s.state = 'active' AS fit
    FROM clock, lanes l CROSS JOIN LATERAL (
        SELECT f.*, true AS fresh FROM (
            SELECT d.id, d.subscription_id, d.expires_at, d.age_limit_at FROM outbox.delivery d
            WHERE d.lane = l.lane AND d.state = 'scheduled' AND d.attempts = 0 AND d.due_at <= clock.now
            ORDER BY d.due_at LIMIT greatest(0, l.free)
            FOR UPDATE SKIP LOCKED) f
        UNION ALL
        SELECT r.*, false FROM (
            SELECT d.id, d.subscription_id, d.expires_at, d.age_limit_at FROM outbox.delivery d
            WHERE d.lane = l.lane AND d.state = 'scheduled' AND d.attempts > 0 AND d.due_at <= clock.now
            ORDER BY d.due_at
            LIMIT greatest(0, least(l.free, greatest(1, l.concurrency::bigint * 3 / 4) - l.retries))
            FOR UPDATE SKIP LOCKED) r
        LIMIT greatest(0, l.free)) c
    CROSS JOIN LATERAL (
        SELECT s.state FROM outbox.subscription s WHERE s.id = c.subscription_id
        OFFSET 0) s
),
chosen AS MATERIALIZED (
    SELECT x.id, x.lane FROM (
        SELECT p.id, p.lane, row_number() OVER (PARTITION BY p.lane ORDER BY p.fresh DESC) AS turn
        FROM picked p WHERE p.fit) x
    ORDER BY x.turn LIMIT %(window)s::int
),
leased AS (
    UPDATE outbox.delivery d
    SET state = 'leased', token = %(token)s::bigint, started_at = NULL,
        lease_until = (SELECT now FROM clock) + make_interval(secs => %(lease_s)s::float8)
    WHERE d.id = ANY (ARRAY(SELECT c.id FROM chosen c))
    RETURNING d.id
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
       (SELECT (extract(epoch FROM min(s.due_at)) - extract(epoch FROM clock.now))::float8 FROM clock, seen s WHERE s.due_at > clock.now
        GROUP BY clock.now) AS next_due_s,
       (SELECT count(*) FROM picked p WHERE NOT p.fit)
       + (SELECT count(*) FROM clock, seen s LEFT JOIN lanes l USING (lane)
          WHERE s.due_at <= clock.now AND l.lane IS NULL) AS idle,
       EXISTS (SELECT FROM lanes l WHERE l.free <= 0 OR l.free > 0 AND l.tokens < 2) AS blocked
