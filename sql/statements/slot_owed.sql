-- Is anything still owed whose event lies in a slot? One snapshot over all three tables: what moves
-- between them meanwhile is seen in its old place.
--
-- slot  int
-- One row: owed (boolean)
SELECT EXISTS (SELECT FROM outbox.delivery d WHERE d.event_slot = %(slot)s::smallint)
    OR EXISTS (SELECT FROM outbox.dead_letter d WHERE d.event_slot = %(slot)s::smallint)
    OR EXISTS (SELECT FROM outbox.pending p WHERE p.slot = %(slot)s::smallint
               AND p.id <= (SELECT max(e.id) FROM outbox.event e WHERE e.slot = %(slot)s::smallint)) AS owed
