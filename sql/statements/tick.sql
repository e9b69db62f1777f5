-- One cheap look at everything a relay waits for.
--
-- floor bigint
-- bell  int or null: 1 says that a relay is awake, 2 asks capture to ring
-- scheduled boolean: look for deliveries with a due time, and for leases that ran out, as well
-- since_s float8 or null: of leases, only those that ran out so lately; null means all
-- One row: pending (boolean: an unrouted event above the floor), expired (boolean: a lease ran
-- out; false where it was not asked), snapshot (text, xmin:xmax:xip,...: transactions in progress), newest_id (bigint: the last
-- event id drawn), bell_was (bigint: before this statement), signalled (boolean: a key of an ordered
-- subscription may have its next turn), scheduled (boolean: there is one; true where it was not asked),
-- bell_is (bigint, or null)
--
-- PostgreSQL's own snapshot ends at the latest transaction that has ended: whoever runs with a later
-- id stands in no list. Here it reaches up to the next id, read after the bell was set: whoever saw
-- the bell before had an id by then. The list is cut at a thousand: the rest are subtransactions.
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
       %(scheduled)s::boolean AND (
           SELECT true FROM outbox.delivery d
           WHERE d.state = 'leased' AND d.lease_until AT TIME ZONE 'UTC' <= (SELECT now FROM clock) AT TIME ZONE 'UTC'
             AND d.lease_until AT TIME ZONE 'UTC' > (SELECT since FROM clock) AT TIME ZONE 'UTC'
           ORDER BY d.lease_until AT TIME ZONE 'UTC' LIMIT 1) IS NOT NULL AS expired,
       (SELECT concat(x.xmin, ':', x.xmax + x.more, ':', concat_ws(',',
                   (SELECT string_agg(i::text, ',') FROM pg_catalog.pg_snapshot_xip(x.now) i),
                   (SELECT string_agg((x.xmax + n)::text, ',') FROM generate_series(0, least(x.more, 1000) - 1) n)))
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
       CASE WHEN %(scheduled)s::boolean THEN EXISTS (
           SELECT FROM (VALUES (0), (1), (2)) q (queue) CROSS JOIN LATERAL (
               SELECT FROM outbox.delivery d WHERE d.state = 'scheduled' AND d.queue = q.queue AND d.lane > 0
               ORDER BY d.lane, d.due_at LIMIT 1) x) ELSE true END AS scheduled,
       rung.bell_is
FROM rung
