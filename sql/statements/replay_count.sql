-- What a replay under the same keys would do now: how many pairs by subscription, type and fate.
-- Takes no lock. All pairs are counted, then those that are not at rest, from the tables that hold
-- them; what remains was delivered. So no join carries every pair through every table.
--
-- position, ceiling bigint: only position < event id <= ceiling
-- patterns text[] or null, subject, org_id text or null, since, until timestamptz or null
-- subscription_id, endpoint_id bigint or null
-- missed boolean: only dead ones, ignore_expiry boolean
-- redacted, twice bigint[], old_slots smallint[]: as replay_aside.sql found them
-- A row each: a JSON object of subscription, type, fate, n
WITH ev AS NOT MATERIALIZED (
    SELECT e.id, e.type, coalesce(e.expires_at <= statement_timestamp(), false) AS expired,
           e.id = ANY (%(redacted)s::bigint[]) AS redacted
    FROM outbox.event e
    WHERE e.id > %(position)s::bigint AND e.id <= %(ceiling)s::bigint
      AND NOT (e.id = ANY (%(twice)s::bigint[]) AND e.slot = ANY (%(old_slots)s::smallint[]))
      AND (%(org_id)s::text IS NULL OR e.org_id = %(org_id)s::text)
      AND (%(since)s::timestamptz IS NULL OR e.created_at >= %(since)s::timestamptz)
      AND (%(until)s::timestamptz IS NULL OR e.created_at < %(until)s::timestamptz)
      AND (%(subject)s::text IS NULL OR e.subject = %(subject)s::text)
      AND (%(patterns)s::text[] IS NULL OR outbox.type_matches(
           e.type, outbox.like_patterns(%(patterns)s::text[]), '*' = ANY (%(patterns)s::text[])))
),
others AS (
    SELECT DISTINCT j.event_id, j.subscription_id FROM outbox.journal j
    WHERE j.event_id > %(position)s::bigint AND j.event_id <= %(ceiling)s::bigint
      AND (j.fact = 'carried' AND (j.detail ->> 'generation')::int = 0 OR j.fact = 'replayed' AND j.detail ->> 'backfill' IS NOT NULL)
),
counted (subscription_id, type, expired, redacted, what, n) AS (
    SELECT (i.value ->> 'subscription')::bigint, e.type, e.expired, e.redacted, 'all', count(*)
    FROM outbox.journal j CROSS JOIN LATERAL jsonb_array_elements(
        CASE WHEN j.fact = 'routed' THEN j.detail END) i (value)
    JOIN ev e ON e.id = j.event_id
    WHERE j.fact = 'routed' AND j.event_id > %(position)s::bigint AND j.event_id <= %(ceiling)s::bigint
      AND NOT %(missed)s::boolean
    GROUP BY 1, 2, 3, 4
    UNION ALL
    SELECT o.subscription_id, e.type, e.expired, e.redacted, 'all', count(*)
    FROM others o JOIN ev e ON e.id = o.event_id
    WHERE NOT %(missed)s::boolean AND NOT EXISTS (
        SELECT FROM outbox.journal j WHERE j.event_id = o.event_id AND j.fact = 'routed'
          AND j.detail @> jsonb_build_array(jsonb_build_object('subscription', o.subscription_id)))
    GROUP BY 1, 2, 3, 4
    UNION ALL
    SELECT d.subscription_id, e.type, e.expired, e.redacted,
           CASE WHEN d.state <> 'scheduled' THEN d.state
                WHEN d.due_at > statement_timestamp() THEN 'due_now' ELSE 'already_due' END, count(*)
    FROM outbox.delivery d JOIN ev e ON e.id = d.event_id
    WHERE d.generation = 0 AND NOT %(missed)s::boolean
    GROUP BY 1, 2, 3, 4, 5
    UNION ALL
    SELECT d.subscription_id, e.type, e.expired, e.redacted, x.what, count(*)
    FROM outbox.dead_letter d JOIN ev e ON e.id = d.event_id
    CROSS JOIN LATERAL (
        SELECT CASE WHEN d.expires_at <= statement_timestamp() AND NOT %(ignore_expiry)s::boolean
                    THEN 'expired' ELSE 'redriven' END AS what
        UNION ALL SELECT 'all' WHERE %(missed)s::boolean) x
    WHERE d.generation = 0 OR %(missed)s::boolean
    GROUP BY 1, 2, 3, 4, 5
    UNION ALL
    SELECT j.subscription_id, e.type, e.expired, e.redacted, j.fact, count(DISTINCT j.delivery_id)
    FROM outbox.journal j JOIN ev e ON e.id = j.event_id
    WHERE j.fact IN ('cancelled', 'discarded') AND NOT %(missed)s::boolean
    GROUP BY 1, 2, 3, 4, 5
),
-- What is redacted or has no destination any more stays, whatever became of it.
summed AS (
    SELECT c.subscription_id, c.type, c.expired,
           CASE WHEN c.redacted THEN 'redacted' WHEN s.state = 'removed' OR n.state = 'removed' THEN 'removed' END AS stop,
           c.what, sum(c.n) AS n
    FROM counted c JOIN outbox.subscription s ON s.id = c.subscription_id
    LEFT JOIN outbox.endpoint n ON n.id = s.endpoint_id
    WHERE (%(subscription_id)s::bigint IS NULL OR s.id = %(subscription_id)s::bigint)
      AND (%(endpoint_id)s::bigint IS NULL OR s.endpoint_id = %(endpoint_id)s::bigint)
    GROUP BY 1, 2, 3, 4, 5
),
fated AS (
    SELECT s.subscription_id, s.type, s.stop AS fate, s.n FROM summed s WHERE s.stop IS NOT NULL AND s.what = 'all'
    UNION ALL
    SELECT s.subscription_id, s.type, s.what, s.n FROM summed s WHERE s.stop IS NULL AND s.what <> 'all'
    UNION ALL
    SELECT s.subscription_id, s.type,
           CASE WHEN s.expired AND NOT %(ignore_expiry)s::boolean THEN 'expired' ELSE 'redelivered' END,
           sum(CASE s.what WHEN 'all' THEN s.n ELSE -s.n END)
    FROM summed s WHERE s.stop IS NULL GROUP BY s.subscription_id, s.type, s.expired
)
SELECT jsonb_build_object('subscription', f.subscription_id, 'type', f.type, 'fate', f.fate, 'n', sum(f.n)::bigint)
FROM fated f GROUP BY f.subscription_id, f.type, f.fate HAVING sum(f.n) > 0
ORDER BY f.subscription_id, f.type, f.fate
