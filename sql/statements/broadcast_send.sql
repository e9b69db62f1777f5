-- Broadcasts what is due: the messages go into realtime.messages under the ids of their deliveries, in
-- the transaction that settles those. What cannot be a message is a dead letter. Whatever the table
-- refuses fails the statement as a whole: the caller then leases the batch and halves it.
--
-- now       timestamptz or null
-- rows_max  int
-- lanes, queues, fronts: where to look, see broadcast_due.sql
-- One row: sent, coalesced, dead, late (counts)
--
-- The claim sees what was committed while this statement had begun already, the statement itself does not:
-- such deliveries are late, and left for the next one. They would be sent and stay.
WITH clock AS MATERIALIZED (
    SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now,
           (SELECT last_value FROM outbox.ring_slot)::smallint AS slot
),
claimed AS MATERIALIZED (
    SELECT j.* FROM clock, outbox.broadcast_claim(clock.now, 'sql', %(rows_max)s::int,
        %(lanes)s::bigint[], %(queues)s::int[], %(fronts)s::float8[]) j
),
gone AS (
    DELETE FROM outbox.delivery d WHERE d.id = ANY (ARRAY(SELECT c.id FROM claimed c)) RETURNING d.id
),
judged AS MATERIALIZED (
    SELECT c.* FROM claimed c WHERE c.id IN (SELECT g.id FROM gone g)
),
sent AS (
    INSERT INTO realtime.messages (id, topic, extension, payload, event, private, inserted_at, updated_at)
    SELECT j.id, j.topic, 'broadcast', j.message, j.event, j.private,
           (now() AT TIME ZONE 'UTC'), (now() AT TIME ZONE 'UTC')
    FROM judged j WHERE j.unfit IS NULL AND NOT j.passed ORDER BY j.event_id
),
buried AS (
    INSERT INTO outbox.dead_letter (id, event_id, event_slot, subscription_id, revision, generation, lane, org_id,
        order_key, attempts, budget, expiries, expires_at, reason, died_at)
    SELECT j.id, j.event_id, j.event_slot, j.subscription_id, j.revision, j.generation, j.lane, j.org_id,
           j.order_key, j.attempts + 1, j.budget, j.expiries, j.expires_at, j.unfit, clock.now
    FROM clock, judged j WHERE j.unfit IS NOT NULL AND NOT j.passed
),
told AS (
    INSERT INTO outbox.journal (slot, at, fact, event_id, delivery_id, subscription_id, org_id, revision,
        budget, attempt, charged, reason)
    SELECT clock.slot, clock.now, CASE WHEN j.passed OR j.unfit IS NULL THEN 'delivered' ELSE 'dead' END,
           j.event_id, j.id, j.subscription_id, j.org_id, j.revision, j.budget, j.attempts + 1, true,
           CASE WHEN j.passed THEN 'coalesced' ELSE coalesce(j.unfit, 'broadcast') END
    FROM clock, judged j
)
SELECT count(*) FILTER (WHERE j.unfit IS NULL AND NOT j.passed) AS sent,
       count(*) FILTER (WHERE j.passed) AS coalesced,
       count(*) FILTER (WHERE j.unfit IS NOT NULL AND NOT j.passed) AS dead,
       (SELECT count(*) FROM claimed) - count(*) AS late
FROM judged j
