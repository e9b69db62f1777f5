-- Puts the tombstone in place of some events' contents, in every slot: a carried event lies in two.
--
-- ids bigint[]
UPDATE outbox.event e SET payload = outbox.tombstone(), headers = NULL, subject = NULL, ordering_key = NULL
WHERE e.slot = ANY ('{0,1,2,3,4,5,6,7}') AND e.id = ANY (%(ids)s::bigint[])
