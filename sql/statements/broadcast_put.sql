-- Writes messages into realtime.messages under ids of ours, in the transaction that settles them.
--
-- ids uuid[], topics text[], events text[], payloads text[] (JSON), privates boolean[]: one of each a message
INSERT INTO realtime.messages (id, topic, extension, payload, event, private, inserted_at, updated_at)
SELECT m.id, m.topic, 'broadcast', m.payload::jsonb, m.event, m.private, (now() AT TIME ZONE 'UTC'), (now() AT TIME ZONE 'UTC')
FROM unnest(%(ids)s::uuid[], %(topics)s::text[], %(events)s::text[], %(payloads)s::text[], %(privates)s::boolean[])
    WITH ORDINALITY AS m (id, topic, event, payload, private, n)
ORDER BY m.n
