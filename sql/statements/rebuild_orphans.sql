-- Rows that no fact speaks of, by id: what lives or is dead was routed, carried, or replayed.
--
-- after_id  uuid: where the batch before ended
-- rows_max  int: rows to look at, of each table
-- A row each: id, event_id, orphan (boolean)
SELECT d.id, d.event_id,
       -- Not EXISTS: that could be answered by hashing the whole journal.
       coalesce((SELECT false FROM outbox.journal j WHERE j.delivery_id = d.id LIMIT 1),
                (SELECT false FROM outbox.journal j
                 WHERE j.event_id = d.event_id AND j.fact = 'routed'
                   AND j.detail @> jsonb_build_array(jsonb_build_object('delivery', d.id)) LIMIT 1),
                true) AS orphan
FROM (
    (SELECT d.id, d.event_id FROM outbox.delivery d
     WHERE d.id > %(after_id)s::uuid ORDER BY d.id LIMIT %(rows_max)s::int)
    UNION
    (SELECT d.id, d.event_id FROM outbox.dead_letter d
     WHERE d.id > %(after_id)s::uuid ORDER BY d.id LIMIT %(rows_max)s::int)) d
ORDER BY d.id LIMIT %(rows_max)s::int
