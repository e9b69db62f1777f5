-- Where deliveries that wait begin, lane by lane: one walk for all who look for them.
-- compatible-from: 10
--
-- While somebody holds a snapshot, a row that left the queue stays in its index, at the low end of its lane:
-- who looks from there passes all that has ever waited. So a walk is made now and then, in a small share of
-- the time; between, relays and broadcasters look from where they last saw something live.

-- The first due time of each lane and queue that holds scheduled deliveries, for lanes between `beyond` and
-- `before`: at most `lanes_max` lanes, the lowest. Where `beyond` is null, nothing is walked.
CREATE FUNCTION outbox.due_walk(beyond bigint, before bigint, lanes_max int)
RETURNS TABLE (lane bigint, queue int, due_at timestamptz)
LANGUAGE plpgsql STABLE STRICT SET search_path = '' AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH RECURSIVE walk (queue, lane, due_at, n) AS (
        SELECT q.queue, first.lane, first.due_at, 1 FROM (VALUES (0), (1), (2)) q (queue) CROSS JOIN LATERAL (
            SELECT d.lane, d.due_at FROM outbox.delivery d
            WHERE d.state = 'scheduled' AND d.queue = q.queue AND d.lane > due_walk.beyond AND d.lane < due_walk.before
            ORDER BY d.lane, d.due_at LIMIT 1) first
        UNION ALL
        SELECT w.queue, next.lane, next.due_at, w.n + 1 FROM walk w CROSS JOIN LATERAL (
            SELECT d.lane, d.due_at FROM outbox.delivery d
            WHERE d.state = 'scheduled' AND d.queue = w.queue AND d.lane > w.lane AND d.lane < due_walk.before
            ORDER BY d.lane, d.due_at LIMIT 1) next
        WHERE w.n < due_walk.lanes_max
    )
    -- Of each queue the first lanes, of all together as many: up to the last of these nothing is missing.
    SELECT w.lane, w.queue, w.due_at FROM walk w
    WHERE w.lane <= (SELECT max(l.lane) FROM (
        SELECT DISTINCT x.lane FROM walk x ORDER BY x.lane LIMIT due_walk.lanes_max) l);
END
$$;

-- Claims broadcasts that are due (their rows are locked) and makes their messages. `claim_transport`
-- is sql or http; `claim_lanes`, `claim_queues`, `claim_fronts` (seconds since 1970): where to look, and a time
-- before which nothing of that lane and queue is due. A row each, also for what cannot be a message: `unfit`
-- says why; `passed` says that a newer one of its subject, claimed with it, stands for it.
CREATE FUNCTION outbox.broadcast_claim(claim_now timestamptz, claim_transport text, rows_max int,
    claim_lanes bigint[], claim_queues int[], claim_fronts float8[])
RETURNS TABLE (id uuid, event_id bigint, event_slot smallint, subscription_id bigint, revision int, generation int,
    lane bigint, org_id text, order_key bigint, attempts int, budget int, expiries int, expires_at timestamptz,
    age_limit_at timestamptz, retry text, topic text, event text, message jsonb, private boolean, passed boolean,
    unfit text)
