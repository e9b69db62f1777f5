-- The first event from an id on.
--
-- id bigint
-- One row, none if there is none: id, created_at
SELECT e.id, e.created_at FROM generate_series(0, 7) AS ring (slot) CROSS JOIN LATERAL (
    SELECT e.id, e.created_at FROM outbox.event e WHERE e.slot = ring.slot AND e.id >= %(id)s::bigint
    ORDER BY e.id LIMIT 1) e
ORDER BY e.id LIMIT 1
