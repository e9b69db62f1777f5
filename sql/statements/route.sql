-- Claims pending events, matches them, creates their deliveries, and leases what may go at once.
--
-- Runs under the dispatch lock (dispatch_lock.sql), so that limits are exact and subscriptions do
-- not change meanwhile. Ordered deliveries are never leased here: the first of its key is scheduled,
-- the others are held until order_advance.sql says that it is their turn. Where a key may be used once in
-- a time, or is debounced, what is one too many is matched and cancelled. One of two claims is
-- active: in order of id (`orgs_max` = 0), or fair over organizations by a loose scan of at most `orgs_max` of them from `org_from` on.
--
-- now            timestamptz or null: the clock, for tests; null means the server's
-- floor, ceiling bigint: only floor < id <= ceiling
-- events_max     int: events to claim at most
-- orgs_max       int: 0, or how many organizations a fair claim visits
-- org_from       text: where the loose scan begins ('' = the first)
-- orgs_skipped   text[]: organizations a fair claim leaves alone
-- window         int: leases to hand out at most
-- token          bigint or null: the lease token, for tests; null draws the next one
-- lanes, oldest  bigint[]: of lanes, a token that no live lease is older than
-- front_lanes    bigint[], fronts float8[] (seconds since 1970): of lanes, a time before which no first attempt is due
-- lease_s        float8: length of the lease in seconds
-- One row: ids (bytea, 16 bytes a leased delivery, organizations in turn), events, deliveries,
-- leased, waiting (ready but without a permit), id_max (of the claimed), org_last (visited), orgs_full (text[]: all of whose deliveries
-- had to wait), broadcasts (deliveries that the daemon itself performs), spare (permits and tokens left
-- in the lanes met), now (float8, seconds since 1970), wait_lanes (bigint[]) and wait_dues (float8[]): where first attempts wait,
-- and since when; clear_lanes (bigint[]): where none was due; token, lanes and oldest (bigint[]: for the next claim)
WITH RECURSIVE clock AS MATERIALIZED (
    SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now,
           (SELECT last_value FROM outbox.ring_slot)::smallint AS slot
),
-- Drawn under the lock, so that tokens rise with time; random below, so that none comes twice, also
-- where a database was set back.
drawn AS MATERIALIZED (
    SELECT coalesce(%(token)s::bigint, (pg_catalog.nextval('outbox.lease_token') << 20)
                                       | pg_catalog.floor(pg_catalog.random() * 1048576)::bigint) AS token
),
epoch AS MATERIALIZED (
    SELECT i.first_event_id, i.salt, i.hold_event_id FROM outbox.installation i
),
in_order AS MATERIALIZED (
    SELECT p.id FROM outbox.pending p
    WHERE %(orgs_max)s::int = 0 AND p.id > %(floor)s::bigint AND p.id <= %(ceiling)s::bigint
    ORDER BY p.id LIMIT %(events_max)s::int
    FOR UPDATE SKIP LOCKED
),
orgs (org, n) AS (
    (SELECT p.org, 1 FROM outbox.pending p
     WHERE %(orgs_max)s::int > 0 AND p.org >= %(org_from)s::text COLLATE "C"
       AND p.id > %(floor)s::bigint AND p.id <= %(ceiling)s::bigint
     ORDER BY p.org, p.id LIMIT 1)
    UNION ALL
    SELECT next.org, o.n + 1 FROM orgs o CROSS JOIN LATERAL (
        SELECT p.org FROM outbox.pending p
        WHERE p.org > o.org AND p.id > %(floor)s::bigint AND p.id <= %(ceiling)s::bigint
        ORDER BY p.org, p.id LIMIT 1) next
    WHERE o.n < %(orgs_max)s::int
),
fair AS MATERIALIZED (
    SELECT c.id FROM (
        SELECT o.org, count(*) OVER () AS n FROM orgs o WHERE o.org <> ALL (%(orgs_skipped)s::text[])
    ) o CROSS JOIN LATERAL (
        -- Written so that no other index gives this order: statistics of a backlog make walking all
        -- organizations in order of id look cheaper.
        SELECT p.id FROM outbox.pending p
        WHERE (p.org, p.id) > (o.org, %(floor)s::bigint) AND p.org <= o.org AND p.id <= %(ceiling)s::bigint
        ORDER BY p.org, p.id LIMIT greatest(1, %(events_max)s::int / o.n)
        FOR UPDATE SKIP LOCKED) c
),
claimed AS (
    DELETE FROM outbox.pending p
    WHERE p.id = ANY (ARRAY(SELECT c.id FROM in_order c UNION ALL SELECT c.id FROM fair c))
    RETURNING p.id, p.slot
),
ev AS MATERIALIZED (
    SELECT e.*, i.salt FROM claimed c CROSS JOIN LATERAL (
        SELECT e.id, e.slot, e.type, e.org_id, e.subject, e.ordering_key, e.payload, e.created_at, e.deliver_at, e.expires_at
        FROM outbox.event e WHERE e.slot = c.slot AND e.id = c.id
        OFFSET 0) e
    CROSS JOIN LATERAL (
        SELECT i.salt FROM epoch i WHERE i.first_event_id <= c.id
        ORDER BY i.first_event_id DESC LIMIT 1) i
),
-- One row an event and subscription that match; an event that matches none has one row without.
found AS MATERIALIZED (
    SELECT ev.id AS event_id, ev.slot, ev.org_id, ev.created_at, ev.salt,
           outbox.expiry(ev.expires_at, ev.deliver_at, ev.created_at, s.delay, s.ttl) AS expires_at,
           s.id AS subscription_id, s.revision, s.lane,
           CASE WHEN s.delay IS NULL THEN coalesce(ev.deliver_at, clock.now)
                ELSE least(coalesce(ev.deliver_at, clock.now), '9000-01-01Z') + s.delay END
           - CASE WHEN s.priority IS NULL OR s.delay IS NOT NULL OR ev.deliver_at > clock.now THEN interval '0'
                  ELSE make_interval(secs => outbox.priority_s(s.priority, ev.payload)) END AS due_at,
           -- The state of the pair decides; a copied database's debts wait for a person.
           CASE WHEN s.state <> 'active' THEN s.state
                WHEN coalesce(s.endpoint_state, 'active') <> 'active' THEN s.endpoint_state
                WHEN ev.id <= (SELECT max(hold_event_id) FROM epoch) THEN 'adopted' END AS held_reason,
           ev.created_at + s.max_age AS age_limit_at,
           s.concurrency, s.rate_per_s, s.order_mode, s.key_concurrency,
           CASE WHEN s.order_mode IS NOT NULL THEN
               outbox.turn_key(s.key, ev.type, ev.org_id, ev.subject, ev.ordering_key, ev.payload) END AS order_key,
           CASE WHEN s.use_key IS NOT NULL THEN
               outbox.key_hash(ev.org_id, outbox.key_text(s.use_key, ev.type, ev.org_id, ev.subject, ev.ordering_key, ev.payload))
               END AS use_key
    FROM clock, ev LEFT JOIN LATERAL (
        SELECT s.id, s.revision, s.lane, s.state, s.max_age, s.order_mode, n.state AS endpoint_state,
               s.delay, s.ttl, s.priority, s.key, s.key_concurrency, s.use_key,
               coalesce(n.concurrency, s.concurrency_max) AS concurrency, coalesce(n.rate_per_s, s.rate_per_s_max) AS rate_per_s FROM (
            SELECT * FROM outbox.subscription s
            WHERE s.org_id = ev.org_id AND s.state <> 'removed' AND NOT s.all_orgs
            UNION ALL
            SELECT * FROM outbox.subscription s WHERE s.state <> 'removed' AND s.all_orgs) s
        LEFT JOIN outbox.endpoint n ON n.id = s.endpoint_id
        WHERE s.active_from <= ev.created_at
          AND coalesce(n.state, 'active') <> 'removed'
          AND outbox.type_matches(ev.type, s.likes, s.every)
          AND (s.filter IS NULL OR s.state_reason = 'filter_timeout' OR outbox.filter_passes(s.filter, ev.payload))
        OFFSET 0) s ON true
),
-- What becomes of events that share a key; not called where no subscription asks.
used AS MATERIALIZED (
    SELECT u.event_id, u.subscription_id, u.due_at, u.dropped FROM clock CROSS JOIN (
        SELECT array_agg(f.event_id) AS events, array_agg(f.subscription_id) AS subscriptions, array_agg(f.org_id) AS orgs,
               array_agg(f.use_key) AS keys, array_agg(f.due_at) AS dues,
               array_agg(outbox.delivery_id(f.event_id, f.created_at, f.subscription_id, 0, f.salt)) AS deliveries
        FROM found f WHERE f.use_key IS NOT NULL HAVING count(*) > 0) a
    CROSS JOIN LATERAL outbox.use_keys(clock.now, clock.slot, a.events, a.subscriptions, a.orgs, a.keys, a.deliveries, a.dues) u
),
-- `dropped`: matched, and called off at once.
matched AS MATERIALIZED (
    SELECT f.event_id, f.slot, f.org_id, f.created_at, f.salt, f.expires_at, f.subscription_id, f.revision, f.lane,
           coalesce(u.due_at, f.due_at) AS due_at, f.held_reason, f.age_limit_at, f.concurrency, f.rate_per_s,
           f.order_mode, f.key_concurrency, CASE WHEN u.dropped IS NULL THEN f.order_key END AS order_key, u.dropped
    FROM found f LEFT JOIN used u
        ON f.use_key IS NOT NULL AND u.event_id = f.event_id AND u.subscription_id = f.subscription_id
),
-- Below this id everything of an organization is routed. An event of a key is written after the
-- one before it has committed, so that one stands in this snapshot: routed, claimed or pending.
gates AS MATERIALIZED (
    SELECT o.org_id, (
        SELECT p.id FROM outbox.pending p
        WHERE p.org >= coalesce(o.org_id, '') AND p.org <= coalesce(o.org_id, '')
          AND p.id < o.id_max AND p.id <> ALL (ARRAY(SELECT c.id FROM claimed c))
        ORDER BY p.org, p.id LIMIT 1) AS id
    FROM (SELECT m.org_id, max(m.event_id) AS id_max FROM matched m
          WHERE m.order_key IS NOT NULL AND m.order_mode <> 'share' GROUP BY m.org_id) o
),
turns AS MATERIALIZED (
    SELECT t.*, t.next AND NOT t.gated AND NOT t.barred AS head FROM (
        SELECT m.event_id, m.subscription_id, m.order_key,
               CASE WHEN m.order_mode = 'share' THEN
                   -- Who came earlier and waits for its turn goes first.
                   row_number() OVER (PARTITION BY m.subscription_id, m.order_key ORDER BY m.event_id) + (
                       SELECT count(*) FROM (
                           SELECT FROM outbox.delivery d WHERE d.subscription_id = m.subscription_id
                           AND d.order_key = m.order_key AND d.held_reason IS DISTINCT FROM 'order'
                           LIMIT m.key_concurrency) x) <= m.key_concurrency
                   AND NOT EXISTS (SELECT FROM outbox.delivery d WHERE d.subscription_id = m.subscription_id
                                   AND d.order_key = m.order_key AND d.held_reason = 'order'
                                   OFFSET 0) -- else it may be answered from a hash of the whole table
               ELSE
                   row_number() OVER (PARTITION BY m.subscription_id, m.order_key ORDER BY m.event_id) = 1
                   AND NOT EXISTS (SELECT FROM outbox.delivery d WHERE d.subscription_id = m.subscription_id
                                   AND d.order_key = m.order_key AND d.event_id < m.event_id) END AS next,
               m.order_mode <> 'share' AND
               coalesce((SELECT g.id < m.event_id FROM gates g WHERE g.org_id IS NOT DISTINCT FROM m.org_id), false) AS gated,
               m.order_mode NOT IN ('skip', 'share') AND EXISTS (
                   SELECT FROM outbox.dead_letter l WHERE l.subscription_id = m.subscription_id
                   AND l.order_key = m.order_key AND l.event_id < m.event_id AND l.reason <> 'expired') AS barred
        FROM matched m WHERE m.order_key IS NOT NULL) t
),
lanes AS MATERIALIZED (
    SELECT l.lane, l.rate_per_s, r.tokens, h.open, used.n, CASE WHEN l.concurrency IS NOT NULL THEN least(used.oldest, drawn.token) END AS oldest,
           first.due_at AS waits_since,
           -- Who came earlier and waits for a permit goes first.
           CASE WHEN first.due_at IS NOT NULL THEN 0 ELSE least(coalesce(l.concurrency, 2147483647) - used.n, floor(coalesce(r.tokens, 2147483647)))::bigint END AS free
    FROM clock, drawn, (
        SELECT m.*, coalesce((SELECT k.oldest FROM unnest(%(lanes)s::bigint[], %(oldest)s::bigint[]) k (lane, oldest)
                              WHERE k.lane = m.lane LIMIT 1), 0) AS since,
               coalesce((SELECT to_timestamp(k.front) FROM unnest(%(front_lanes)s::bigint[], %(fronts)s::float8[]) k (lane, front)
                         WHERE k.lane = m.lane LIMIT 1), '-infinity') AS front
        FROM (SELECT DISTINCT m.lane, m.concurrency, m.rate_per_s FROM matched m
              WHERE m.held_reason IS NULL AND m.lane > 0 AND m.order_key IS NULL) m
        OFFSET 0) l
    CROSS JOIN LATERAL (
        SELECT EXISTS (SELECT FROM outbox.lane_health h WHERE h.lane = l.lane AND h.probe_at IS NOT NULL) AS open) h
    LEFT JOIN LATERAL (
        SELECT d.due_at FROM outbox.delivery d
        WHERE d.lane = l.lane AND d.state = 'scheduled' AND d.queue = 0 AND d.due_at >= l.front AND d.due_at <= clock.now
        ORDER BY d.due_at LIMIT 1) first ON true
    CROSS JOIN LATERAL (
        SELECT count(*) AS n, min(x.token) AS oldest FROM (
            SELECT d.token FROM outbox.delivery d
            WHERE d.lane = l.lane AND d.state = 'leased' AND d.token >= l.since AND d.lease_until > clock.now
            ORDER BY d.token -- which the index of all leases cannot give, whatever the statistics
            LIMIT coalesce(l.concurrency, 0)) x) used
    CROSS JOIN LATERAL (
        SELECT CASE WHEN l.rate_per_s IS NOT NULL THEN coalesce((
            SELECT least(greatest(1, l.rate_per_s / 10),
                         r.tokens + l.rate_per_s * greatest(0, extract(epoch FROM clock.now - r.at)))
            FROM outbox.lane_rate r WHERE r.lane = l.lane), greatest(1, l.rate_per_s / 10)) END AS tokens) r
),
ranked AS MATERIALIZED (
    SELECT x.*, sum(CASE WHEN x.may THEN 1 ELSE 0 END) OVER (ORDER BY x.turn, x.event_id, x.subscription_id
                                       ROWS UNBOUNDED PRECEDING) AS nth
    FROM (
        SELECT y.*, coalesce(y.ready AND y.lane_nth <= y.free, false) AS may FROM (
            SELECT m.*, l.free, t.order_key IS NOT NULL AND NOT t.head AS behind,
                   m.held_reason IS NULL AND m.order_key IS NULL AND m.dropped IS NULL AND m.lane > 0 AND NOT coalesce(l.open, false) AND m.due_at <= clock.now
                        AND coalesce(m.expires_at > clock.now, true)
                        AND coalesce(m.age_limit_at > clock.now, true) AS ready,
                   row_number() OVER (PARTITION BY m.lane ORDER BY m.dropped IS NOT NULL, m.due_at, m.event_id, m.subscription_id) AS lane_nth,
                   row_number() OVER (PARTITION BY m.org_id ORDER BY m.event_id, m.subscription_id) AS turn
            FROM clock, matched m LEFT JOIN lanes l USING (lane)
            LEFT JOIN turns t ON t.event_id = m.event_id AND t.subscription_id = m.subscription_id
        ) y) x
),
fated AS MATERIALIZED (
    SELECT r.*, r.subscription_id IS NOT NULL AS real, outbox.delivery_key(r.created_at, r.hash) AS id,
           CASE WHEN r.behind THEN 'order' ELSE r.held_reason END AS why,
           CASE WHEN r.held_reason IS NOT NULL OR r.behind THEN 'held'
                WHEN r.dropped IS NOT NULL THEN 'cancelled'
                WHEN r.may AND r.nth <= %(window)s::int THEN 'leased' ELSE 'scheduled' END AS state
    FROM (SELECT r.*, outbox.delivery_hash(r.event_id, r.subscription_id, 0, r.salt) AS hash FROM ranked r OFFSET 0) r
),
created AS (
    INSERT INTO outbox.delivery (id, event_id, event_slot, subscription_id, revision, lane, org_id, order_key, state,
        due_at, expires_at, age_limit_at, token, lease_until, held_at, held_reason)
    SELECT f.id, f.event_id, f.slot, f.subscription_id, f.revision, f.lane, f.org_id, f.order_key, f.state,
           f.due_at, f.expires_at, f.age_limit_at,
           CASE WHEN f.state = 'leased' THEN drawn.token END,
           CASE WHEN f.state = 'leased' THEN clock.now + make_interval(secs => %(lease_s)s::float8) END,
           CASE WHEN f.state = 'held' THEN clock.now END, f.why
    FROM clock, drawn, fated f WHERE f.real AND f.dropped IS NULL
    ON CONFLICT (id) DO NOTHING
),
spent AS (
    INSERT INTO outbox.lane_rate AS r (lane, tokens, at)
    SELECT l.lane, l.tokens - (SELECT count(*) FROM fated f WHERE f.lane = l.lane AND f.state = 'leased'), clock.now
    FROM clock, lanes l WHERE l.rate_per_s IS NOT NULL
    ON CONFLICT (lane) DO UPDATE SET tokens = excluded.tokens, at = excluded.at
),
-- Nobody who ends a delivery would call for these: they wait for routing, or for dead letters.
called AS (
    INSERT INTO outbox.order_signal (subscription_id, order_key, at)
    SELECT t.subscription_id, t.order_key, clock.now FROM clock, turns t WHERE t.next AND NOT t.head
),
told AS (
    INSERT INTO outbox.journal (slot, at, fact, event_id, org_id, detail)
    SELECT min(clock.slot), min(clock.now), 'routed', f.event_id, min(f.org_id),
           jsonb_agg(jsonb_build_object('delivery', f.id, 'subscription', f.subscription_id,
               'revision', f.revision, 'held', f.why, 'due_at', f.due_at)) FILTER (WHERE f.real)
    FROM clock, fated f GROUP BY f.event_id
)
SELECT f.ids, (SELECT count(*) FROM claimed) AS events, f.deliveries, f.leased, f.waiting,
       (SELECT max(c.id) FROM claimed c) AS id_max,
       (SELECT max(o.org) FROM orgs o) AS org_last,
       CASE WHEN f.waiting > 0 THEN (SELECT array_agg(o.org) FROM (
            SELECT coalesce(f.org_id, '') AS org FROM fated f WHERE f.real GROUP BY 1
            HAVING bool_and(f.state = 'scheduled' AND f.ready)) o) END AS orgs_full,
       f.broadcasts,
       (SELECT coalesce(sum(greatest(l.free, 0)), 0)::bigint FROM lanes l) - f.leased AS spare,
       (SELECT extract(epoch FROM now)::float8 FROM clock) AS now, w.wait_lanes, w.wait_dues, w.clear_lanes,
       (SELECT d.token FROM drawn d) AS token, o.lanes, o.oldest
