-- Removes a schedule.
--
-- name text
-- One row, none if there is no such schedule: name
DELETE FROM outbox.schedule s WHERE s.name = %(name)s::text RETURNING s.name
