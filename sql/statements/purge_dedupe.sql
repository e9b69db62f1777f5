-- Forgets deduplication keys past their lifetime.
--
-- now       timestamptz or null
-- rows_max  int
-- One row: done (count)
WITH old AS MATERIALIZED (
    SELECT d.org, d.key FROM outbox.dedupe d
    WHERE d.expires_at <= coalesce(%(now)s::timestamptz, clock_timestamp())
    ORDER BY d.expires_at LIMIT %(rows_max)s::int FOR UPDATE SKIP LOCKED
),
gone AS (
    DELETE FROM outbox.dedupe d USING old o WHERE d.org = o.org AND d.key = o.key
)
SELECT count(*) AS done FROM old
