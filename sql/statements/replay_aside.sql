-- What a count over a range of events must treat apart: those whose contents are redacted, and
-- those that retention carries at this moment, which stand in two slots.
--
-- position, ceiling bigint: only position < event id <= ceiling
-- One row: redacted (bigint[]), twice (bigint[]), old_slots (smallint[]: where the older copies are)
WITH carried AS (
    SELECT DISTINCT j.event_id FROM outbox.journal j
    WHERE j.fact = 'carried' AND j.event_id > %(position)s::bigint AND j.event_id <= %(ceiling)s::bigint
),
copies AS MATERIALIZED (
    SELECT e.id, array_agg(e.slot ORDER BY ((SELECT last_value FROM outbox.ring_slot)::int - e.slot + 8) %% 8) AS slots
    FROM carried c JOIN outbox.event e ON e.id = c.event_id
    GROUP BY e.id HAVING count(*) > 1
)
SELECT (SELECT coalesce(array_agg(DISTINCT e.id), '{}') FROM outbox.event e
        WHERE e.id > %(position)s::bigint AND e.id <= %(ceiling)s::bigint
          -- Only a small payload can be the tombstone; a large one is not fetched.
          AND CASE WHEN pg_column_size(e.payload) < 64 THEN e.payload::text = outbox.tombstone()::text
                   ELSE false END) AS redacted,
       (SELECT coalesce(array_agg(c.id), '{}') FROM copies c) AS twice,
       (SELECT coalesce(array_agg(DISTINCT o.slot), '{}') FROM copies c, unnest(c.slots[2:]) o (slot)) AS old_slots
