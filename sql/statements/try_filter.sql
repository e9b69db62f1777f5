-- Judges one event by one filter, to see whether it ends in time.
--
-- filter text, slot smallint, id bigint
SELECT outbox.filter_passes(%(filter)s::text, e.payload) FROM outbox.event e
WHERE e.slot = %(slot)s::smallint AND e.id = %(id)s::bigint
