-- The events of a replay that come next, in order of id, and where it stands when they are done.
-- Takes no lock: replay_batch.sql judges each pair again. Looks at no more than `span` ids.
--
-- mode        text: redeliver, re-emit, backfill
-- position, ceiling bigint: only position < id <= ceiling
-- span        bigint: ids to look at, events_max int: events to return
-- events      bigint[] or null: only these
-- patterns    text[] or null, subject, org_id text or null, since, until timestamptz or null
-- subscription_id, endpoint_id bigint or null: only events with a pair of it; a backfill's own
-- missed      boolean: only events with a pair that died
-- One row: slots (smallint[]), events (bigint[]), position (bigint: behind them)
WITH bounds AS MATERIALIZED (
    SELECT (SELECT last_value FROM outbox.ring_slot)::int AS slot,
           CASE WHEN %(events)s::bigint[] IS NOT NULL THEN %(ceiling)s::bigint
                ELSE least(%(ceiling)s::bigint, %(position)s::bigint + %(span)s::bigint,
                    -- What is not routed yet may still be matched: a backfill waits for it.
                    CASE WHEN %(mode)s::text = 'backfill' THEN (
                        SELECT p.id - 1 FROM outbox.pending p WHERE p.id > %(position)s::bigint
                        ORDER BY p.id LIMIT 1) END) END AS high
),
subs AS MATERIALIZED (
    SELECT s.* FROM outbox.subscription s
    WHERE s.id = %(subscription_id)s::bigint
      AND (%(endpoint_id)s::bigint IS NULL OR s.endpoint_id = %(endpoint_id)s::bigint)
    UNION ALL
    SELECT s.* FROM outbox.subscription s
    WHERE s.lane = %(endpoint_id)s::bigint AND %(subscription_id)s::bigint IS NULL
),
-- Slot by slot: only then is the index an order by id.
ranged AS (
    SELECT e.* FROM bounds CROSS JOIN generate_series(0, 7) AS ring (slot) CROSS JOIN LATERAL (
        SELECT e.id, e.slot, e.type, e.org_id, e.subject, e.created_at FROM outbox.event e
        WHERE e.slot = ring.slot AND e.id > %(position)s::bigint AND e.id <= bounds.high
        OFFSET 0) e
    WHERE %(events)s::bigint[] IS NULL
),
named AS (
    SELECT e.* FROM bounds CROSS JOIN (
        SELECT DISTINCT u.id FROM unnest(%(events)s::bigint[]) u (id)
        WHERE u.id > %(position)s::bigint ORDER BY u.id LIMIT %(events_max)s::int) u
    CROSS JOIN generate_series(0, 7) AS ring (slot) CROSS JOIN LATERAL (
        SELECT e.id, e.slot, e.type, e.org_id, e.subject, e.created_at FROM outbox.event e
        WHERE e.slot = ring.slot AND e.id = u.id AND e.id <= bounds.high
        OFFSET 0) e
),
met AS (
    SELECT e.id, e.slot FROM (SELECT * FROM ranged UNION ALL SELECT * FROM named) e
    WHERE (%(org_id)s::text IS NULL OR e.org_id = %(org_id)s::text)
      AND (%(since)s::timestamptz IS NULL OR e.created_at >= %(since)s::timestamptz)
      AND (%(until)s::timestamptz IS NULL OR e.created_at < %(until)s::timestamptz)
      AND (%(subject)s::text IS NULL OR e.subject = %(subject)s::text)
      AND (%(patterns)s::text[] IS NULL OR outbox.type_matches(
           e.type, outbox.like_patterns(%(patterns)s::text[]), '*' = ANY (%(patterns)s::text[])))
      AND CASE
          WHEN %(mode)s::text = 'backfill' THEN EXISTS (
            SELECT FROM subs s WHERE (s.all_orgs OR s.org_id = e.org_id)
              AND outbox.type_matches(e.type, s.likes, s.every)
              AND (s.filter IS NULL OR outbox.filter_passes(s.filter, (
                    SELECT x.payload FROM outbox.event x WHERE x.slot = e.slot AND x.id = e.id))))
          WHEN %(missed)s::boolean THEN EXISTS (
            SELECT FROM outbox.journal j WHERE j.event_id = e.id AND j.fact IN ('dead', 'expired', 'carried')
              AND j.subscription_id IN (SELECT s.id FROM subs s))
          WHEN coalesce(%(subscription_id)s::bigint, %(endpoint_id)s::bigint) IS NOT NULL THEN EXISTS (
            SELECT FROM outbox.journal j WHERE j.event_id = e.id AND (
                j.subscription_id IN (SELECT s.id FROM subs s)
                OR EXISTS (SELECT FROM jsonb_array_elements(CASE WHEN j.fact = 'routed' THEN j.detail END) i (value)
                           WHERE (i.value ->> 'subscription')::bigint IN (SELECT s.id FROM subs s))))
          ELSE true END
),
-- An event that retention carries stands in two slots for a moment: the one written last stays.
chosen AS MATERIALIZED (
    SELECT m.id, min((bounds.slot - m.slot + 8) %% 8) AS age FROM bounds, met m
    GROUP BY m.id ORDER BY m.id LIMIT %(events_max)s::int
)
SELECT ARRAY(SELECT ((bounds.slot - c.age + 8) %% 8)::smallint FROM bounds, chosen c ORDER BY c.id) AS slots,
       ARRAY(SELECT c.id FROM chosen c ORDER BY c.id) AS events,
       CASE WHEN (SELECT count(*) FROM chosen) >= %(events_max)s::int THEN (SELECT max(c.id) FROM chosen c)
            WHEN %(events)s::bigint[] IS NULL THEN greatest(bounds.high, %(position)s::bigint)
            ELSE coalesce((
                SELECT max(u.id) FROM (
                    SELECT DISTINCT u.id FROM unnest(%(events)s::bigint[]) u (id)
                    WHERE u.id > %(position)s::bigint ORDER BY u.id LIMIT %(events_max)s::int) u
                HAVING count(*) >= %(events_max)s::int), bounds.high) END AS position
FROM bounds
