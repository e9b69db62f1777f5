-- Emits ticks of a schedule and moves it on. Fenced: where another daemon moved it on, or somebody
-- paused or removed it, nothing is done. Whoever comes second waits for the row and finds it moved.
--
-- name     text
-- expected timestamptz: the tick at which it stood
-- ticks    timestamptz[]: to emit, in order; next_at timestamptz: the tick after them
-- skipped  int: ticks that are passed over
-- A row each: event id
WITH own AS (
    UPDATE outbox.schedule s
    SET next_at = %(next_at)s::timestamptz, skipped = s.skipped + %(skipped)s::int,
        emitted = s.emitted + cardinality(%(ticks)s::timestamptz[]),
        last_at = coalesce((%(ticks)s::timestamptz[])[cardinality(%(ticks)s::timestamptz[])], s.last_at)
    WHERE s.name = %(name)s::text AND s.state = 'active' AND s.next_at = %(expected)s::timestamptz
    RETURNING s.name, s.type, s.org_id, s.timezone, s.payload
)
SELECT outbox.emit(
    type => o.type,
    payload => json_build_object(
        'schedule', o.name,
        'tick', to_char(t.tick AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
        'timezone', o.timezone,
        'data', o.payload),
    org_id => o.org_id, subject => 'schedules/' || o.name) AS id
FROM own o CROSS JOIN LATERAL unnest(%(ticks)s::timestamptz[]) WITH ORDINALITY AS t (tick, n)
ORDER BY t.n
