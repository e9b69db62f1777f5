-- What a replay under new keys would do now: how many pairs by subscription, type and fate. Takes
-- no lock. A live delivery of whatever generation stops its pair, and so does one that was called
-- off. All pairs are counted, then those that are stopped, from the tables that tell.
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
      AND (j.fact = 'carried' AND j.delivery_id IS NOT NULL OR j.fact = 'replayed' AND j.detail ->> 'backfill' IS NOT NULL)
),
live AS (SELECT DISTINCT d.event_id, d.subscription_id FROM outbox.delivery d),
dead AS (SELECT DISTINCT d.event_id, d.subscription_id FROM outbox.dead_letter d),
stopped AS (
    SELECT x.event_id, x.subscription_id, min(x.what) AS what FROM (
        SELECT j.event_id, j.subscription_id, j.fact AS what FROM outbox.journal j
        WHERE j.fact IN ('cancelled', 'discarded')) x
    WHERE NOT EXISTS (SELECT FROM live l WHERE l.event_id = x.event_id AND l.subscription_id = x.subscription_id)
    GROUP BY x.event_id, x.subscription_id
    UNION ALL
    SELECT l.event_id, l.subscription_id, 'live' FROM live l
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
    SELECT d.subscription_id, e.type, e.expired, e.redacted, 'all', count(*)
    FROM dead d JOIN ev e ON e.id = d.event_id
    WHERE %(missed)s::boolean
    GROUP BY 1, 2, 3, 4
    UNION ALL
    SELECT x.subscription_id, e.type, e.expired, e.redacted, x.what, count(*)
    FROM stopped x JOIN ev e ON e.id = x.event_id
    WHERE NOT %(missed)s::boolean OR EXISTS (
        SELECT FROM dead d WHERE d.event_id = x.event_id AND d.subscription_id = x.subscription_id)
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
           CASE WHEN s.expired AND NOT %(ignore_expiry)s::boolean THEN 'expired' ELSE 're-emitted' END,
           sum(CASE s.what WHEN 'all' THEN s.n ELSE -s.n END)
    FROM summed s WHERE s.stop IS NULL GROUP BY s.subscription_id, s.type, s.expired
)
SELECT jsonb_build_object('subscription', f.subscription_id, 'type', f.type, 'fate', f.fate, 'n', sum(f.n)::bigint)
FROM fated f GROUP BY f.subscription_id, f.type, f.fate HAVING sum(f.n) > 0
ORDER BY f.subscription_id, f.type, f.fate
