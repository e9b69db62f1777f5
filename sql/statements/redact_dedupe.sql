-- Forgets the deduplication keys of some events.
--
-- ids bigint[]
DELETE FROM outbox.dedupe d WHERE d.event_id = ANY (%(ids)s::bigint[])
