-- Forgets what attempts told of deliveries that have ended since: their worker died, or they were
-- cancelled.
--
-- rows_max  int
-- One row: done (count)
WITH old AS MATERIALIZED (
    SELECT p.delivery_id FROM outbox.progress p
    WHERE NOT EXISTS (SELECT FROM outbox.delivery d WHERE d.id = p.delivery_id)
    LIMIT %(rows_max)s::int FOR UPDATE SKIP LOCKED
),
gone AS (
    DELETE FROM outbox.progress p USING old o WHERE p.delivery_id = o.delivery_id
)
SELECT count(*) AS done FROM old
