-- Locks live deliveries, in order of id as everywhere. Dead letters follow (rebuild_lock_dead.sql).
--
-- ids uuid[]
SELECT FROM outbox.delivery d WHERE d.id = ANY (%(ids)s::uuid[]) ORDER BY d.id FOR UPDATE
