-- Takes an address off an organization's suppression list.
--
-- org_id text ('' for system-wide events), address text (lower case)
-- A row if it was there
DELETE FROM outbox.suppression s WHERE s.org_id = %(org_id)s::text AND s.address = %(address)s::text
RETURNING s.address
