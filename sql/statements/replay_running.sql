-- The replays that run, the one that moved longest ago first. One that ran in a database before
-- it was adopted as a copy is paused: what it would send, its original sends.
--
-- A row each: id, mode, org_id, filter (jsonb), rate_per_s, position, ceiling
WITH copied AS (
    UPDATE outbox.replay r SET state = 'paused'
    WHERE r.state = 'running' AND r.moved_at < (SELECT max(i.at) FROM outbox.installation i)
)
SELECT r.id, r.mode, r.org_id, r.filter, r.rate_per_s, r.position, r.ceiling
FROM outbox.replay r
WHERE r.state = 'running' AND r.moved_at >= (SELECT max(i.at) FROM outbox.installation i)
ORDER BY r.moved_at LIMIT 100
