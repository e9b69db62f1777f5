-- Leases and starts broadcasts that are due, for those who cannot settle them in the same statement: over
-- http, by realtime.send, and one by one after a refusal. settle.sql ends them.
-- What the claim sees and this statement does not, as it was committed in between, is left for the next one.
--
-- now       timestamptz or null
-- transport text: sql or http
-- rows_max  int
-- lanes, queues, fronts: where to look, see broadcast_due.sql
-- token     bigint
-- lease_s   float8
-- A row each: id, attempt, retry, age_left_s, topic, event, payload (JSON text), private, passed (boolean: a
-- newer one of its subject stands for it), unfit (why it cannot be a message, or null)
WITH clock AS MATERIALIZED (
    SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now,
           (SELECT last_value FROM outbox.ring_slot)::smallint AS slot
),
claimed AS MATERIALIZED (
    SELECT j.* FROM clock, outbox.broadcast_claim(clock.now, %(transport)s::text, %(rows_max)s::int,
        %(lanes)s::bigint[], %(queues)s::int[], %(fronts)s::float8[]) j
),
leased AS (
    UPDATE outbox.delivery d
    SET state = 'leased', token = %(token)s::bigint, started_at = (SELECT now FROM clock),
        lease_until = (SELECT now FROM clock) + make_interval(secs => %(lease_s)s::float8)
    WHERE d.id = ANY (ARRAY(SELECT c.id FROM claimed c))
    RETURNING d.id
)
SELECT j.id, j.attempts + 1 AS attempt, j.retry, extract(epoch FROM j.age_limit_at - clock.now)::float8 AS age_left_s,
       j.topic, j.event, j.message::text AS payload, j.private, j.passed, j.unfit
FROM clock, claimed j WHERE j.id IN (SELECT l.id FROM leased l) ORDER BY j.event_id
