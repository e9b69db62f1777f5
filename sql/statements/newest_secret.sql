-- The signing key stored last: whoever seals the next one must be able to open it.
--
-- One row, none if there is no key: org_id, id, sealed
SELECT n.org_id, s.id, s.sealed
FROM outbox.secret s JOIN outbox.endpoint n ON n.id = s.endpoint_id
ORDER BY s.id DESC LIMIT 1
