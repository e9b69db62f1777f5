-- A daemon or worker says that it is alive, and forgets those that were silent for a day.
--
-- id   uuid
-- kind text: relay or worker
-- host text
-- pid  int
-- level int: the schema level of the program
WITH silent AS (
    DELETE FROM outbox.node n WHERE n.polled_at < clock_timestamp() - interval '1 day' AND n.id <> %(id)s::uuid
)
INSERT INTO outbox.node (id, kind, host, pid, level, started_at, polled_at)
VALUES (%(id)s::uuid, %(kind)s, %(host)s, %(pid)s, %(level)s::int, clock_timestamp(), clock_timestamp())
ON CONFLICT (id) DO UPDATE SET polled_at = clock_timestamp()
