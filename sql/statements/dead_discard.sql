-- Gives dead letters up, one batch in order of id. Rows are locked in order of id.
--
-- ids uuid[] or null, org_id text or null, endpoint_id bigint or null (a lane), reason text or null,
-- since, until timestamptz or null: died then; patterns text[] or null, subject text or null: of the event
-- dry_run boolean: count alone
-- why text: what the journal keeps
-- after_id uuid: where the batch before ended; looked_max, rows_max int: letters to look at, to change
-- One row: more (boolean), discarded (count), last_id
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now, (SELECT last_value FROM outbox.ring_slot)::smallint AS slot
),
scanned AS MATERIALIZED (
    SELECT d.id, d.event_id, d.event_slot, d.lane, d.org_id, d.reason, d.died_at FROM outbox.dead_letter d
    WHERE d.id > %(after_id)s::uuid AND (%(ids)s::uuid[] IS NULL OR d.id = ANY (%(ids)s::uuid[]))
    ORDER BY d.id LIMIT %(looked_max)s::int
),
looked AS MATERIALIZED (
    SELECT d.id FROM scanned d
    WHERE (%(org_id)s::text IS NULL OR d.org_id = %(org_id)s::text)
      AND (%(endpoint_id)s::bigint IS NULL OR d.lane = %(endpoint_id)s::bigint)
      AND (%(reason)s::text IS NULL OR d.reason = %(reason)s::text)
      AND (%(since)s::timestamptz IS NULL OR d.died_at >= %(since)s::timestamptz)
      AND (%(until)s::timestamptz IS NULL OR d.died_at < %(until)s::timestamptz)
      AND (%(patterns)s::text[] IS NULL AND %(subject)s::text IS NULL OR EXISTS (
           SELECT FROM outbox.event e WHERE e.slot = d.event_slot AND e.id = d.event_id
             AND (%(subject)s::text IS NULL OR e.subject = %(subject)s::text)
             AND (%(patterns)s::text[] IS NULL OR outbox.type_matches(
                  e.type, outbox.like_patterns(%(patterns)s::text[]), '*' = ANY (%(patterns)s::text[])))))
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
SELECT (SELECT count(*) FROM looked) = %(rows_max)s::int
       OR (SELECT count(*) FROM scanned) = %(looked_max)s::int AS more,
       (SELECT count(*) FROM own) AS discarded,
       CASE WHEN (SELECT count(*) FROM looked) = %(rows_max)s::int
            THEN (SELECT k.id FROM looked k ORDER BY k.id DESC LIMIT 1)
            ELSE (SELECT c.id FROM scanned c ORDER BY c.id DESC LIMIT 1) END AS last_id
