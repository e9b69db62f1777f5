-- What a backfill would do now: how many past events that match a subscription's rule, by type and
-- fate. Takes no lock. Events that are not routed yet are left out: routing judges them first.
--
-- position, ceiling bigint: only position < event id <= ceiling
-- patterns text[] or null, subject, org_id text or null, since, until timestamptz or null
-- subscription_id bigint, ignore_expiry boolean
-- redacted, twice bigint[], old_slots smallint[]: as replay_aside.sql found them
-- A row each: a JSON object of subscription, type, fate, n
WITH had AS (
    SELECT j.event_id FROM outbox.journal j CROSS JOIN LATERAL jsonb_array_elements(
        CASE WHEN j.fact = 'routed' THEN j.detail END) i (value)
    WHERE j.fact = 'routed' AND j.event_id > %(position)s::bigint AND j.event_id <= %(ceiling)s::bigint
      AND (i.value ->> 'subscription')::bigint = %(subscription_id)s::bigint
    UNION
    SELECT j.event_id FROM outbox.journal j
    WHERE j.subscription_id = %(subscription_id)s::bigint AND j.delivery_id IS NOT NULL
      AND j.event_id > %(position)s::bigint AND j.event_id <= %(ceiling)s::bigint
),
judged AS (
    SELECT e.type,
           CASE WHEN e.id = ANY (%(redacted)s::bigint[]) THEN 'redacted'
                WHEN n.state = 'removed' THEN 'removed'
                WHEN h.event_id IS NOT NULL THEN 'routed'
                WHEN NOT %(ignore_expiry)s::boolean AND statement_timestamp() >= e.expires_at THEN 'expired'
                ELSE 'backfilled' END AS fate
    FROM outbox.subscription s
    JOIN outbox.event e ON s.all_orgs OR s.org_id = e.org_id
    LEFT JOIN outbox.endpoint n ON n.id = s.endpoint_id
    LEFT JOIN had h ON h.event_id = e.id
    WHERE s.id = %(subscription_id)s::bigint
      AND e.id > %(position)s::bigint AND e.id <= %(ceiling)s::bigint
      AND NOT (e.id = ANY (%(twice)s::bigint[]) AND e.slot = ANY (%(old_slots)s::smallint[]))
      AND (%(org_id)s::text IS NULL OR e.org_id = %(org_id)s::text)
      AND (%(since)s::timestamptz IS NULL OR e.created_at >= %(since)s::timestamptz)
      AND (%(until)s::timestamptz IS NULL OR e.created_at < %(until)s::timestamptz)
      AND (%(subject)s::text IS NULL OR e.subject = %(subject)s::text)
      AND (%(patterns)s::text[] IS NULL OR outbox.type_matches(
           e.type, outbox.like_patterns(%(patterns)s::text[]), '*' = ANY (%(patterns)s::text[])))
      AND outbox.type_matches(e.type, s.likes, s.every)
      AND (s.filter IS NULL OR outbox.filter_passes(s.filter, e.payload))
      AND NOT EXISTS (SELECT FROM outbox.pending p WHERE p.id = e.id)
)
SELECT jsonb_build_object('subscription', %(subscription_id)s::bigint, 'type', j.type, 'fate', j.fate, 'n', count(*))
FROM judged j GROUP BY j.type, j.fate ORDER BY j.type, j.fate
