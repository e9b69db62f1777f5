-- Opens a slot for writing. A sequence does not roll back: if this transaction is lost after the
-- pointer moved, the next look at the ring finds the slot current without a time and opens it again.
--
-- now   timestamptz or null
-- slot  int
-- One row: slot
WITH opened AS (
    UPDATE outbox.ring r SET opened_at = coalesce(%(now)s::timestamptz, clock_timestamp())
    WHERE r.slot = %(slot)s::smallint
    RETURNING r.slot
)
SELECT pg_catalog.setval('outbox.ring_slot', o.slot, true) AS slot FROM opened o
