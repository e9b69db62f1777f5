-- One cheap look at everything a relay waits for.
--
-- floor bigint
-- bell  int or null: 1 says that a relay is awake, 2 asks capture to ring
-- leases boolean: look for leases that ran out as well
-- since_s float8 or null: of these, only those that ran out so lately; null means all
-- lane_from bigint or null: walk the lanes beyond it, too, for scheduled deliveries
-- lanes_max int: at most so many lanes
-- One row: pending (boolean: an unrouted event above the floor), expired (boolean: a lease ran
-- out; false where it was not asked), snapshot (text, xmin:xmax:xip,...: transactions in progress), newest_id (bigint: the last
-- event id drawn), bell_was (bigint: before this statement), signalled (boolean: a key of an ordered
-- subscription may have its next turn), now (float8: seconds since 1970), lanes (bigint[]), queues (int[]),
-- fronts (float8[]: when the first of this lane and queue is due; all three null where nothing was met),
-- bell_is (bigint, or null)
--
-- PostgreSQL's own snapshot ends at the latest transaction that has ended: whoever runs with a later
-- id stands in no list. Here it reaches up to the next id, read after the bell was set: whoever saw
-- the bell before had an id by then. The list is cut at a thousand, and `:cut` stands at its end.
WITH clock AS MATERIALIZED (  -- no condition of an index, where it is called beside each row
    SELECT c.now, coalesce(c.now - make_interval(secs => %(since_s)s::float8), '-infinity') AS since
    FROM (SELECT clock_timestamp() AS now) c
),
rung AS MATERIALIZED (
    SELECT s.bell_was, CASE WHEN %(bell)s::bigint IS NOT NULL
                            THEN pg_catalog.setval('outbox.bell', %(bell)s::bigint, true) END AS bell_is
    FROM (SELECT last_value AS bell_was FROM outbox.bell OFFSET 0) s
)
SELECT EXISTS (SELECT FROM outbox.pending p WHERE p.id > %(floor)s::bigint ORDER BY p.id LIMIT 1) AS pending,
       -- Not EXISTS, which forgets the order and with it the one index: another one holds all leases,
       -- and those that ended while somebody holds a snapshot.
       %(leases)s::boolean AND (
           SELECT true FROM outbox.delivery d
           WHERE d.state = 'leased' AND d.lease_until AT TIME ZONE 'UTC' <= (SELECT now FROM clock) AT TIME ZONE 'UTC'
             AND d.lease_until AT TIME ZONE 'UTC' > (SELECT since FROM clock) AT TIME ZONE 'UTC'
           ORDER BY d.lease_until AT TIME ZONE 'UTC' LIMIT 1) IS NOT NULL AS expired,
       (SELECT concat(x.xmin, ':', x.xmax + x.more, ':', concat_ws(',',
                   (SELECT string_agg(i::text, ',') FROM pg_catalog.pg_snapshot_xip(x.now) i),
                   (SELECT string_agg((x.xmax + n)::text, ',') FROM generate_series(0, least(x.more, 1000) - 1) n)), CASE WHEN x.more > 1000 THEN ':cut' END)
        FROM (SELECT s.now, pg_catalog.pg_snapshot_xmin(s.now)::text AS xmin,
                     pg_catalog.pg_snapshot_xmax(s.now)::text::bigint AS xmax,
                     CASE WHEN rung.bell_is IS DISTINCT FROM 0  -- reads the next id after the bell
                          THEN greatest(0, pg_catalog.age(pg_catalog.pg_snapshot_xmax(s.now)::xid)) END AS more
              FROM (SELECT pg_catalog.pg_current_snapshot() AS now) s) x) AS snapshot,
       -- A sequence that was never used says 1.
       (SELECT last_value - (NOT is_called)::int FROM outbox.event_id) AS newest_id,
       rung.bell_was,
       EXISTS (SELECT FROM outbox.order_signal s
               WHERE s.at <= (SELECT now FROM clock) AND s.at > (SELECT now FROM clock) - interval '5 s'
               ORDER BY s.at LIMIT 1) AS signalled,
       extract(epoch FROM (SELECT now FROM clock))::float8 AS now, met.lanes, met.queues, met.fronts,
       rung.bell_is
FROM rung CROSS JOIN (
    SELECT array_agg(w.lane) AS lanes, array_agg(w.queue) AS queues,
           array_agg(extract(epoch FROM w.due_at)::float8) AS fronts
    FROM outbox.due_walk(%(lane_from)s::bigint, 9223372036854775807, %(lanes_max)s::int) w) met
