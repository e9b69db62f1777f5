-- Events that told of the documents of some events.
--
-- ids bigint[]
-- A row each: id, of those that are still in the log
SELECT DISTINCT e.id FROM outbox.artifact a CROSS JOIN LATERAL unnest(a.announced) AS told (id)
JOIN outbox.event e ON e.slot = ANY ('{0,1,2,3,4,5,6,7}') AND e.id = told.id
WHERE a.event_id = ANY (%(ids)s::bigint[])
