-- A message as it was frozen.
--
-- id uuid, org_id text or null: only where it is this organization's
-- One row or none: mime
SELECT e.mime FROM outbox.email e
WHERE e.slot = ANY ('{0,1,2,3,4,5,6,7}') AND e.delivery_id = %(id)s::uuid
  AND (%(org_id)s::text IS NULL OR e.org_id = %(org_id)s::text)
