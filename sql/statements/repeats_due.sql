-- Whether a schedule's tick has come, and whether a replay runs: the one look of a daemon where neither is so.
--
-- now timestamptz or null
-- One row: schedules, replays (boolean)
SELECT EXISTS (SELECT FROM outbox.schedule s
               WHERE s.state = 'active' AND s.next_at <= coalesce(%(now)s::timestamptz, clock_timestamp())
               ORDER BY s.next_at LIMIT 1) AS schedules,
       EXISTS (SELECT FROM outbox.replay r WHERE r.state = 'running' ORDER BY r.moved_at LIMIT 1) AS replays