LANGUAGE plpgsql SET search_path = '' AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH clock AS MATERIALIZED (
        SELECT coalesce(claim_now, pg_catalog.clock_timestamp()) AS now
    ),
    lanes AS MATERIALIZED (
        SELECT s.queue, s.lane, pg_catalog.to_timestamp(s.front) AS front, pg_catalog.count(*) OVER () AS n
        FROM unnest(claim_lanes, claim_queues, claim_fronts) s (lane, queue, front) CROSS JOIN LATERAL (
            SELECT FROM outbox.subscription x
            WHERE x.id = -s.lane AND x.state = 'active' AND x.config ->> 'transport' = claim_transport
            OFFSET 0) x
    ),
    picked AS MATERIALIZED (
        SELECT p.* FROM clock, lanes l CROSS JOIN LATERAL (
            SELECT d.* FROM outbox.delivery d
            WHERE d.state = 'scheduled' AND d.queue = l.queue AND d.lane = l.lane AND d.due_at >= l.front AND d.due_at <= clock.now
            ORDER BY d.due_at LIMIT greatest(1, rows_max / l.n)
            FOR UPDATE SKIP LOCKED) p
    ),
    -- As the revision says that routed it; what is past its expiry or age is left to tend_due.sql.
    messages AS MATERIALIZED (
        SELECT p.*, e.type, e.subject, e.org_id AS event_org, e.data IS NULL AS unreadable, s.retry,
               coalesce(r.config, s.config) AS config,
               -- A captured row has its columns in `record`, an emitted event in the payload itself. This stands
               -- here because no function with a subquery is inlined, and a call would double the price.
               pg_catalog.jsonb_build_object('id', p.event_id::text, 'delivery', p.id, 'type', e.type, 'subject', e.subject,
                   'operation', e.data -> 'operation', 'changed', e.data -> 'changed',
                   'record', CASE WHEN pg_catalog.jsonb_typeof(e.record) = 'object' THEN coalesce((
                       SELECT pg_catalog.jsonb_object_agg(n.name, CASE WHEN pg_catalog.jsonb_typeof(e.record -> n.name) IN ('number', 'object', 'array')
                           THEN outbox.broadcast_value(e.record -> n.name) ELSE e.record -> n.name END)
                       FROM pg_catalog.jsonb_array_elements_text(coalesce(r.config, s.config) -> 'include') n (name)
                       WHERE e.record ? n.name), '{}') END) AS message
        FROM clock, picked p
        CROSS JOIN LATERAL (
            SELECT s.config, s.revision, s.state, s.retry FROM outbox.subscription s WHERE s.id = p.subscription_id
            OFFSET 0) s
        LEFT JOIN LATERAL (
            SELECT r.config -> 'config' AS config FROM outbox.subscription_revision r
            WHERE p.revision <> s.revision AND r.subscription_id = p.subscription_id AND r.revision = p.revision
            OFFSET 0) r ON true
        CROSS JOIN LATERAL (
            SELECT e.*, CASE WHEN e.data ?& '{operation,schema,table}' THEN e.data -> 'record' ELSE e.data END AS record FROM (
                SELECT e.type, e.org_id, e.subject, outbox.broadcast_data(e.payload) AS data
                FROM outbox.event e WHERE e.slot = p.event_slot AND e.id = p.event_id
                OFFSET 0) e
            OFFSET 0) e
        WHERE s.state = 'active' AND coalesce(p.expires_at > clock.now, true) AND coalesce(p.age_limit_at > clock.now, true)
    ),
    -- The newest of a subject within the window stands for the others; what has no subject waits too.
    windows AS MATERIALIZED (
        SELECT m.*, (m.config ->> 'prefix') || ':' || m.event_org AS topic, coalesce(m.config ->> 'event_name', m.type) AS event,
               m.config ->> 'coalesce_s' IS NOT NULL AND m.subject IS NOT NULL AND
                   m.event_id < pg_catalog.max(m.event_id) OVER (PARTITION BY m.subscription_id, m.event_org, m.subject) AS passed,
               pg_catalog.min(m.due_at) OVER (PARTITION BY m.subscription_id, m.event_org, m.subject)
                   + coalesce((m.config ->> 'coalesce_s')::float8, 0) * interval '1 s' AS ripe_at
        FROM messages m
    ),
    judged AS MATERIALIZED (
        SELECT w.*, CASE
            WHEN w.unreadable THEN 'payload_unreadable'
            WHEN w.topic IS NULL THEN 'no_organization'
            WHEN pg_catalog.octet_length(w.topic) > 246 THEN 'topic_too_long'
            WHEN pg_catalog.octet_length(w.event) > 255 THEN 'event_too_long'
            WHEN pg_catalog.octet_length(w.message::text) > 256000 THEN 'payload_too_large' END AS unfit
        FROM clock, windows w
        WHERE w.config ->> 'coalesce_s' IS NULL OR w.ripe_at <= clock.now
    )
    SELECT j.id, j.event_id, j.event_slot, j.subscription_id, j.revision, j.generation, j.lane, j.org_id, j.order_key,
           j.attempts, j.budget, j.expiries, j.expires_at, j.age_limit_at, j.retry, j.topic, j.event, j.message,
           (j.config ->> 'private')::boolean, j.passed, j.unfit
    FROM judged j ORDER BY j.event_id;
END
$$;

-- The same wherever something waits, for programs of the level before.
CREATE OR REPLACE FUNCTION outbox.broadcast_claim(claim_now timestamptz, claim_transport text, rows_max int)
RETURNS TABLE (id uuid, event_id bigint, event_slot smallint, subscription_id bigint, revision int, generation int,
    lane bigint, org_id text, order_key bigint, attempts int, budget int, expiries int, expires_at timestamptz,
    age_limit_at timestamptz, retry text, topic text, event text, message jsonb, private boolean, passed boolean,
    unfit text)
LANGUAGE sql SET search_path = '' AS $$
    SELECT c.* FROM (
        SELECT coalesce(pg_catalog.array_agg(w.lane), '{}') AS lanes, coalesce(pg_catalog.array_agg(w.queue), '{}') AS queues,
               coalesce(pg_catalog.array_agg(pg_catalog.date_part('epoch', w.due_at)), '{}') AS fronts
        FROM outbox.due_walk(-9223372036854775808, 0, 2147483647) w) w
    CROSS JOIN LATERAL outbox.broadcast_claim(claim_now, claim_transport, rows_max, w.lanes, w.queues, w.fronts) c
    ORDER BY c.event_id
$$;

REVOKE ALL ON FUNCTION outbox.due_walk(bigint, bigint, int),
    outbox.broadcast_claim(timestamptz, text, int, bigint[], int[], float8[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION outbox.due_walk(bigint, bigint, int),
    outbox.broadcast_claim(timestamptz, text, int, bigint[], int[], float8[]) TO outbox_daemon;
