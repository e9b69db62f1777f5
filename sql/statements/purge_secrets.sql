-- Forgets secrets whose time of overlap is over.
--
-- now       timestamptz or null
-- rows_max  int
-- One row: done (count)
WITH old AS MATERIALIZED (
    SELECT s.id FROM outbox.secret s
    WHERE s.expires_at <= coalesce(%(now)s::timestamptz, clock_timestamp())
    ORDER BY s.id LIMIT %(rows_max)s::int FOR UPDATE SKIP LOCKED
),
gone AS (
    DELETE FROM outbox.secret s USING old o WHERE s.id = o.id
)
SELECT count(*) AS done FROM old
