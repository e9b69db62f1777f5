-- Removes dead letters of deliveries that are not dead.
--
-- ids uuid[]
DELETE FROM outbox.dead_letter d WHERE d.id = ANY (%(ids)s::uuid[])
