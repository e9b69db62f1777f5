-- Marks a slot as empty.
--
-- slot  int
UPDATE outbox.ring SET opened_at = NULL WHERE slot = %(slot)s::smallint
