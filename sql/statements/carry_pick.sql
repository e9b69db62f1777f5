-- Locks some of what is still owed whose event lies in a slot. What others have locked is left for
-- the next time. Deliveries and dead letters are locked in this order everywhere.
--
-- slot      int
-- after     bigint: pending events above this id
-- rows_max  int: of each
-- One row: deliveries (uuid[]), dead (uuid[]), pending (bigint[])
WITH live AS MATERIALIZED (
    SELECT d.id FROM outbox.delivery d WHERE d.event_slot = %(slot)s::smallint
    LIMIT %(rows_max)s::int FOR UPDATE SKIP LOCKED
),
dead AS MATERIALIZED (
    SELECT d.id FROM outbox.dead_letter d WHERE d.event_slot = %(slot)s::smallint
    LIMIT %(rows_max)s::int FOR UPDATE SKIP LOCKED
),
unrouted AS MATERIALIZED (
    -- By id, because nothing else needs an index on the slot: none lies above the slot's last event.
    SELECT p.id FROM outbox.pending p
    WHERE p.slot = %(slot)s::smallint AND p.id > %(after)s::bigint
      AND p.id <= (SELECT max(e.id) FROM outbox.event e WHERE e.slot = %(slot)s::smallint)
    ORDER BY p.id LIMIT %(rows_max)s::int FOR UPDATE SKIP LOCKED
)
SELECT ARRAY(SELECT id FROM live) AS deliveries, ARRAY(SELECT id FROM dead) AS dead,
       ARRAY(SELECT id FROM unrouted ORDER BY id) AS pending
