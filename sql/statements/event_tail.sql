-- Events among ids that were not seen yet, in order of id, and what tells when an id that is
-- missing now can no longer come. Looks at no more than `rows_max` of them.
--
-- lows, highs bigint[]: ranges of ids, both ends included
-- rows_max int
-- patterns text[] or null, org_id text or null, since timestamptz or null: which of them to show
-- payload boolean: with their payloads, as text
-- One row: events (jsonb[]), lows, highs (bigint[]: ranges of ids that were met, shown or not),
-- more (boolean), last_id (drawn last), xmin, xmax (text: of the snapshot that this looked at)
WITH met AS MATERIALIZED (
    SELECT DISTINCT ON (e.id) e.* FROM (
        -- Slot by slot: only then is the index an order by id. A carried event lies in two.
        SELECT e.* FROM unnest(%(lows)s::bigint[], %(highs)s::bigint[]) AS r (low, high)
        CROSS JOIN generate_series(0, 7) AS ring (slot) CROSS JOIN LATERAL (
            SELECT e.id, e.slot, e.type, e.org_id, e.subject, e.created_at FROM outbox.event e
            WHERE e.slot = ring.slot AND e.id >= r.low AND e.id <= r.high
            ORDER BY e.id LIMIT %(rows_max)s::int) e
        ORDER BY e.id LIMIT %(rows_max)s::int) e
    ORDER BY e.id
),
shown AS MATERIALIZED (
    SELECT m.* FROM met m
    WHERE (%(org_id)s::text IS NULL OR m.org_id = %(org_id)s::text)
      AND (%(since)s::timestamptz IS NULL OR m.created_at >= %(since)s::timestamptz)
      AND (%(patterns)s::text[] IS NULL OR outbox.type_matches(
           m.type, outbox.like_patterns(%(patterns)s::text[]), '*' = ANY (%(patterns)s::text[])))
),
island AS MATERIALIZED (
    SELECT min(i.id) AS low, max(i.id) AS high
    FROM (SELECT m.id, m.id - row_number() OVER (ORDER BY m.id) AS nth FROM met m) i GROUP BY i.nth
)
SELECT ARRAY(SELECT jsonb_build_object('id', s.id, 'created_at', s.created_at, 'type', s.type, 'org', s.org_id,
                 'subject', s.subject, 'payload', CASE WHEN %(payload)s::boolean THEN (
                     SELECT e.payload::text FROM outbox.event e WHERE e.slot = s.slot AND e.id = s.id) END)
             FROM shown s ORDER BY s.id) AS events,
       ARRAY(SELECT low FROM island ORDER BY low) AS lows, ARRAY(SELECT high FROM island ORDER BY low) AS highs,
       (SELECT count(*) FROM met) >= %(rows_max)s::int AS more,
       (SELECT CASE WHEN q.is_called THEN q.last_value ELSE 0 END FROM outbox.event_id q) AS last_id,
       pg_snapshot_xmin(pg_current_snapshot())::text AS xmin,
       pg_snapshot_xmax(pg_current_snapshot())::text AS xmax
