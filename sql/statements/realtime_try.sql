-- May this role send? Rolled back. One row if it may; the role must really be in force.
--
-- topic, extension, role: text
INSERT INTO realtime.messages (id, topic, extension, inserted_at, updated_at)
SELECT pg_catalog.gen_random_uuid(), %(topic)s, %(extension)s, now() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC'
WHERE current_user = %(role)s
