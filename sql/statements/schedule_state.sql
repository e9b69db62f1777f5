-- Pauses or resumes a schedule.
--
-- name text, state text, next_at timestamptz or null: its next tick, null leaves it
-- One row, none if there is no such schedule: name
UPDATE outbox.schedule s
SET state = %(state)s::text,
    next_at = CASE WHEN s.state = %(state)s::text THEN s.next_at
                   ELSE coalesce(%(next_at)s::timestamptz, s.next_at) END
WHERE s.name = %(name)s::text
RETURNING s.name
