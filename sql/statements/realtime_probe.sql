-- The row that a client must see to join: of its topic, for each kind of message it asks for.
-- Written as the server, rolled back with everything else.
--
-- topic      text
-- extensions text[]: broadcast, presence
-- Rows: extension, id
INSERT INTO realtime.messages (id, topic, extension, inserted_at, updated_at)
SELECT pg_catalog.gen_random_uuid(), %(topic)s, e, now() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC'
FROM unnest(%(extensions)s::text[]) e
RETURNING extension, id
