-- Committed messages by id, in the order given: what the feed has announced. An id may stand in the
-- table more than once (its key holds the time, too): then the newest is meant.
--
-- ids uuid[]
-- Rows: id (text), topic, event, private, payload (text), binary_payload
SELECT m.id::text, m.topic, m.event, m.private, m.payload::text, m.binary_payload
FROM unnest(%(ids)s::uuid[]) WITH ORDINALITY AS wanted (id, number),
LATERAL (SELECT n.* FROM realtime.messages n WHERE n.id = wanted.id ORDER BY n.inserted_at DESC LIMIT 1) m
WHERE m.extension = 'broadcast'
ORDER BY wanted.number
