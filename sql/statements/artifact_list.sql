-- Artifacts, newest event first (an id begins with the time of its event).
--
-- org_id, subject, sha256 text or null, ids uuid[] or null, event_id bigint or null, before uuid or null: ids below, rows_max int
-- A row each: a JSON object
SELECT jsonb_build_object(
    'id', a.id, 'sha256', a.sha256, 'size', a.size, 'pages', a.pages, 'filename', a.filename,
    'content_type', a.content_type, 'org', a.org_id, 'subject', a.subject, 'event', a.event_id,
    'delivery', a.delivery_id, 'subscription', a.subscription_id, 'engine', a.engine,
    'engine_version', a.engine_version, 'template', a.template, 'template_version', a.template_version,
    'announced', a.announced, 'created_at', a.created_at)
FROM outbox.artifact a
WHERE (%(org_id)s::text IS NULL OR a.org_id = %(org_id)s::text)
  AND (%(subject)s::text IS NULL OR a.subject = %(subject)s::text)
  AND (%(sha256)s::text IS NULL OR a.sha256 = %(sha256)s::text)
  AND (%(ids)s::uuid[] IS NULL OR a.id = ANY (%(ids)s::uuid[]))
  AND (%(event_id)s::bigint IS NULL OR a.event_id = %(event_id)s::bigint)
  AND (%(before)s::uuid IS NULL OR a.id < %(before)s::uuid)
ORDER BY a.id DESC LIMIT %(rows_max)s::int
