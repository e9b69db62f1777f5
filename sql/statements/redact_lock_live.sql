-- Locks live deliveries in order of id, leased ones too: whoever settles one is waited for.
--
-- deliveries uuid[]
-- A row each: id
SELECT d.id FROM outbox.delivery d WHERE d.id = ANY (%(deliveries)s::uuid[]) ORDER BY d.id FOR UPDATE
