-- Which messages of this transaction are in realtime.messages.
--
-- topics text[]
-- A row each: delivery (text)
SELECT m.payload ->> 'delivery' AS delivery FROM realtime.messages m
WHERE m.inserted_at = now()::timestamp AND m.topic = ANY (%(topics)s::text[]) AND m.extension = 'broadcast'
