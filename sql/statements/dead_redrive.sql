-- Gives dead letters a fresh budget of attempts, one batch in order of id: due now, the maximum
-- age counted from now. What may not be redriven is counted and stays. Rows are locked in order of
-- id; a letter that another session redrives at this moment is found gone.
--
-- ids uuid[] or null, org_id text or null, endpoint_id bigint or null (a lane), reason text or null,
-- since timestamptz or null
-- ignore_expiry boolean: redrive what is past its expiry too, then without one
-- dry_run boolean: count alone
-- after_id uuid: where the batch before ended, rows_max int
-- One row: looked (int), redriven, removed (its destination), expired (counts), last_id
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now, (SELECT last_value FROM outbox.ring_slot)::smallint AS slot
),
looked AS MATERIALIZED (
    SELECT d.id FROM outbox.dead_letter d
    WHERE d.id > %(after_id)s::uuid
      AND (%(ids)s::uuid[] IS NULL OR d.id = ANY (%(ids)s::uuid[]))
      AND (%(org_id)s::text IS NULL OR d.org_id = %(org_id)s::text)
      AND (%(endpoint_id)s::bigint IS NULL OR d.lane = %(endpoint_id)s::bigint)
      AND (%(reason)s::text IS NULL OR d.reason = %(reason)s::text)
      AND (%(since)s::timestamptz IS NULL OR d.died_at >= %(since)s::timestamptz)
    ORDER BY d.id LIMIT %(rows_max)s::int
),
own AS MATERIALIZED (
    SELECT d.*, s.max_age, CASE
               WHEN s.id IS NULL OR s.state = 'removed' OR n.state = 'removed' THEN 'removed'
               WHEN d.expires_at <= clock.now AND NOT %(ignore_expiry)s::boolean THEN 'expired'
               ELSE 'redriven' END AS fate
    FROM clock, outbox.dead_letter d JOIN looked k ON k.id = d.id
    LEFT JOIN outbox.subscription s ON s.id = d.subscription_id
    LEFT JOIN outbox.endpoint n ON n.id = s.endpoint_id
    ORDER BY d.id FOR UPDATE OF d
),
chosen AS MATERIALIZED (
    SELECT o.* FROM own o WHERE o.fate = 'redriven' AND NOT %(dry_run)s::boolean
),
gone AS (
    DELETE FROM outbox.dead_letter d USING chosen c WHERE d.id = c.id
),
born AS (
    INSERT INTO outbox.delivery (id, event_id, event_slot, subscription_id, revision, generation, lane, org_id,
        state, due_at, expires_at, age_limit_at, attempts, budget, expiries)
    SELECT c.id, c.event_id, c.event_slot, c.subscription_id, c.revision, c.generation, c.lane, c.org_id,
           'scheduled', clock.now, CASE WHEN c.expires_at > clock.now THEN c.expires_at END,
           clock.now + c.max_age, 0, c.budget + 1, 0
    FROM clock, chosen c
),
told AS (
    INSERT INTO outbox.journal (slot, at, fact, event_id, delivery_id, subscription_id, org_id, revision,
        budget, attempt, charged, reason, due_at)
    SELECT clock.slot, clock.now, 'redriven', c.event_id, c.id, c.subscription_id, c.org_id, c.revision,
           c.budget + 1, 0, false, c.reason, clock.now
    FROM clock, chosen c
)
SELECT (SELECT count(*) FROM looked)::int AS looked,
       count(*) FILTER (WHERE o.fate = 'redriven') AS redriven,
       count(*) FILTER (WHERE o.fate = 'removed') AS removed,
       count(*) FILTER (WHERE o.fate = 'expired') AS expired,
       (SELECT k.id FROM looked k ORDER BY k.id DESC LIMIT 1) AS last_id
FROM own o
