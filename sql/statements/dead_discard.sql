-- Gives dead letters up, one batch in order of id. Rows are locked in order of id.
--
-- ids uuid[] or null, org_id text or null, endpoint_id bigint or null (a lane), reason text or null,
-- since timestamptz or null
-- dry_run boolean: count alone
-- why text: what the journal keeps
-- after_id uuid: where the batch before ended, rows_max int
-- One row: looked (int), discarded (count), last_id
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
    SELECT d.* FROM outbox.dead_letter d JOIN looked k ON k.id = d.id
    ORDER BY d.id FOR UPDATE OF d
),
gone AS (
    DELETE FROM outbox.dead_letter d USING own o WHERE d.id = o.id AND NOT %(dry_run)s::boolean
),
told AS (
    INSERT INTO outbox.journal (slot, at, fact, event_id, delivery_id, subscription_id, org_id, revision,
        budget, attempt, charged, reason)
    SELECT clock.slot, clock.now, 'discarded', o.event_id, o.id, o.subscription_id, o.org_id, o.revision,
           o.budget, o.attempts, false, %(why)s::text
    FROM clock, own o WHERE NOT %(dry_run)s::boolean
)
SELECT (SELECT count(*) FROM looked)::int AS looked, (SELECT count(*) FROM own) AS discarded,
       (SELECT k.id FROM looked k ORDER BY k.id DESC LIMIT 1) AS last_id
