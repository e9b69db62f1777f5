-- Locks dead letters, in order of id as everywhere.
--
-- ids uuid[]
SELECT FROM outbox.dead_letter d WHERE d.id = ANY (%(ids)s::uuid[]) ORDER BY d.id FOR UPDATE
