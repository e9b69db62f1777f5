-- Sends messages by realtime.send, in the transaction that settles them. It never raises: what became of
-- each shows in the warnings and in broadcast_check.sql.
--
-- topics text[], events text[], payloads text[] (JSON), privates boolean[]: one of each a message
SELECT realtime.send(m.payload::jsonb, m.event, m.topic, m.private)
FROM unnest(%(topics)s::text[], %(events)s::text[], %(payloads)s::text[], %(privates)s::boolean[])
    AS m (topic, event, payload, private)
