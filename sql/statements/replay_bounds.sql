-- Where a replay begins and ends: behind the last event before a time range, and at the last event
-- of it. What is not committed yet is not of the past.
--
-- since, until timestamptz or null, events bigint[] or null: only these
-- One row: position, ceiling (bigint; equal where there is nothing)
SELECT coalesce(min(low.id) - 1, 0) AS position, coalesce(max(high.id), 0) AS ceiling
FROM generate_series(0, 7) AS ring (slot) CROSS JOIN LATERAL (
    SELECT e.id FROM outbox.event e
    WHERE e.slot = ring.slot
      AND (%(since)s::timestamptz IS NULL OR e.created_at >= %(since)s::timestamptz)
      AND (%(until)s::timestamptz IS NULL OR e.created_at < %(until)s::timestamptz)
      AND (%(events)s::bigint[] IS NULL OR e.id = ANY (%(events)s::bigint[]))
    ORDER BY e.id LIMIT 1) low
CROSS JOIN LATERAL (
    SELECT e.id FROM outbox.event e
    WHERE e.slot = ring.slot
      AND (%(since)s::timestamptz IS NULL OR e.created_at >= %(since)s::timestamptz)
      AND (%(until)s::timestamptz IS NULL OR e.created_at < %(until)s::timestamptz)
      AND (%(events)s::bigint[] IS NULL OR e.id = ANY (%(events)s::bigint[]))
    ORDER BY e.id DESC LIMIT 1) high
