-- Takes back leases that ran out. One that was never started cost nothing; a started one counts
-- against its own limit, so that a delivery that kills its worker cannot do so for ever.
--
-- now           timestamptz or null
-- since_s       float8 or null: only leases that ran out so lately; null means all
-- rows_max      int
-- expiries_max  int: started leases that may run out in one budget
-- One row: started, unstarted, dead (counts), lanes (bigint[]), queues (int[]), dues (float8[], seconds since
-- 1970): of those for workers, when they are due again
--
-- A `lease_expired` fact is charged where the lease had started; the last one, which kills, is the
-- `dead` fact itself.
WITH clock AS MATERIALIZED (
    SELECT c.now, coalesce(c.now - make_interval(secs => %(since_s)s::float8), '-infinity') AS since,
           (SELECT last_value FROM outbox.ring_slot)::smallint AS slot
    FROM (SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now) c
),
ended AS MATERIALIZED (
    SELECT d.*, d.started_at IS NOT NULL AS started FROM outbox.delivery d
    WHERE d.state = 'leased' AND d.lease_until AT TIME ZONE 'UTC' <= (SELECT now FROM clock) AT TIME ZONE 'UTC'
      AND d.lease_until AT TIME ZONE 'UTC' > (SELECT since FROM clock) AT TIME ZONE 'UTC'
    ORDER BY d.lease_until AT TIME ZONE 'UTC' LIMIT %(rows_max)s::int
    FOR UPDATE SKIP LOCKED
),
doomed AS (
    DELETE FROM outbox.delivery d
    WHERE d.id = ANY (ARRAY(SELECT e.id FROM ended e WHERE e.started AND e.expiries + 1 >= %(expiries_max)s::int))
),
buried AS (
    INSERT INTO outbox.dead_letter (id, event_id, event_slot, subscription_id, revision, generation, lane, org_id,
        order_key, attempts, budget, expiries, expires_at, reason, died_at)
    SELECT e.id, e.event_id, e.event_slot, e.subscription_id, e.revision, e.generation, e.lane, e.org_id,
           e.order_key, e.attempts, e.budget, e.expiries, e.expires_at, 'lease_expired', clock.now
    FROM clock, ended e WHERE e.started AND e.expiries + 1 >= %(expiries_max)s::int
),
freed AS (
    UPDATE outbox.delivery d
    SET state = 'scheduled', token = NULL, lease_until = NULL, started_at = NULL,
        due_at = (SELECT now FROM clock), expiries = d.expiries + (d.started_at IS NOT NULL)::int
    WHERE d.id = ANY (ARRAY(SELECT e.id FROM ended e
                            WHERE NOT (e.started AND e.expiries + 1 >= %(expiries_max)s::int)))
),
told AS (
    INSERT INTO outbox.journal (slot, at, fact, event_id, delivery_id, subscription_id, org_id, revision,
        budget, attempt, charged, reason, due_at)
    SELECT clock.slot, clock.now,
           CASE WHEN e.started AND e.expiries + 1 >= %(expiries_max)s::int THEN 'dead' ELSE 'lease_expired' END,
           e.event_id, e.id, e.subscription_id, e.org_id, e.revision, e.budget, e.attempts,
           e.started AND e.expiries + 1 < %(expiries_max)s::int,
           CASE WHEN e.started THEN 'lease_expired' ELSE 'lease_unstarted' END,
           CASE WHEN NOT (e.started AND e.expiries + 1 >= %(expiries_max)s::int) THEN clock.now END
    FROM clock, ended e
)
SELECT count(*) FILTER (WHERE e.started) AS started,
       count(*) FILTER (WHERE NOT e.started) AS unstarted,
       count(*) FILTER (WHERE e.started AND e.expiries + 1 >= %(expiries_max)s::int) AS dead,
       array_agg(e.lane) FILTER (WHERE e.lane > 0) AS lanes, array_agg(e.queue) FILTER (WHERE e.lane > 0) AS queues,
       array_agg(extract(epoch FROM clock.now)::float8) FILTER (WHERE e.lane > 0) AS dues
FROM clock LEFT JOIN ended e ON true
