-- Schedules whose tick has come.
--
-- now      timestamptz or null
-- rows_max int
-- A row each: name, cron, timezone, missed, next_at, now
SELECT s.name, s.cron, s.timezone, s.missed, s.next_at, clock.now
FROM (SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now) clock CROSS JOIN LATERAL (
    SELECT s.* FROM outbox.schedule s WHERE s.state = 'active' AND s.next_at <= clock.now
    ORDER BY s.next_at LIMIT %(rows_max)s::int) s
