-- Warns of endpoints that accept nothing for a part of the time after which they are disabled, and
-- disables them when it has passed: measured from the first failure to the last one, so that an
-- endpoint without traffic is not judged. Each warning is an event of its organization. Runs under
-- the lock of configuration.
--
-- now    timestamptz or null
-- A row each: endpoint, org_id, percent (100 where it is disabled)
WITH clock AS MATERIALIZED (SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now),
own AS MATERIALIZED (
    SELECT h.*, n.org_id, n.disable_after FROM (
        SELECT * FROM outbox.lane_health h WHERE h.failed_at > h.failing_since ORDER BY h.lane FOR UPDATE) h
    JOIN outbox.endpoint n ON n.id = h.lane WHERE n.state = 'active' AND n.disable_after IS NOT NULL
),
judged AS MATERIALIZED (
    SELECT o.*, (SELECT max(l.percent) FROM (VALUES (50), (70), (90), (100)) l (percent)
                 WHERE o.failed_at - o.failing_since >= o.disable_after * l.percent / 100) AS percent
    FROM own o
),
due AS MATERIALIZED (SELECT j.* FROM judged j WHERE j.percent > j.warned_percent),
noted AS (
    UPDATE outbox.lane_health h SET warned_percent = d.percent FROM due d WHERE h.lane = d.lane
),
disabled AS (
    UPDATE outbox.endpoint n SET state = 'disabled', state_reason = 'failing', revision = n.revision + 1
    FROM due d WHERE n.id = d.lane AND d.percent = 100
)
SELECT d.lane AS endpoint, d.org_id, d.percent,
       outbox.announce(
           CASE WHEN d.percent = 100 THEN 'outbox.endpoint.disabled' ELSE 'outbox.endpoint.failing' END,
           d.org_id, concat('endpoints/', d.lane), json_build_object(
               'endpoint', d.lane, 'reason', 'failing', 'percent', d.percent, 'failures', d.failures,
               'failing_since', d.failing_since, 'disables_at', d.failing_since + d.disable_after)) AS event
FROM due d ORDER BY d.lane
