-- The ids of artifacts.
--
-- org_id, subject text or null, ids uuid[] or null
-- A row each: id
SELECT a.id FROM outbox.artifact a
WHERE (%(org_id)s::text IS NULL OR a.org_id = %(org_id)s::text)
  AND (%(subject)s::text IS NULL OR a.subject = %(subject)s::text)
  AND (%(ids)s::uuid[] IS NULL OR a.id = ANY (%(ids)s::uuid[]))
ORDER BY a.id
