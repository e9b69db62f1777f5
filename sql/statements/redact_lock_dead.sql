-- Locks dead letters in order of id.
--
-- deliveries uuid[]
-- A row each: id
SELECT d.id FROM outbox.dead_letter d WHERE d.id = ANY (%(deliveries)s::uuid[]) ORDER BY d.id FOR UPDATE