FROM (SELECT string_agg(uuid_send(f.id), '' ORDER BY f.nth) FILTER (WHERE f.state = 'leased') AS ids,
             count(*) FILTER (WHERE f.real AND f.dropped IS NULL) AS deliveries,
             count(*) FILTER (WHERE f.state = 'leased') AS leased,
             count(*) FILTER (WHERE f.real AND f.state = 'scheduled' AND f.ready) AS waiting,
             count(*) FILTER (WHERE f.real AND f.lane < 0) AS broadcasts
      FROM fated f) f
CROSS JOIN (
    SELECT array_agg(l.lane) AS lanes, array_agg(l.oldest) AS oldest FROM (
        SELECT l.lane, l.oldest FROM lanes l WHERE l.oldest IS NOT NULL ORDER BY l.n DESC LIMIT 64) l) o
CROSS JOIN (
    SELECT array_agg(x.lane) FILTER (WHERE x.due_at IS NOT NULL) AS wait_lanes,
           array_agg(extract(epoch FROM x.due_at)::float8) FILTER (WHERE x.due_at IS NOT NULL) AS wait_dues,
           array_agg(x.lane) FILTER (WHERE x.due_at IS NULL) AS clear_lanes FROM (
        SELECT y.lane, min(y.due_at) AS due_at FROM (
            SELECT l.lane, l.waits_since AS due_at FROM lanes l
            UNION ALL
            SELECT f.lane, f.due_at FROM fated f WHERE f.real AND f.state = 'scheduled' AND f.lane > 0) y
        GROUP BY y.lane) x) w
