-- Suppressed addresses in order of organization and address.
--
-- org_id text or null; after_org, after text or null: where the page before ended; rows_max int
-- A row each: a JSON object
SELECT json_build_object('org', nullif(s.org_id, ''), 'address', s.address, 'reason', s.reason,
                         'created_at', s.created_at) AS suppression
FROM outbox.suppression s
WHERE (%(org_id)s::text IS NULL OR s.org_id = %(org_id)s::text)
  AND (%(after)s::text IS NULL OR (s.org_id, s.address) > (%(after_org)s::text, %(after)s::text))
ORDER BY s.org_id, s.address
LIMIT %(rows_max)s::int
