-- Dead letters by reason and endpoint, the most frequent first. Looks at the newest `looked_max`
-- alone, so that its cost is bounded.
--
-- org_id text or null, endpoint_id bigint or null (a lane), reason text or null,
-- since, until timestamptz or null: died then; patterns text[] or null, subject text or null: of the event
-- looked_max int
-- A row each: a JSON object
SELECT jsonb_build_object('reason', x.reason, 'endpoint', x.lane, 'n', x.n,
                          'oldest_died_at', x.oldest, 'newest_died_at', x.newest)
FROM (
    SELECT d.reason, d.lane, count(*) AS n, min(d.died_at) AS oldest, max(d.died_at) AS newest
    FROM (
        SELECT d.* FROM outbox.dead_letter d
        WHERE (%(org_id)s::text IS NULL OR d.org_id = %(org_id)s::text)
          AND (%(endpoint_id)s::bigint IS NULL OR d.lane = %(endpoint_id)s::bigint)
          AND (%(reason)s::text IS NULL OR d.reason = %(reason)s::text)
          AND (%(since)s::timestamptz IS NULL OR d.died_at >= %(since)s::timestamptz)
          AND (%(until)s::timestamptz IS NULL OR d.died_at < %(until)s::timestamptz)
        ORDER BY d.died_at DESC LIMIT %(looked_max)s::int) d
    WHERE (%(patterns)s::text[] IS NULL AND %(subject)s::text IS NULL OR EXISTS (
           SELECT FROM outbox.event e WHERE e.slot = d.event_slot AND e.id = d.event_id
             AND (%(subject)s::text IS NULL OR e.subject = %(subject)s::text)
             AND (%(patterns)s::text[] IS NULL OR outbox.type_matches(
                  e.type, outbox.like_patterns(%(patterns)s::text[]), '*' = ANY (%(patterns)s::text[])))))
    GROUP BY d.reason, d.lane) x
ORDER BY x.n DESC, x.reason, x.lane
