-- Is anything pending, leased or due at this moment, or does a replay run?
--
-- One row: owed (boolean)
-- Due rows are looked for lane by lane: deliveries scheduled far ahead cost nothing.
WITH RECURSIVE scan (queue, lane, due_at) AS (
    SELECT q.queue, first.lane, first.due_at FROM (VALUES (0), (1), (2)) q (queue) CROSS JOIN LATERAL (
        SELECT d.lane, d.due_at FROM outbox.delivery d WHERE d.state = 'scheduled' AND d.queue = q.queue
        ORDER BY d.lane, d.due_at LIMIT 1) first
    UNION ALL
    SELECT s.queue, next.lane, next.due_at FROM scan s CROSS JOIN LATERAL (
        SELECT d.lane, d.due_at FROM outbox.delivery d
        WHERE d.state = 'scheduled' AND d.queue = s.queue AND d.lane > s.lane
        ORDER BY d.lane, d.due_at LIMIT 1) next
)
SELECT EXISTS (SELECT FROM outbox.pending)
    OR EXISTS (SELECT FROM outbox.replay r WHERE r.state = 'running')
    OR EXISTS (SELECT FROM outbox.order_signal)
    OR EXISTS (SELECT FROM outbox.delivery d WHERE d.state = 'leased')
    OR EXISTS (SELECT FROM scan s WHERE s.due_at <= clock_timestamp()) AS owed
