-- Puts an address on an organization's suppression list; one that is there stays as it is.
--
-- org_id text ('' for system-wide events), address text (lower case), reason text
-- A row if it is new
INSERT INTO outbox.suppression (org_id, address, reason)
VALUES (%(org_id)s::text, %(address)s::text, %(reason)s::text)
ON CONFLICT DO NOTHING
RETURNING address
