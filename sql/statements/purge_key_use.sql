-- Forgets keys whose time is over, but for those whose delivery still waits: a later event may overtake it.
--
-- now       timestamptz or null
-- rows_max  int
-- One row: done (count)
WITH old AS MATERIALIZED (
    SELECT k.subscription_id, k.key FROM outbox.key_use k
    WHERE k.until <= coalesce(%(now)s::timestamptz, clock_timestamp())
      AND NOT EXISTS (SELECT FROM outbox.delivery d WHERE d.id = k.delivery_id)
    ORDER BY k.until LIMIT %(rows_max)s::int FOR UPDATE SKIP LOCKED
),
gone AS (
    DELETE FROM outbox.key_use k USING old o WHERE k.subscription_id = o.subscription_id AND k.key = o.key
)
SELECT count(*) AS done FROM old
