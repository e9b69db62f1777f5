-- What is pending, in flight and dead, at a cost that does not grow with it: each count ends at
-- `count_max` and is then an estimate from the statistics of the index that holds those rows.
--
-- count_max int
-- One row: pending, scheduled, leased, held, dead (bigint), the five estimates (bigint),
-- oldest_pending_s, last_poll_s (float or null), relays, workers (bigint: alive in the last 15 s)
WITH counted AS MATERIALIZED (
    SELECT (SELECT count(*) FROM (SELECT FROM outbox.pending LIMIT %(count_max)s::int + 1) x) AS pending,
           (SELECT count(*) FROM (
                SELECT FROM ((SELECT FROM outbox.delivery d WHERE d.state = 'scheduled' AND d.queue = 0
                              LIMIT %(count_max)s::int + 1)
                             UNION ALL
                             (SELECT FROM outbox.delivery d WHERE d.state = 'scheduled' AND d.queue = 1
                              LIMIT %(count_max)s::int + 1)
                             UNION ALL
                             (SELECT FROM outbox.delivery d WHERE d.state = 'scheduled' AND d.queue = 2
                              LIMIT %(count_max)s::int + 1)) y LIMIT %(count_max)s::int + 1) x) AS scheduled,
           (SELECT count(*) FROM (SELECT FROM outbox.delivery d WHERE d.state = 'leased'
                                  LIMIT %(count_max)s::int + 1) x) AS leased,
           (SELECT count(*) FROM (SELECT FROM outbox.delivery d WHERE d.state = 'held'
                                  LIMIT %(count_max)s::int + 1) x) AS held,
           (SELECT count(*) FROM (SELECT FROM outbox.dead_letter LIMIT %(count_max)s::int + 1) x) AS dead
)
SELECT c.pending, c.scheduled, c.leased, c.held, c.dead,
       (SELECT sum(r.reltuples)::bigint FROM pg_catalog.pg_class r
        WHERE r.oid = 'outbox.pending_pkey'::regclass) AS pending_estimate,
       (SELECT sum(r.reltuples)::bigint FROM pg_catalog.pg_class r
        WHERE r.oid = 'outbox.delivery_due'::regclass) AS scheduled_estimate,
       (SELECT sum(r.reltuples)::bigint FROM pg_catalog.pg_class r
        WHERE r.oid = 'outbox.delivery_lease'::regclass) AS leased_estimate,
       (SELECT sum(r.reltuples)::bigint FROM pg_catalog.pg_class r
        WHERE r.oid = 'outbox.delivery_held'::regclass) AS held_estimate,
       (SELECT sum(r.reltuples)::bigint FROM pg_catalog.pg_class r
        WHERE r.oid = 'outbox.dead_letter_pkey'::regclass) AS dead_estimate,
       (SELECT extract(epoch FROM clock_timestamp() - e.created_at)::float8
        FROM (SELECT p.id, p.slot FROM outbox.pending p ORDER BY p.id LIMIT 1) p
        JOIN outbox.event e ON e.slot = p.slot AND e.id = p.id) AS oldest_pending_s,
       (SELECT extract(epoch FROM clock_timestamp() - max(n.polled_at))::float8
        FROM outbox.node n WHERE n.kind = 'relay') AS last_poll_s,
       (SELECT count(*) FROM outbox.node n
        WHERE n.kind = 'relay' AND n.pid <> 0 AND n.polled_at > clock_timestamp() - interval '15 s') AS relays,
       (SELECT count(*) FROM outbox.node n
        WHERE n.kind = 'worker' AND n.pid <> 0 AND n.polled_at > clock_timestamp() - interval '15 s') AS workers
FROM counted c
