-- Gives dead letters a fresh budget of attempts, one batch in order of id: due now, behind fresh
-- deliveries and retries, the maximum age counted from now. What may not be redriven is counted and
-- stays. An ordered one waits for its turn: it is held, and the trigger on `dead_letter` signals its
-- key. Rows are locked in order of id; a letter that another session redrives at this moment is
-- found gone.
--
-- ids uuid[] or null, org_id text or null, endpoint_id bigint or null (a lane), reason text or null,
-- since, until timestamptz or null: died then; patterns text[] or null, subject text or null: of the event
-- ignore_expiry boolean: redrive what is past its expiry too, then without one
-- dry_run boolean: count alone
-- after_id uuid: where the batch before ended; looked_max, rows_max int: letters to look at, to change
-- One row: more (boolean), redriven, removed (its destination), expired (counts), last_id
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
        order_key, again, state, held_reason, held_at, due_at, expires_at, age_limit_at, attempts, budget, expiries)
    SELECT c.id, c.event_id, c.event_slot, c.subscription_id, c.revision, c.generation, c.lane, c.org_id,
           c.order_key, true, CASE WHEN c.order_key IS NULL THEN 'scheduled' ELSE 'held' END,
           CASE WHEN c.order_key IS NOT NULL THEN 'order' END, CASE WHEN c.order_key IS NOT NULL THEN clock.now END,
           clock.now, CASE WHEN c.expires_at > clock.now THEN c.expires_at END,
           clock.now + c.max_age, 0, c.budget + 1, 0
    FROM clock, chosen c
),
told AS (
    INSERT INTO outbox.journal (slot, at, fact, event_id, delivery_id, subscription_id, org_id, revision,
        budget, attempt, charged, reason, due_at)
    SELECT clock.slot, clock.now + f.later, f.fact, c.event_id, c.id, c.subscription_id, c.org_id, c.revision,
           c.budget + 1, 0, false, coalesce(f.reason, c.reason), f.due_at
    FROM clock, chosen c CROSS JOIN LATERAL (
        SELECT interval '0' AS later, 'redriven' AS fact, NULL AS reason, clock.now AS due_at
        UNION ALL
        SELECT interval '1 microsecond', 'held', 'order', NULL WHERE c.order_key IS NOT NULL) f
)
SELECT (SELECT count(*) FROM looked) = %(rows_max)s::int
       OR (SELECT count(*) FROM scanned) = %(looked_max)s::int AS more,
       (SELECT count(*) FROM own WHERE fate = 'redriven') AS redriven,
       (SELECT count(*) FROM own WHERE fate = 'removed') AS removed,
       (SELECT count(*) FROM own WHERE fate = 'expired') AS expired,
       CASE WHEN (SELECT count(*) FROM looked) = %(rows_max)s::int
            THEN (SELECT k.id FROM looked k ORDER BY k.id DESC LIMIT 1)
            ELSE (SELECT c.id FROM scanned c ORDER BY c.id DESC LIMIT 1) END AS last_id
