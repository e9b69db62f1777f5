-- Gives keys of ordered subscriptions their next turn: the first live delivery of a key is released
-- when everything before it has ended for good and is routed; where a key is shared, as many as may
-- be under way at once. After a dead letter the key stays
-- blocked or its deliveries follow it (parked), as the subscription says; what had expired bars
-- nobody.
--
-- Runs under the dispatch lock, on signals: who cannot have its turn yet because others are still
-- to be routed, or locked, is looked at again shortly.
--
-- now       timestamptz or null
-- since_s   float8 or null: only signals of the last seconds, so that a scan does not walk the dead
--           rows that somebody's old snapshot keeps; null looks at all
-- rows_max  int
-- One row: signals, released, parked (counts), lanes (bigint[]), queues (int[]), dues (float8[], seconds since
-- 1970): of those released to workers
WITH clock AS MATERIALIZED (
    SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now,
           (SELECT last_value FROM outbox.ring_slot)::smallint AS slot
),
signal AS MATERIALIZED (
    SELECT s.id, s.subscription_id, s.order_key FROM outbox.order_signal s
    WHERE s.at <= (SELECT now FROM clock)
      AND s.at > coalesce((SELECT now FROM clock) - make_interval(secs => %(since_s)s::float8), '-infinity')
    ORDER BY s.at, s.id LIMIT %(rows_max)s::int
),
first AS MATERIALIZED (
    SELECT d.*, s.order_mode,
           -- By order, so that only the index of organizations serves, whatever the statistics say.
           d.held_reason IS NOT DISTINCT FROM 'order' AND s.order_mode IS DISTINCT FROM 'share' AND coalesce((
               SELECT p.id FROM outbox.pending p WHERE p.org >= coalesce(d.org_id, '') AND p.org <= coalesce(d.org_id, '')
               ORDER BY p.org, p.id LIMIT 1) < d.event_id, false) AS gated,
           coalesce(s.order_mode, 'skip') NOT IN ('skip', 'share') AND EXISTS (
               SELECT FROM outbox.dead_letter l WHERE l.subscription_id = d.subscription_id
               AND l.order_key = d.order_key AND l.event_id < d.event_id AND l.reason <> 'expired') AS barred
    FROM (SELECT DISTINCT g.subscription_id, g.order_key FROM signal g) k
    CROSS JOIN LATERAL (
        SELECT s.order_mode, s.key_concurrency FROM outbox.subscription s WHERE s.id = k.subscription_id OFFSET 0) s
    CROSS JOIN LATERAL (
        (SELECT d.id, d.subscription_id, d.order_key, d.event_id, d.org_id, d.held_reason FROM outbox.delivery d
         WHERE s.order_mode IS DISTINCT FROM 'share'
           AND d.subscription_id = k.subscription_id AND d.order_key = k.order_key
         ORDER BY d.event_id LIMIT 1)
        UNION ALL
        -- As many as there are turns that nobody has.
        (SELECT d.id, d.subscription_id, d.order_key, d.event_id, d.org_id, d.held_reason FROM outbox.delivery d
         WHERE s.order_mode = 'share' AND d.held_reason = 'order'
           AND d.subscription_id = k.subscription_id AND d.order_key = k.order_key
         ORDER BY d.event_id LIMIT (
            SELECT greatest(0, s.key_concurrency - count(*)) FROM (
                SELECT FROM outbox.delivery u
                WHERE u.subscription_id = k.subscription_id AND u.order_key = k.order_key
                  AND u.held_reason IS DISTINCT FROM 'order'
                LIMIT s.key_concurrency) x))) d
),
-- The first of a key, or where it is to be parked as many of it as one transaction takes.
wanted AS MATERIALIZED (
    SELECT f.id, false AS park FROM first f WHERE f.held_reason = 'order' AND NOT f.gated AND NOT f.barred
    UNION ALL
    SELECT x.id, true FROM first f CROSS JOIN LATERAL (
        SELECT d.id, d.held_reason FROM outbox.delivery d
        WHERE d.subscription_id = f.subscription_id AND d.order_key = f.order_key
        ORDER BY d.event_id LIMIT %(rows_max)s::int) x
    WHERE f.barred AND f.order_mode = 'park' AND x.held_reason = 'order'
),
own AS MATERIALIZED (
    SELECT d.*, w.park FROM (SELECT w.* FROM wanted w ORDER BY w.id LIMIT 2 * %(rows_max)s::int) w
    CROSS JOIN LATERAL (
        SELECT * FROM outbox.delivery d WHERE d.id = w.id
        OFFSET 0 FOR UPDATE SKIP LOCKED) d
    WHERE d.held_reason = 'order'
),
freed AS (
    UPDATE outbox.delivery d
    SET state = 'scheduled', held_at = NULL, held_reason = NULL,
        age_limit_at = d.age_limit_at + greatest(interval '0', (SELECT now FROM clock) - d.held_at)
    WHERE d.id = ANY (ARRAY(SELECT o.id FROM own o WHERE NOT o.park))
),
gone AS (
    DELETE FROM outbox.delivery d WHERE d.id = ANY (ARRAY(SELECT o.id FROM own o WHERE o.park))
),
buried AS (
    INSERT INTO outbox.dead_letter (id, event_id, event_slot, subscription_id, revision, generation, lane, org_id,
        order_key, attempts, budget, expiries, expires_at, reason, died_at)
    SELECT o.id, o.event_id, o.event_slot, o.subscription_id, o.revision, o.generation, o.lane, o.org_id,
           o.order_key, o.attempts, o.budget, o.expiries, o.expires_at, 'parked', clock.now
    FROM clock, own o WHERE o.park
),
told AS (
    INSERT INTO outbox.journal (slot, at, fact, event_id, delivery_id, subscription_id, org_id, revision,
        budget, attempt, charged, reason, due_at)
    SELECT clock.slot, clock.now, CASE WHEN o.park THEN 'dead' ELSE 'released' END,
           o.event_id, o.id, o.subscription_id, o.org_id, o.revision, o.budget, o.attempts, false,
           CASE WHEN o.park THEN 'parked' ELSE 'order' END, CASE WHEN NOT o.park THEN o.due_at END
    FROM clock, own o
),
-- Keys whose turn is still to be judged.
open AS MATERIALIZED (
    SELECT f.subscription_id, f.order_key FROM first f
    WHERE f.gated OR EXISTS (SELECT FROM wanted w WHERE w.id = f.id) AND NOT EXISTS (SELECT FROM own o WHERE o.id = f.id)
),
later AS (
    UPDATE outbox.order_signal s SET at = (SELECT now FROM clock) + interval '20 ms'
    WHERE s.id = ANY (ARRAY(SELECT g.id FROM signal g JOIN open p USING (subscription_id, order_key)))
),
done AS (
    DELETE FROM outbox.order_signal s
    WHERE s.id = ANY (ARRAY(SELECT g.id FROM signal g WHERE NOT EXISTS (
        SELECT FROM open p WHERE p.subscription_id = g.subscription_id AND p.order_key = g.order_key)))
)
SELECT (SELECT count(*) FROM signal) AS signals,
       (SELECT count(*) FROM own o WHERE NOT o.park) AS released,
       (SELECT count(*) FROM own o WHERE o.park) AS parked, r.lanes, r.queues, r.dues
FROM (SELECT array_agg(o.lane) AS lanes, array_agg(o.queue) AS queues,
             array_agg(extract(epoch FROM o.due_at)::float8) AS dues FROM own o WHERE NOT o.park AND o.lane > 0) r
