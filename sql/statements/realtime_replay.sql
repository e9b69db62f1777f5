-- The newest private messages of a topic since a moment, oldest first.
--
-- topic text, since_ms bigint, limit int
-- Rows: id (text), topic, event, private, payload (text), binary_payload
SELECT x.id::text, x.topic, x.event, x.private, x.payload::text, x.binary_payload
FROM (SELECT m.* FROM realtime.messages m
      WHERE m.topic = %(topic)s AND m.private AND m.extension = 'broadcast' AND m.event IS NOT NULL
        AND m.payload IS NOT NULL
        AND m.inserted_at >= to_timestamp(%(since_ms)s::bigint / 1000.0) AT TIME ZONE 'UTC'
        AND m.inserted_at < (now() + interval '1 minute') AT TIME ZONE 'UTC'
      ORDER BY m.inserted_at DESC, m.id LIMIT %(limit)s::int) x
ORDER BY x.inserted_at, x.id
