-- Where the next slice of the log ends, so that it holds a bounded number of events and facts
-- whatever gaps and crowds the ids have. One event is never split.
--
-- after     bigint: where the slice before ended
-- rows_max  int: events and facts of one slot, pending events
-- One row: upto (bigint; null: the rest is less than that), ceiling (bigint: ids end here)
SELECT least((
    SELECT min(b.id) FROM generate_series(0, 7) AS ring (slot) CROSS JOIN LATERAL (
        (SELECT j.event_id AS id FROM outbox.journal j
         WHERE j.slot = ring.slot::smallint AND j.event_id > %(after)s::bigint
         ORDER BY j.event_id OFFSET %(rows_max)s::int - 1 LIMIT 1)
        UNION ALL
        (SELECT e.id FROM outbox.event e
         WHERE e.slot = ring.slot::smallint AND e.id > %(after)s::bigint
         ORDER BY e.id OFFSET %(rows_max)s::int - 1 LIMIT 1)
) b),
    (SELECT p.id FROM outbox.pending p WHERE p.id > %(after)s::bigint
     ORDER BY p.id OFFSET %(rows_max)s::int - 1 LIMIT 1)) AS upto,
    (SELECT last_value FROM outbox.event_id) AS ceiling
