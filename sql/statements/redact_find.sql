-- Finds events to redact, one batch of the log in order of id. A payload that SQL/JSON cannot
-- judge (it holds \u0000) is not chosen by `where` but counted: there the filter passes whatever it says.
--
-- after bigint: where the batch before ended; looked_max int: ids to look at
-- ids bigint[] or null: only these, all at once; org_id, subject text or null, patterns text[] or null,
-- since, until timestamptz or null, filter text or null: an SQL/JSON path predicate
-- One row: ids (bigint[]), already (redacted before), unjudged (counts), last_id, more (boolean)
WITH bounds AS MATERIALIZED (
    -- By a range of ids and slot by slot: the index then reads what is looked at and no more.
    SELECT CASE WHEN %(ids)s::bigint[] IS NOT NULL THEN 0 ELSE x.low END AS low,
           CASE WHEN %(ids)s::bigint[] IS NOT NULL THEN 9223372036854775807
                ELSE x.low + %(looked_max)s::int - 1 END AS high
    FROM (
        SELECT min(e.id) AS low FROM generate_series(0, 7) AS ring (slot) CROSS JOIN LATERAL (
            SELECT e.id FROM outbox.event e WHERE e.slot = ring.slot AND e.id > %(after)s::bigint
            ORDER BY e.id LIMIT 1) e) x
),
scanned AS MATERIALIZED (
    SELECT e.* FROM bounds CROSS JOIN generate_series(0, 7) AS ring (slot) CROSS JOIN LATERAL (
        SELECT e.slot, e.id, e.type, e.org_id, e.subject, e.created_at FROM outbox.event e
        WHERE e.slot = ring.slot AND e.id >= bounds.low AND e.id <= bounds.high
          AND (%(ids)s::bigint[] IS NULL OR e.id = ANY (%(ids)s::bigint[]))
        OFFSET 0) e
),
fitting AS MATERIALIZED (
    SELECT DISTINCT ON (s.id) s.* FROM scanned s
    WHERE (%(org_id)s::text IS NULL OR s.org_id = %(org_id)s::text)
      AND (%(subject)s::text IS NULL OR s.subject = %(subject)s::text)
      AND (%(since)s::timestamptz IS NULL OR s.created_at >= %(since)s::timestamptz)
      AND (%(until)s::timestamptz IS NULL OR s.created_at < %(until)s::timestamptz)
      AND (%(patterns)s::text[] IS NULL OR outbox.type_matches(
           s.type, outbox.like_patterns(%(patterns)s::text[]), '*' = ANY (%(patterns)s::text[])))
    ORDER BY s.id
),
judged AS MATERIALIZED (
    SELECT f.id, CASE WHEN EXISTS (SELECT FROM outbox.journal j WHERE j.event_id = f.id AND j.fact = 'redacted')
                      THEN 'already' ELSE v.verdict END AS verdict
    FROM fitting f CROSS JOIN LATERAL (
        SELECT CASE WHEN %(filter)s::text IS NULL THEN 'chosen' ELSE (
            SELECT CASE WHEN NOT outbox.filter_passes(%(filter)s::text, e.payload) THEN NULL
                        WHEN outbox.filter_passes('1 == 2', e.payload) THEN 'unjudged'
                        ELSE 'chosen' END
            FROM outbox.event e WHERE e.slot = f.slot AND e.id = f.id) END AS verdict) v
    WHERE v.verdict IS NOT NULL
)
SELECT ARRAY(SELECT id FROM judged WHERE verdict = 'chosen' ORDER BY id) AS ids,
       (SELECT count(*) FROM judged WHERE verdict = 'already') AS already,
       (SELECT count(*) FROM judged WHERE verdict = 'unjudged') AS unjudged,
       b.high AS last_id, b.low IS NOT NULL AND %(ids)s::bigint[] IS NULL AS more
FROM bounds b
