-- The ring of slots as it is.
--
-- now  timestamptz or null
-- One row: now, current (int), opened (timestamptz[], by slot; null for an empty slot)
SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now,
       (SELECT last_value FROM outbox.ring_slot)::int AS current,
       (SELECT array_agg(r.opened_at ORDER BY r.slot) FROM outbox.ring r) AS opened
