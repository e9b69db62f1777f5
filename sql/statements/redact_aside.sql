-- Erases what stands beside deliveries: what their attempts told, and the keys that their events used.
--
-- ids bigint[]: the events, deliveries uuid[]: theirs
WITH told AS (
    DELETE FROM outbox.progress p WHERE p.delivery_id = ANY (%(deliveries)s::uuid[])
)
DELETE FROM outbox.key_use k WHERE k.event_id = ANY (%(ids)s::bigint[])
