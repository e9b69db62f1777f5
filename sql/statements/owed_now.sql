-- Is anything pending, leased or due at this moment?
--
-- One row: owed (boolean)
-- Due rows are looked for lane by lane: deliveries scheduled far ahead cost nothing.
WITH RECURSIVE fresh(lane, due_at) AS (
    (SELECT d.lane, d.due_at FROM outbox.delivery d
     WHERE d.state = 'scheduled' AND d.attempts = 0 ORDER BY d.lane, d.due_at LIMIT 1)
    UNION ALL
    SELECT n.lane, n.due_at FROM fresh, LATERAL (
        SELECT d.lane, d.due_at FROM outbox.delivery d
        WHERE d.state = 'scheduled' AND d.attempts = 0 AND d.lane > fresh.lane
        ORDER BY d.lane, d.due_at LIMIT 1) n
),
retry(lane, due_at) AS (
    (SELECT d.lane, d.due_at FROM outbox.delivery d
     WHERE d.state = 'scheduled' AND d.attempts > 0 ORDER BY d.lane, d.due_at LIMIT 1)
    UNION ALL
    SELECT n.lane, n.due_at FROM retry, LATERAL (
        SELECT d.lane, d.due_at FROM outbox.delivery d
        WHERE d.state = 'scheduled' AND d.attempts > 0 AND d.lane > retry.lane
        ORDER BY d.lane, d.due_at LIMIT 1) n
)
SELECT EXISTS (SELECT FROM outbox.pending)
    OR EXISTS (SELECT FROM outbox.delivery d WHERE d.state = 'leased')
    OR EXISTS (SELECT FROM fresh WHERE due_at <= clock_timestamp())
    OR EXISTS (SELECT FROM retry WHERE due_at <= clock_timestamp()) AS owed
