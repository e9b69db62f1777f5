-- Notes how attempts went, a row a lane: what delivers is healthy and has no row. Opens the circuit
-- of a lane that was down with many attempts and for long, and moves its next probe away while it
-- stays down. Rows are locked in order of lane.
--
-- now         timestamptz or null
-- lanes       bigint[]
-- delivered   boolean[]: at least one attempt was accepted
-- failures    bigint[]: attempts that were not
-- down        bigint[]: of those, without an answer or with a server's error; 0 where something answered
-- open_failures int, open_after_s float8: how many and for how long until the circuit opens
-- probe_s_min, probe_s_max float8: the time between probes, doubling
-- A row each for circuits that opened or stay open: lane
WITH clock AS MATERIALIZED (SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now),
report AS MATERIALIZED (
    SELECT u.* FROM unnest(%(lanes)s::bigint[], %(delivered)s::boolean[], %(failures)s::bigint[], %(down)s::bigint[])
        AS u (lane, delivered, failures, down) ORDER BY u.lane
),
own AS MATERIALIZED (
    SELECT h.*, r.delivered, r.down FROM report r CROSS JOIN LATERAL (
        SELECT * FROM outbox.lane_health h WHERE h.lane = r.lane OFFSET 0 FOR UPDATE) h
),
healed AS (
    DELETE FROM outbox.lane_health h WHERE h.lane = ANY (ARRAY(SELECT o.lane FROM own o WHERE o.delivered))
),
-- What becomes of the circuit of a lane that is still down.
judged AS MATERIALIZED (
    SELECT o.lane, CASE
               WHEN o.probing THEN least(o.probe_gap * 2, make_interval(secs => %(probe_s_max)s::float8))
               WHEN o.probe_at IS NOT NULL THEN o.probe_gap
               WHEN o.down_failures + o.down >= %(open_failures)s::int
                    AND clock.now - o.down_since >= make_interval(secs => %(open_after_s)s::float8)
                    AND coalesce((SELECT n.circuit FROM outbox.endpoint n WHERE n.id = o.lane), true)
               THEN make_interval(secs => %(probe_s_min)s::float8) END AS gap
    FROM clock, own o WHERE NOT o.delivered AND o.down > 0
),
noted AS (
    INSERT INTO outbox.lane_health AS h (lane, failing_since, failed_at, failures, down_since, down_failures)
    SELECT r.lane, clock.now, clock.now, r.failures, CASE WHEN r.down > 0 THEN clock.now END, r.down
    FROM clock, report r WHERE NOT r.delivered AND r.failures > 0 ORDER BY r.lane
    ON CONFLICT (lane) DO UPDATE SET
        failed_at = excluded.failed_at,
        failures = h.failures + excluded.failures,
        down_since = CASE WHEN excluded.down_failures > 0 THEN coalesce(h.down_since, excluded.down_since) END,
        down_failures = CASE WHEN excluded.down_failures > 0 THEN h.down_failures + excluded.down_failures ELSE 0 END,
        probe_gap = (SELECT j.gap FROM judged j WHERE j.lane = h.lane),
        probe_at = CASE WHEN h.probing OR h.probe_at IS NULL
                        THEN excluded.failed_at + (SELECT j.gap FROM judged j WHERE j.lane = h.lane)
                        WHEN excluded.down_failures > 0 THEN h.probe_at END,
        probing = false
)
SELECT j.lane FROM judged j WHERE j.gap IS NOT NULL
