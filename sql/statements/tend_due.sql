-- Ends or holds scheduled deliveries that are due but not to be tried: past their expiry or age
-- (dead), of a removed destination (cancelled), of a paused or disabled one (held). Held ones past
-- their expiry end too. Runs under the dispatch lock, in batches.
--
-- now        timestamptz or null
-- rows_max   int
-- One row: changed (count)
WITH clock AS MATERIALIZED (
    SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now,
           (SELECT last_value FROM outbox.ring_slot)::smallint AS slot
),
due AS MATERIALIZED (
    SELECT x.* FROM clock, outbox.due_walk(-9223372036854775808, 9223372036854775807, 2147483647) w CROSS JOIN LATERAL (
        SELECT d.* FROM outbox.delivery d
        WHERE d.state = 'scheduled' AND d.queue = w.queue AND d.lane = w.lane AND d.due_at >= w.due_at AND d.due_at <= clock.now
        ORDER BY d.due_at LIMIT %(rows_max)s::int) x
    UNION ALL
    (SELECT d.* FROM outbox.delivery d
     WHERE d.state = 'held' AND d.expires_at <= (SELECT now FROM clock)
     ORDER BY d.expires_at LIMIT %(rows_max)s::int)
),
judged AS MATERIALIZED (
    SELECT d.id, CASE
        WHEN s.state = 'removed' OR n.state = 'removed' THEN 'cancelled'
        WHEN d.expires_at <= clock.now THEN 'expired'
        WHEN d.state = 'scheduled' AND d.age_limit_at <= clock.now THEN 'max_age'
        WHEN d.state = 'held' THEN NULL
        WHEN s.state <> 'active' THEN s.state
        WHEN coalesce(n.state, 'active') <> 'active' THEN n.state END AS verdict
    FROM clock, due d JOIN outbox.subscription s ON s.id = d.subscription_id
    LEFT JOIN outbox.endpoint n ON n.id = s.endpoint_id
),
locked AS MATERIALIZED (
    SELECT d.*, j.verdict FROM (
        SELECT j.id, j.verdict FROM judged j WHERE j.verdict IS NOT NULL ORDER BY j.id LIMIT %(rows_max)s::int) j
    CROSS JOIN LATERAL (
        SELECT * FROM outbox.delivery d WHERE d.id = j.id
        OFFSET 0 FOR UPDATE SKIP LOCKED) d
    WHERE d.state <> 'leased'
),
gone AS (
    DELETE FROM outbox.delivery d
    WHERE d.id = ANY (ARRAY(SELECT l.id FROM locked l WHERE l.verdict IN ('cancelled', 'expired', 'max_age')))
),
buried AS (
    INSERT INTO outbox.dead_letter (id, event_id, event_slot, subscription_id, revision, generation, lane, org_id,
        order_key, attempts, budget, expiries, expires_at, reason, died_at)
    SELECT l.id, l.event_id, l.event_slot, l.subscription_id, l.revision, l.generation, l.lane, l.org_id,
           l.order_key, l.attempts, l.budget, l.expiries, l.expires_at, l.verdict, clock.now
    FROM clock, locked l WHERE l.verdict IN ('expired', 'max_age')
),
stopped AS (
    UPDATE outbox.delivery d SET state = 'held', held_at = (SELECT now FROM clock),
        held_reason = (SELECT jsonb_object_agg(l.id, l.verdict) FROM locked l) ->> d.id::text
    WHERE d.id = ANY (ARRAY(SELECT l.id FROM locked l WHERE l.verdict IN ('paused', 'disabled')))
),
told AS (
    INSERT INTO outbox.journal (slot, at, fact, event_id, delivery_id, subscription_id, org_id, revision,
        budget, attempt, charged, reason)
    SELECT clock.slot, clock.now,
           CASE l.verdict WHEN 'cancelled' THEN 'cancelled' WHEN 'expired' THEN 'expired'
                          WHEN 'max_age' THEN 'dead' ELSE 'held' END,
           l.event_id, l.id, l.subscription_id, l.org_id, l.revision, l.budget, l.attempts, false, l.verdict
    FROM clock, locked l
)
SELECT count(*) AS changed FROM locked
