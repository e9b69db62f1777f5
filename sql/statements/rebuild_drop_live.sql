-- Removes rows of deliveries that do not live. Never a leased one: it is in use.
--
-- ids uuid[]
DELETE FROM outbox.delivery d WHERE d.id = ANY (%(ids)s::uuid[]) AND d.state <> 'leased'
