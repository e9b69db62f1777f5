-- The newest artifact of an organization with this content, if it has one.
--
-- org_id text or null: no organization; sha256 text
-- One row: a JSON object
SELECT jsonb_build_object('id', a.id, 'event', a.event_id, 'delivery', a.delivery_id, 'filename', a.filename)
FROM outbox.artifact a
WHERE a.org_id IS NOT DISTINCT FROM %(org_id)s::text AND a.sha256 = %(sha256)s::text
ORDER BY a.id DESC LIMIT 1
